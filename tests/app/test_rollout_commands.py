"""Rollouts by command and API: started, seen, steered, computed again; and the rollback drill."""

import asyncio

import httpx
import msgspec
import pytest
from tests.app.projects import LABEL

from keepwell.app.api.server import application
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import TrafficPlan
from keepwell.core.statements import read_evidence
from keepwell.lifecycle.activation import ensure_endpoint
from keepwell.lifecycle.approvals import approve
from keepwell.training.artefacts import pack_folder, unpack_artefact


@pytest.fixture
def serving(released, tmp_path):
    """A project whose version 1 answers, with another version 2 whose artefact is as good."""
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
    assert "next        after 500 more clean requests it gets 0.5 of the traffic" in said
    assert "v2 10%" in said


def test_a_rollout_is_steered_by_those_who_may(serving):
    begin(serving)
    serving.fails("rollout", "pause", "r", "--as", "me", status=2, says="Why")
    paused = serving("rollout", "pause", "r", "--as", "me", "--reason", "a release", "--json").json
    assert paused["rollout"]["state"] == "paused"
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
        (("start", "tumour/2", "--dry-run", "--strategy", "canary", "--set", "stepz=[0.1]"), 2, "no rule 'stepz'"),
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
    started = client.post("/api/v1/rollouts", json={"model": "tumour", "versions": []}, headers=me)
    assert (started.status_code, "versions" in started.text) == (422, True)
    page = client.get("/rollouts/r").text
    assert "rolled back" in page
    assert "share of the traffic by arm" in page
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
    assert said["measured"]["seconds"] == measured["seconds"] < 10


def test_a_drill_of_what_has_no_way_back_says_so(serving):
    serving.fails("drill", "rollback", "tumour", "--as", "me", status=3, says="No version answered")
    serving.fails("drill", "rollback", "tumor", "--as", "me", status=3, says="tumour")
