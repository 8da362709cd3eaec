"""Holdouts by command and API: set, shown, ended; refused where nothing could be learned from them."""

import msgspec
import numpy as np
import pytest
from tests.app.test_rollout_commands import Client, keep_log, serving

from keepwell.core.clock import DAY
from keepwell.core.records.data import Column
from keepwell.core.records.models import ModelVersion, Signature
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.lifecycle.activation import ensure_endpoint
from keepwell.lifecycle.approvals import approve
from keepwell.serving.desk.assign import held_out
from keepwell.serving.rollouts import plans

__all__ = ["serving"]
SET = ("holdout", "set", "tumour", "--version", "1", "--share")
WHY = ("--reason", "what do renewals earn?", "--as", "me")


def sticking(project, unit="patient"):
    """Let assignment stick to a field, and let version 1 be approved."""
    state = project.state()
    approve(
        "tumour", 1, by="colleague", reason="good", expires_in="9d", store=state.store, blobs=state.blobs,
        signer=state.signer, clock=state.clock,
    )  # fmt: skip
    with state.store.transaction(actor="test") as transaction:
        before = transaction.get(Endpoint, "tumour")
        transaction.replace(msgspec.structs.replace(before, unit=unit, revision=2))
    return state


def in_force(state):
    plan = plans.latest_plan("tumour", store=state.store)
    assert plan is not None
    return plan


def test_a_holdout_is_set_shown_changed_and_ended(serving):
    state = sticking(serving)
    before = serving.fingerprint()
    dry = serving(*SET, "0.05", *WHY, "--dry-run", "--json").json
    said = serving(*SET, "0.05", "--as", "me", "--dry-run").out
    assert "at tumour units would be held out (a dry run: nothing was changed)" in said
    assert "then        v1 5% (" in said
    assert "held out; of the rest v1 100%" in said
    assert serving.fingerprint() == before
    plan = serving(*SET, "0.05", *WHY, "--json").json
    assert {**dry["after"], "created": 0} == {**plan, "created": 0}
    assert (plan["holdout"]["version"], plan["holdout"]["weight"]) == (1, 500)
    written = [entry for entry in state.store.audit() if entry.subject == "traffic_plans/tumour/2"]
    assert [(entry.actor, entry.reason) for entry in written] == [("me", "what do renewals earn?")]
    assert serving(*SET, "0.05", *WHY, "--json").json["revision"] == 2, "it stands already"
    serving.fails(
        *SET, "0.1", *WHY, status=4, says=r"since plan 2; another holdout would end.*--anew"
    )
    (shown,) = serving("holdout", "--json").json["holdouts"]
    assert (shown["since_plan"], shown["share"], shown["gain"]) == (2, 0.05, None)
    said = serving("holdout", "show", "tumour").out
    assert "0.05 of the units are held out at tumour/1 since plan 2" in said
    assert "Too little is labelled" in said
    assert "held out; of the rest v1 100%" in serving("status").out
    assert serving(*SET, "0.1", *WHY, "--anew", "--json").json["revision"] == 3
    (shown,) = serving("holdout", "--json").json["holdouts"]
    assert (shown["since_plan"], shown["share"]) == (3, 0.1)
    with pytest.raises(Exception, match=r"Units are held out at 'tumour' by 'patient'"):
        ensure_endpoint(state.context, "tumour", actor="me")
    serving.fails("holdout", "end", "tumour", "--as", "me", status=2, says="Why")
    assert "(plan 4)" in serving("holdout", "end", *WHY).out
    assert in_force(state).holdout is None
    serving.fails("holdout", "end", *WHY, status=4, says="Nobody is held out")
    assert "Nobody is held out" in serving("holdout").out
    assert serving("holdout", "show", "--json").json == {"holdouts": []}


