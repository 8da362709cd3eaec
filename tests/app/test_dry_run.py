"""What a dry run shows is what the command then does; and it does nothing itself."""

import msgspec
import pytest
from tests.app.projects import LABEL

from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import TrafficPlan
from keepwell.lifecycle.activation import ensure_endpoint
from keepwell.lifecycle.approvals import approve


@pytest.fixture
def serving(released):
    """A project whose version 1 answers, with a second version that was released."""
    state = released.state()
    ensure_endpoint(state.context, "tumour", actor="me")
    first = state.store.get(ModelVersion, "tumour", 1)
    with state.store.transaction(actor="test") as transaction:
        transaction.add(
            msgspec.structs.replace(first, version=2, artefact="sha256:" + "2" * 64, revision=1)
        )
    state.rollouts.start(id="first", endpoint="tumour", version=first, strategy="basic", actor="me")
    return released


def test_a_dry_activation_shows_the_first_plan_and_the_missing_approvals(released):
    before = released.fingerprint()
    ended = released("activate", LABEL, "--as", "me", "--dry-run")
    assert ended.status == 0
    assert "at tumour by basic (a dry run: nothing was changed)" in ended.out
    assert "approvals   0 of 1" in ended.out
    assert "now         nothing deployed" in ended.out
    assert "then        v1 100%" in ended.out
    assert released.fingerprint() == before
    assert released.state().store.count(TrafficPlan) == 0
    released.fails(
        "activate", LABEL, "--as", "colleague", "--dry-run", status=5, says="may not activate"
    )


@pytest.mark.parametrize("strategy", ["basic", "canary", "champion-challenger"])
def test_a_dry_rollout_shows_the_plan_that_the_rollout_then_begins_with(serving, strategy):
    state = serving.state()
    first, second = (state.store.get(ModelVersion, "tumour", number) for number in (1, 2))
    state.rollouts.start(
        id="other", endpoint="tumour", version=second, strategy="basic", actor="me"
    )
    approve(
        "tumour", 1, by="colleague", reason="good", expires_in="1d", store=state.store, blobs=state.blobs,
        signer=state.signer, clock=state.clock,
    )  # fmt: skip
    before = serving.fingerprint()
    asked = ("rollout", "start", LABEL, "--dry-run", "--strategy", strategy, "--as", "me")
    said = serving(*asked, "--json").json
    assert said["dry_run"]
    assert said["before"]["revision"] == 2
    told = serving(*asked).out
    assert ("No traffic is known there" in told) == (strategy != "basic")
    assert serving.fingerprint() == before
    state.rollouts.start(
        id="second", endpoint="tumour", version=first, strategy=strategy, actor="me"
    )
    plan = msgspec.json.decode(msgspec.json.encode(state.store.get(TrafficPlan, "tumour", 3)))
    for name in ("endpoint", "revision", "arms", "mirrors", "fallback", "salt"):
        assert said["after"][name] == plan[name], name


def test_a_dry_rollback_shows_the_plan_that_the_rollback_then_writes(serving):
    state = serving.state()
    second = state.store.get(ModelVersion, "tumour", 2)
    state.rollouts.start(
        id="second", endpoint="tumour", version=second, strategy="basic", actor="me"
    )
    before = serving.fingerprint()
    back = ("rollback", "tumour", "--as", "colleague")
    shown = serving(*back, "--dry-run")
    assert "now         v2 100%" in shown.out
    assert "then        v1 100%" in shown.out
    said = serving(*back, "--dry-run", "--json").json
    serving.fails(*back, "--yes", status=2, says=r"Why\?.*Give a reason")
    assert serving.fingerprint() == before
    plan = serving(*back, "--reason", "wrong offers", "--yes", "--json").json
    assert {k: said["after"][k] for k in ("arms", "mirrors", "revision")} == {
        k: plan[k] for k in ("arms", "mirrors", "revision")
    }
