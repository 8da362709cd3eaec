"""Rivals of the flights example: versions made worse on purpose, released and approved, and callers that ask for real."""

import asyncio
import http.client
import json
import math
import shutil
import time
from urllib.parse import urlsplit

import msgspec
import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.stories.projects import wait_until

from keepwell.app.pulse import Pulse
from keepwell.app.replay import Sender, prepare_days
from keepwell.core.clock import moment
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.lifecycle import RELEASE_STEPS, Release, StepResult
from keepwell.core.records.models import ModelVersion, Signature
from keepwell.core.statements import TEST_RESULT, sign_evidence
from keepwell.data.decisions import decision_rows
from keepwell.lifecycle.approvals import approve
from keepwell.lifecycle.policies import keep_policy, policy_of
from keepwell.training.artefacts import pack_folder, unpack_artefact
from keepwell.training.predictors import load_predictor
from keepwell.training.predictors.native import KIND as NATIVE

MODEL = "flight-delay"
NEEDED = ["clock", "distance", "plane_age", "carrier_late_28d"]
"""What the fragile model looks at. It raises where a plane's age is missing, which it is for one flight in six."""


def biased(folder, *, shift=0.0, stretch=1.0):
    """Make a linear artefact worse: its scores are moved and stretched."""
    path = folder / "linear.json"
    fused = json.loads(path.read_text())
    fused["intercept"] = fused["intercept"] * stretch + shift
    fused["weights"] = [weight * stretch for weight in fused["weights"]]
    path.write_text(json.dumps(fused))


def fragile(folder, rows):
    """Put in place of an artefact's model one that raises on rows with a missing value, as scikit-learn's do."""
    path = folder / "package.json"
    package = json.loads(path.read_text())
    names = [column["name"] for column in package["signature"]["inputs"]]
    known = rows.filter(
        pl.all_horizontal(pl.col(NEEDED).is_not_nan() & pl.col(NEEDED).is_not_null())
    )
    known = known.filter(pl.col("__label").is_not_null())
    estimator = make_pipeline(
        ColumnTransformer([("needed", "passthrough", NEEDED)]),
        StandardScaler(),
        LogisticRegression(),
    ).fit(known.select(names), known.get_column("__label").to_numpy().astype(np.int64))
    (folder / "linear.json").unlink()
    path.write_text(json.dumps(package | {"predictor": "native"}))
    signature = msgspec.convert(package["signature"], Signature)
    assert NATIVE.convert(estimator, signature=signature, folder=folder, sample=np.zeros((0, 0)))
    golden = folder / "golden.json"
    said = json.loads(golden.read_text())
    golden.write_text(
        json.dumps(said | {"rows": known.select(names).head(20).fill_nan(None).rows()})
    )


def with_golden_answers(folder):
    """Let a changed artefact answer its golden rows, as packaging does."""
    path = folder / "golden.json"
    golden = json.loads(path.read_text())
    predictor, _ = load_predictor(folder)
    rows = np.array(
        [[np.nan if v is None else v for v in row] for row in golden["rows"]], dtype=np.float64
    )
    path.write_text(json.dumps(golden | {"predictions": predictor.predict(rows).tolist()}))


def add_version(state, number, folder):
    """Register an artefact's folder as a version, release it in seven signed steps, and let two people approve it."""
    like = state.store.get(ModelVersion, MODEL, 2)
    with_golden_answers(folder)
    now = state.clock.now()
    version = msgspec.structs.replace(
        like, version=number, artefact=pack_folder(folder, blobs=state.blobs), state="released", revision=1,
        created=now, updated=now,
    )  # fmt: skip
    with state.store.transaction(actor=like.author) as transaction:
        transaction.add(version)
        policy = keep_policy(transaction, policy_of(MODEL, state.settings.policy, now=now))
        release = Release(
            id=f"release-{number}", model=MODEL, version=number, state="passed", policy=policy,
            requested_by=like.author, started=now,
        )  # fmt: skip
        transaction.add(release)
        for place, name in enumerate(RELEASE_STEPS, 1):
            evidence = sign_evidence(
                signer=state.signer, blobs=state.blobs, subject=version.label(), subject_digest=version.artefact,
                predicate=TEST_RESULT, body={"n": place}, verdict="pass", now=now, procedure=release.id, step=name,
            )  # fmt: skip
            transaction.add(evidence)
            transaction.add(
                StepResult(
                    procedure=release.id, step=name, number=place, model=MODEL, version=number, verdict="pass",
                    results=(CheckResult(check=name, verdict="pass", message="taken as good for this story"),),
                    evidence=evidence.envelope, started=now, ended=now,
                )
            )  # fmt: skip
    approve_version(state, number)
    return version