def test_what_could_not_be_told_from_a_holdout_is_refused_before_anything_changes(serving):
    serving.fails(*SET, "0.05", *WHY, status=5, says="no unit key, so nobody would stay held out")
    state = sticking(serving)
    for words, status, says in (
        ((*SET, "0.05", "--as", "me"), 2, "Why"),
        ((*SET, "0", *WHY), 2, "A share of 0 cannot be held out.*0.5 of the units"),
        ((*SET, "0.51", *WHY), 2, "A share of 0.51"),
        ((*SET, "nan", *WHY), 2, "A share of nan"),
        ((*SET, "0.00001", *WHY), 2, "A share of 1e-05"),
        (("holdout", "set", "tumour", "--share", "0.1", *WHY), 2, "Which version"),
        (("holdout", "set", "tumour", "--version", "9", "--share", "0.1", *WHY), 3, "no version tumour/9"),
        (("holdout", "set", "tumour", "--version", "2", "--share", "0.1", *WHY), 5, "tumour/2 may not answer"),
        (("holdout", "set", "tumor", "--version", "1", "--share", "0.1", *WHY), 3, "Did you mean 'tumour'"),
        (("holdout", "show", "tumor"), 3, "Did you mean 'tumour'"),
        ((*SET, "0.05", "--reason", "x", "--as", "colleague"), 5, "colleague may not rollout"),
    ):  # fmt: skip
        serving.fails(*words, status=status, says=says)
    other = Signature(inputs=(Column(name="y", dtype="float64"),), task="binary")
    second = state.store.get(ModelVersion, "tumour", 2)
    with state.store.transaction(actor="test") as transaction:
        transaction.replace(msgspec.structs.replace(second, signature=other, revision=2))
    state.rollouts.start(id="r", endpoint="tumour", version=second, strategy="basic", actor="me")
    serving.fails(*SET, "0.05", *WHY, status=5, says="another signature than tumour/2")
    assert [plan.holdout for plan in state.store.find(TrafficPlan)] == [None, None]


def a_log_beside_a_holdout(project, state):
    """Two weeks in which version 2 answers whom chance does not hold out, and fewer whom it lets wait are ill."""
    second = state.store.get(ModelVersion, "tumour", 2)
    state.rollouts.start(id="r", endpoint="tumour", version=second, strategy="basic", actor="me")
    plan = in_force(state)
    names = [f"p{n}" for n in range(500)]
    places = held_out(names, plan.holdout, plan.salt).astype(int)
    rng = np.random.default_rng(0)
    now = state.clock.now()
    predictions, outcomes = [], []
    for n in range(2000):
        arm = plan.answering[places[n % 500]]
        at = now + n * 14 * DAY // 2000
        known = {"time": at, "arrived": at, "endpoint": "tumour"}
        predictions.append(
            Prediction(
                id=f"d{n}", unit=names[n % 500], arms=("champion", "holdout"), arm=arm.name, mirror=False,
                version=arm.version, propensity=0.2 if arm.name == "holdout" else 0.8, plan=plan.revision,
                artefact=arm.artefact, latency=9, features=(0.0,), output=0.0, status="ok", **known,
            )
        )  # fmt: skip
        value = float(rng.random() < (0.1 if arm.version == 2 else 0.3))
        outcomes.append(Outcome(id=f"d{n}", value=value, **known))
    keep_log(state, predictions, outcomes, now=now)
    return int((places == 1).sum())


def test_the_ledger_tells_what_a_version_earned_over_those_held_out(serving):
    state = sticking(serving)
    client = Client(state)
    me = {"x-keepwell-user": "me"}
    body = {"endpoint": "tumour", "version": 1, "share": 0.2, "reason": "what do renewals earn?"}
    assert client.post("/api/v1/holdouts", json=body, headers=me).status_code == 201
    changed = client.post("/api/v1/holdouts", json=body | {"share": 0.3}, headers=me)
    assert (changed.status_code, "anew" in changed.text) == (409, True)
    inside = a_log_beside_a_holdout(serving, state)
    # By the project's own money rule, at the answer 0 that all gave: 2,000 for each one who was told to wait and was ill.
    uplift = 2000 * (0.3 - 0.1)
    (shown,) = client.get("/api/v1/holdouts").json()
    assert (shown["units"], shown["units_held_out"]) == (500 - inside, inside)
    assert (shown["decisions"], shown["decisions_held_out"]) == (4 * (500 - inside), 4 * inside)
    gain = shown["gain"]
    assert gain["low"] < gain["estimate"] < gain["high"]
    assert gain["low"] < uplift < gain["high"]
    assert shown["earned"] - shown["earned_held_out"] == pytest.approx(shown["gain"]["estimate"])
    (told,) = serving("ledger", "--json").json["returns"]
    assert (told["version"], told["against"], told["labelled"]) == (
        2,
        "holdout",
        4 * (500 - inside),
    )
    assert told["low"] < told["earned"] < told["high"]
    assert abs(told["earned"] - uplift * told["labelled"]) < told["high"] - told["low"]
    assert told["earned"] == pytest.approx(shown["total"]["estimate"])
    said = serving("ledger").out
    assert "the holdout" in said
    assert "Earned over the units that are held out since plan 2." in said
    assert "gain over the holdout" in serving("holdout").out
    assert (
        "are held out of every rollout: tumour/1 answers them"
        in client.get("/endpoints/tumour").text
    )
    assert client.get("/ledger").status_code == 200
    ended = client.post(
        "/api/v1/holdouts", json={"endpoint": "tumour", "verb": "end", "reason": "told"}, headers=me
    )
    assert (ended.status_code, ended.json()["holdout"]) == (201, None)
    assert serving("ledger", "--json").json["returns"] == []
