"""Rollouts by command and API: started, seen, steered, computed again; and the rollback drill."""

import asyncio
from types import SimpleNamespace

import httpx
import msgspec
import numpy as np
import pytest
from tests.app.projects import LABEL

from keepwell.app.api.server import application
from keepwell.app.wiring import gain_of
from keepwell.core.clock import DAY
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import TrafficPlan
from keepwell.core.records.watching import Watermark
from keepwell.core.statements import read_evidence
from keepwell.lifecycle.activation import ensure_endpoint
from keepwell.lifecycle.approvals import approve
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.rollouts import plans
from keepwell.training.artefacts import pack_folder, unpack_artefact


@pytest.fixture
def serving(released, tmp_path, monkeypatch):
    """A project whose version 1 answers, with another version 2 whose artefact is as good."""
    # The first plan's salt is kept by all after it: chance draws the same units in every run.
    monkeypatch.setattr(plans, "secrets", SimpleNamespace(token_hex=lambda _: "as in every run"))
    state = released.state()
    ensure_endpoint(state.context, "tumour", actor="me")
    first = state.store.get(ModelVersion, "tumour", 1)
    folder = unpack_artefact(first.artefact, tmp_path / "second", blobs=state.blobs)
    (folder / "note").write_text("another build")
    digest = pack_folder(folder, blobs=state.blobs)
    with state.store.transaction(actor="test") as transaction:
        transaction.add(msgspec.structs.replace(first, version=2, artefact=digest, revision=1))
    state.rollouts.start(id="first", endpoint="tumour", version=first, strategy="basic", actor="me")
    return released


def begin(project, id="r", strategy="canary", **rules):
    state = project.state()
    return state.rollouts.start(
        id=id, endpoint="tumour", version=state.store.get(ModelVersion, "tumour", 2), strategy=strategy,
        actor="me", rules=rules, makes_champion=True,
    )  # fmt: skip


def test_a_version_without_its_approvals_starts_no_rollout(serving):
    serving.fails(
        "rollout", "start", "tumour/2", "--as", "colleague",
        status=5, says=r"colleague may not rollout|may not answer",
    )  # fmt: skip
    assert serving.state().store.count(TrafficPlan) == 1


def test_an_approved_version_rolls_out_by_the_rules_that_were_given(released):
    state = released.state()
    ensure_endpoint(state.context, "tumour", actor="me")
    approve(
        "tumour", 1, by="colleague", reason="good", expires_in="1d", store=state.store, blobs=state.blobs,
        signer=state.signer, clock=state.clock,
    )  # fmt: skip
    told = released("rollout", "start", LABEL, "--strategy", "basic", "--as", "me", "--json").json
    assert told["rollout"]["state"] == "promoted"
    assert told["plans"][0]["arms"][0]["version"] == 1
    assert state.store.get(ModelVersion, "tumour", 1).state == "active"
    listed = released("rollout", "--json").json
    assert [r["id"] for r in listed["rollouts"]] == [told["rollout"]["id"]]


def test_the_status_tells_where_it_stands_and_what_comes_next(serving):
    begin(serving, steps=[0.1, 0.5])
    said = serving("rollout", "status", "r").out
    assert "r: v1 -> v2 at tumour by [canary]: running" in said
    assert (
        "next        after 500 more clean requests it gets 0.5 of the traffic (no answer of this stage"
        in said
    )
    assert "v2 10%" in said
    assert "foretold    No traffic is known there" in said


def test_a_rollout_is_steered_by_those_who_may(serving):
    begin(serving)
    serving.fails("rollout", "pause", "r", "--as", "me", status=2, says="Why")
    paused = serving("rollout", "pause", "r", "--as", "me", "--reason", "a release", "--json").json
    assert paused["rollout"]["state"] == "paused"
    assert (
        "it waits for a person: keepwell rollout resume r" in serving("rollout", "status", "r").out
    )
    serving("rollout", "resume", "r", "--as", "me", "--reason", "done")
    ended = serving("rollout", "promote", "r", "--as", "me", "--reason", "enough", "--json").json
    assert (ended["rollout"]["state"], ended["rollout"]["winner"]) == ("promoted", 2)
    serving.fails(
        "rollout", "rollback", "r", "--as", "me", "--reason", "x", status=4, says="has ended"
    )