def approve_version(state, number):
    for person in ("ben", "carol"):
        approve(
            MODEL, number, by=person, reason="a rival for the story", expires_in="30d", store=state.store,
            blobs=state.blobs, signer=state.signer, clock=state.clock,
        )  # fmt: skip


def rivals(state, place, rows):
    """Give the project versions 4 to 8; 1 (boosting) and 2 (linear) are its own, and good."""
    like = state.store.get(ModelVersion, MODEL, 2)
    made = {
        4: lambda folder: biased(folder, shift=2.5),
        5: lambda folder: fragile(folder, rows),
        6: lambda folder: biased(folder, stretch=0.2),
        7: lambda folder: biased(folder, shift=2.5, stretch=0.2),
        8: lambda folder: biased(folder, shift=-1.5),
    }
    for number, change in made.items():
        folder = unpack_artefact(like.artefact, place / str(number), blobs=state.blobs)
        change(folder)
        add_version(state, number, folder)
    approve_version(state, 2)
    shutil.rmtree(place)


class Callers:
    """Connections that stay open and send the flights of one day after another, with what became of them a day later."""

    def __init__(self, state, rows, *, since, until):
        self._state = state
        self._pulse = Pulse(state.state)
        self._loop = asyncio.new_event_loop()
        self._days = prepare_days(
            rows, endpoint=MODEL, unit="tailnum", time_field="scheduled", since=moment(since), until=moment(until)
        )  # fmt: skip
        self._next = 0
        self._asked = 0
        self._sample = rows.row(0, named=True)
        parts = urlsplit(state.gateway_url)
        self._address = parts.hostname, parts.port
        self._sender = Sender(*self._address, connections=8)
        self._own = http.client.HTTPConnection(*self._address, timeout=60)

    @property
    def counts(self):
        return self._sender.acknowledged, self._sender.failed, self._sender.retried

    def send(self, requests):
        self._loop.run_until_complete(self._sender.send(requests))

    def send_day(self):
        """Send a day of flights and the outcomes that became known on it."""
        day = self._days[self._next]
        self._next += 1
        self.send(day.requests)
        self.send(day.outcomes)
        self.wait_for_worker()

    def send_some(self, count):
        """Send so many flights: of the day that has begun, and of the next one where they are too few."""
        while count:
            requests = self._days[self._next].requests
            now, requests[:count] = requests[:count], []
            self.send(now)
            count -= len(now)
            if count:
                self.send(self._days[self._next].outcomes)
                self._next += 1

    def wait_for_worker(self):
        now = self._state.clock.now()
        wait_until(lambda: self._pulse.last() >= now)

    def ask(self, **headers):
        """Ask once on a connection of its own; gives the status, the version and the plan that answered."""
        self._asked += 1
        row = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in self._sample.items()
            if not name.startswith("__")
        }
        row |= {"tailnum": f"asked-{self._asked}", "scheduled": self._days[self._next].start}
        body = json.dumps({"row": row, "id": f"asked-{self._asked}"})
        try:
            self._own.request("POST", f"/v1/endpoints/{MODEL}/predict", body, headers)
            answer = self._own.getresponse()
        except (OSError, http.client.HTTPException):
            self._own.close()
            return 0, 0, 0
        said = json.loads(answer.read())
        if answer.status != 200:
            return answer.status, 0, 0
        (prediction,) = said["predictions"]
        return answer.status, prediction["version"], prediction["plan"]

    def serving(self):
        """Ask many times and give the versions that answered."""
        return {self.ask()[1] for _ in range(20)}

    def seconds_until(self, plan):
        """Ask until an answer is given under a plan or a later one; gives the seconds since the plan was made."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status, version, revision = self.ask()
            if revision >= plan.revision:
                return time.time() - plan.created / 1e6, version
            # 0: the connection was lost with a worker that was killed before
            assert status in {0, 200}
        raise AssertionError(plan)

    def close(self):
        self._sender.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        self._own.close()


def flights_to_ask(state, *, since, until, every):
    """Every so-manieth flight of a time as a decision to ask for."""
    rows = decision_rows(state.project, MODEL, since=moment(since), until=moment(until))
    return rows.select(c for c in rows.columns if not c.startswith("__slice_")).gather_every(every)
