"""A context of real parts (store, blobs, signer, rollouts) with the outside answered for by plain objects."""

import msgspec
from tests.databases import migrated_file

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.signing.dsse import open_signer
from keepwell.adapters.stores.sql import open_store
from keepwell.core.clock import DAY, FixedClock
from keepwell.core.digest import digest_bytes
from keepwell.core.project import Project, collecting, model, source
from keepwell.core.records.data import Column
from keepwell.core.records.evidence import CheckResult, SigningKey
from keepwell.core.records.lifecycle import RELEASE_STEPS, Release, StepResult, User
from keepwell.core.records.models import ModelVersion, Signature
from keepwell.core.records.work import Work
from keepwell.core.settings import EndpointSettings, PolicySettings, ProjectSettings, Settings
from keepwell.core.statements import TEST_RESULT, sign_evidence
from keepwell.lifecycle.context import Context
from keepwell.lifecycle.policies import keep_policy, policy_of
from keepwell.serving.log.segments import SegmentLog
from keepwell.serving.rollouts.driver import RolloutDriver

START = 1_700_000_000_000_000


PEOPLE = (
    User(name="ana", roles=("author",)),
    User(name="ben", roles=("approver",)),
    User(name="carol", roles=("approver",)),
    User(name="olga", roles=("operator",)),
)


def passing(name="it holds"):
    return (CheckResult(check=name, verdict="pass", message="yes"),)


def failing(message="it does not hold"):
    return (CheckResult(check="it holds", verdict="fail", message=message),)


class NoStage:
    """Nothing is tried on a stage here."""

    def open(self, version, endpoint):
        raise AssertionError(version)


class Drills:
    """Hears every alarm."""

    def alert(self, endpoint, version):
        return passing("drill")[0]


class Application:
    """A live endpoint that gives the answers it was made with, or raises."""

    def __init__(self, answers):
        self.answers = answers

    def predict(self, endpoint, rows):
        raise AssertionError(endpoint)

    def probe(self, endpoint, *, version, rows, within):
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


def no_gain(predictions, outcomes):
    raise AssertionError(predictions)


def project():
    made = Project(name="shop")
    with collecting(made):

        @source(timestamp="at")
        def visits(): ...

        model("buys", source=visits, features=["x"], label="y", owner="o@x", purpose="p")
    return made


def context(folder, *, approvals=1, application=None):
    clock = FixedClock(START)
    store = open_store(migrated_file(folder / "keepwell.db"), clock=clock)
    blobs = FileBlobs(folder / "blobs")
    signer = open_signer(folder / "keys")
    with store.transaction(actor="test") as transaction:
        transaction.add(SigningKey(keyid=signer.keyid, public=signer.public, created=START))
        for user in PEOPLE:
            transaction.add(user)
    return Context(
        project=project(),
        settings=Settings(
            project=ProjectSettings(name="shop", module="shop"),
            policy=PolicySettings(approvals=approvals),
            endpoints={"buys": EndpointSettings(model="buys")},
        ),
        folder=folder,
        store=store,
        blobs=blobs,
        signer=signer,
        verifier=signer,
        clock=clock,
        stage=NoStage(),
        application=application or Application([0.5]),
        rollouts=RolloutDriver(
            store=store, blobs=blobs, signer=signer, log=SegmentLog(folder / "log"), clock=clock,
            gain_of=lambda _: no_gain, settings={},
        ),
        drills=Drills(),
    )  # fmt: skip


def artefact_of(context, number):
    """A whole artefact: its manifest and one file of golden rows."""
    package = {
        "model": "buys", "candidate": "c", "predictor": "linear", "python": "3.11", "requirements": [],
        "code": digest_bytes(b"code"), "revision": "", "training_set": digest_bytes(b"data"), "seed": number,
        "params": {},
        "signature": {"inputs": [{"name": "x", "dtype": "float64", "nullable": True}], "task": "binary"},
    }  # fmt: skip
    files = {
        "golden.json": context.blobs.put(
            msgspec.json.encode({"rows": [[1.0]], "predictions": [0.5], "tolerance": 1e-6})
        ),
        "package.json": context.blobs.put(msgspec.json.encode(package)),
    }
    return context.blobs.put(msgspec.json.encode({"files": files}))


def version(context, number=1, *, state="registered", renews=None):
    found = ModelVersion(
        model="buys", version=number, candidate="c", artefact=artefact_of(context, number), run=f"r{number}",
        training_set=digest_bytes(b"data"), code=digest_bytes(b"code"), author="ana",
        signature=Signature(inputs=(Column(name="x", dtype="float64", nullable=True),), task="binary"),
        state=state, renews=renews, created=START, updated=START,
    )  # fmt: skip
    with context.store.transaction(actor="ana") as transaction:
        transaction.add(found)
    return found


def released(context, number=1, *, renews=None):
    """A version with a passed release of seven signed steps."""
    made = version(context, number, state="released", renews=renews)
    now = context.clock.now()
    with context.store.transaction(actor="ana") as transaction:
        policy = keep_policy(transaction, policy_of("buys", context.settings.policy, now=now))
        release = Release(
            id=f"release-{number}-{now}", model="buys", version=number, state="passed", policy=policy,
            requested_by="ana", started=now,
        )  # fmt: skip
        transaction.add(release)
        for place, name in enumerate(RELEASE_STEPS, 1):
            evidence = sign_evidence(
                signer=context.signer, blobs=context.blobs, subject=made.label(),
                subject_digest=made.artefact, predicate=TEST_RESULT, body={"n": place}, verdict="pass",
                now=now, procedure=release.id, step=name,
            )  # fmt: skip
            transaction.add(evidence)
            transaction.add(
                StepResult(
                    procedure=release.id, step=name, number=place, model="buys", version=number,
                    verdict="pass", results=passing(), evidence=evidence.envelope, started=now, ended=now,
                )
            )  # fmt: skip
    return made


def fail_work(context, procedure_id, error):
    """Let a procedure's open work end as the engine ends it when a step raises."""
    for work in context.store.find(Work, {"state": ["queued", "running"]}):
        if work.args.get("procedure") == procedure_id:
            with context.store.transaction(actor="worker") as transaction:
                transaction.replace(
                    msgspec.structs.replace(
                        work, state="failed", error=error, revision=work.revision + 1
                    )
                )


__all__ = [
    "DAY",
    "START",
    "Application",
    "context",
    "fail_work",
    "failing",
    "passing",
    "released",
    "version",
]