def test_a_rollout_is_computed_again_by_command(serving):
    begin(serving, strategy="shadow")
    serving.state().rollouts.look()
    told = serving("rollout", "replay", "r", "--json").json
    assert told["same"]
    assert told["replay"]["looks"] >= 1


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("start",), 2, "Which version"),
        (("start", "tumour/2", "--set", "steps"), 2, "is no rule"),
        (("start", "tumour/2", "tumour/8", "tumour/9"), 3, "no version tumour/8.*no version tumour/9"),
        (("start", "tumour/2", "--dry-run", "--strategy", "canary", "--as", "me", "--set", "stepz=[0.1]"), 2, "no rule 'stepz'"),
        (("start", "tumour/2", "--dry-run", "--strategy", "canary"), 5, "no user"),
        (("start", "tumour/2", "--dry-run", "--strategy", "canary", "--as", "me"), 5, "may not answer"),
        (("status",), 2, "about one rollout"),
        (("status", "first", "second"), 2, "about one rollout"),
        (("list", "first"), 2, "keepwell rollout status ID"),
        (("replay", "frist"), 3, "no rollout 'frist'.*first"),
        (("value",), 2, "Which version"),
        (("value", "tumour/9"), 3, "no version tumour/9"),
        (("value", "tumour/1"), 2, "None of the 0 decisions"),
        (("value", "tumour/1", "--since", "week"), 2, "week"),
        (("value", "tumour/1", "--endpoint", "tumor"), 3, "Did you mean 'tumour'"),
        (("value", "tumour/2"), 5, "tumour/2 has no release"),
    ],
)  # fmt: skip
def test_wrong_words_are_answered_with_the_way_out(serving, words, status, says):
    serving.fails("rollout", *words, status=status, says=says)


class Client:
    """The control server, asked in this process."""

    def __init__(self, state):
        self._app = application(state)

    def ask(self, method, path, **given):
        async def run():
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **given)

        return asyncio.run(run())

    def get(self, path, **given):
        return self.ask("GET", path, **given)

    def post(self, path, **given):
        return self.ask("POST", path, **given)


def test_the_api_starts_lists_and_steers_rollouts(serving):
    begin(serving)
    client = Client(serving.state())
    me = {"x-keepwell-user": "me"}
    looks = client.get("/api/v1/looks", params={"rollout": "r"}).json()
    assert looks[0]["number"] == 1
    body = {"rollout": "r", "verb": "rollback", "reason": "wrong offers"}
    ended = client.post("/api/v1/steerings", json=body, headers=me)
    assert (ended.status_code, ended.json()["state"]) == (201, "rolled back")
    again = client.post("/api/v1/steerings", json=body, headers=me)
    assert again.status_code == 409
    unsaid = client.post(
        "/api/v1/rollbacks", json={"endpoint": "tumour", "reason": " "}, headers=me
    )
    assert (unsaid.status_code, "Give a reason" in unsaid.text) == (422, True)
    started = client.post("/api/v1/rollouts", json={"model": "tumour", "versions": []}, headers=me)
    assert (started.status_code, "versions" in started.text) == (422, True)
    # A preview refuses what a start would.
    asked = {
        "model": "tumour",
        "versions": [2],
        "strategy": "canary",
        "rules": {"steps": [0.5, 0.1]},
    }
    shown = client.post("/api/v1/previews", json=asked, headers=me)
    assert (shown.status_code, "do not grow" in shown.text) == (422, True)
    page = client.get("/rollouts/r").text
    assert "rolled back" in page
    assert "share of the traffic by arm" in page
    assert "Foretold when it began" in page
    assert client.get("/rollouts/x").status_code == 404


def test_a_rollback_drill_rolls_back_beside_the_live_gateway_and_signs_what_it_saw(serving):
    begin(serving, strategy="basic")
    plans = serving.state().store.count(TrafficPlan)
    told = serving("drill", "rollback", "tumour", "--as", "colleague", "--json").json
    measured = told["result"]["measured"]
    assert measured["failed"] == 0
    assert measured["requests"] > 20
    assert measured["version"] == 1
    state = serving.state()
    assert state.store.count(TrafficPlan) == plans
    row = state.store.get(Evidence, told["evidence"]["envelope"])
    said = read_evidence(row, blobs=state.blobs, verifier=state.verifier).predicate
    assert said["measured"]["seconds"] == measured["seconds"] < 60


def test_a_drill_of_what_has_no_way_back_says_so(serving):
    serving.fails("drill", "rollback", "tumour", "--as", "me", status=3, says="No version answered")
    serving.fails("drill", "rollback", "tumor", "--as", "me", status=3, says="tumour")


def keep_log(state, predictions, outcomes, *, now):
    """Write what two weeks from now on have brought, and say that it was watched."""
    writer = SegmentWriter(state.state / "log", name="w")
    writer.append(predictions, outcomes)
    writer.close()
    count = len(predictions)
    with state.store.transaction(actor="test") as transaction:
        transaction.add(
            Watermark(
                endpoint="tumour", event_time=now + 16 * DAY, cursor={}, predictions=count, outcomes=count, updated=now
            )
        )  # fmt: skip


def a_drawn_log(project, *, share):
    """Two weeks in which chance gave version 1 a share of the decisions, and its offers were taken more often."""
    state = project.state()
    begin(project, steps=[1 - share])
    plan = state.store.find(TrafficPlan, order=["-revision"])[0]
    names = {arm.version: arm.name for arm in plan.arms}
    signature = state.store.get(ModelVersion, "tumour", 1).signature
    rng = np.random.default_rng(0)
    predictions, outcomes = [], []
    now = state.clock.now()  # what came before is in the training set
    for n in range(2000):
        version = 1 if rng.random() < share else 2
        at = now + n * 14 * DAY // 2000
        known = {"time": at, "arrived": at, "endpoint": "tumour"}
        predictions.append(
            Prediction(
                id=f"d{n}", unit=f"d{n}", arms=tuple(names.values()), arm=names[version], mirror=False, version=version,
                propensity=share if version == 1 else 1 - share, plan=plan.revision, artefact="sha256:0", latency=9,
                features=tuple(rng.normal(size=len(signature.inputs)).tolist()), output=0.5, status="ok", **known,
            )
        )  # fmt: skip
        outcomes.append(
            Outcome(id=f"d{n}", value=float(rng.random() < (0.6 if version == 1 else 0.2)), **known)
        )
    keep_log(state, predictions, outcomes, now=now)
    return state


def test_a_version_that_chance_gave_a_part_is_valued_by_its_propensities(serving):
    state = a_drawn_log(serving, share=0.25)
    # By the project's own money rule, at the answer 0.5 that all gave.
    taken, not_taken = gain_of(state.project, "tumour", metric="kpi")(
        np.array([0.5, 0.5]), np.array([1.0, 0.0])
    )
    told = serving("rollout", "value", LABEL, "--since", "15d", "--json").json
    assert (told["way"], told["decisions"], told["unknown"]) == ("propensity", 2000, 0)
    assert told["value"]["low"] < 0.6 * taken + 0.4 * not_taken < told["value"]["high"]
    assert told["effective"] == pytest.approx(500, rel=0.1)
    asked = {"model": "tumour", "version": 1, "since": "15d"}
    answer = Client(state).post("/api/v1/appraisals", json=asked, headers={"x-keepwell-user": "me"})
    assert (answer.status_code, answer.json()) == (201, told)
    said = serving("rollout", "value", LABEL, "--since", "15d").out
    assert "effective sample" in said
    assert "The outcome may depend on the answer" in said


def test_a_log_that_says_too_little_of_a_version_is_refused_by_command(serving):
    a_drawn_log(serving, share=0.01)
    serving.fails(
        "rollout", "value", LABEL, "--since", "15d", status=5,
        says=r"effective sample must be at least 50, received.*--by replay",
    )  # fmt: skip
