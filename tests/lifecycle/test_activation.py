"""An activation that does not come through gives its endpoint back to what answered before."""

import msgspec
import pytest
from tests.lifecycle.parts import Application, context, fail_work, released

from keepwell.core.auditing import audit_problems
from keepwell.core.errors import Conflict, NotFound, Refused, Unavailable
from keepwell.core.records.lifecycle import ACTIVATION_STEPS, Activation
from keepwell.core.records.models import Alias, ModelVersion
from keepwell.core.records.rollouts import Rollout
from keepwell.core.records.traffic import TrafficPlan
from keepwell.core.records.watching import Alert
from keepwell.lifecycle.activation import latest_plan, run_activation_step, start_activation
from keepwell.lifecycle.approvals import approve
from keepwell.lifecycle.loop import turn
from keepwell.serving.editions import Shelf
from keepwell.serving.gateway import Publisher

WRONG = Application([0.9])


@pytest.fixture
def shop(tmp_path):
    return context(tmp_path)


def approved(shop, number):
    made = released(shop, number)
    approve(
        "buys", number, by="ben", reason="good", expires_in="90d", store=shop.store, blobs=shop.blobs,
        signer=shop.signer, clock=shop.clock,
    )  # fmt: skip
    return made


def activate(shop, number, *, application=None, strategy="basic", until=7):
    shop = msgspec.structs.replace(shop, application=application or shop.application)
    made = shop.store.get(ModelVersion, "buys", number) or approved(shop, number)
    activation = start_activation(shop, made, actor="ana", strategy=strategy)
    for step in range(1, until + 1):
        if not run_activation_step(shop, activation.id, step):
            break
    return shop.store.get(Activation, activation.id)


def in_force(shop):
    plan = latest_plan("buys", store=shop.store)
    assert plan is not None
    return plan


def serving(shop):
    plan = in_force(shop)
    return [(arm.version, arm.weight) for arm in plan.arms], [arm.version for arm in plan.mirrors]


def edition(shop, tmp_path):
    """What a gateway would serve now."""
    shelf = Shelf(tmp_path / "editions")
    Publisher(
        store=shop.store, blobs=shop.blobs, verifier=shop.signer, shelf=shelf, clock=shop.clock
    ).refresh()
    (found,) = shelf.read().endpoints
    return found


def test_a_first_activation_that_fails_takes_the_endpoint_out_of_use(shop, tmp_path):
    failed = activate(shop, 1, application=WRONG)
    assert (failed.state, failed.step) == ("failed", "application integration")
    assert serving(shop) == ([], [])
    plan = in_force(shop)
    assert plan.revision == 2
    assert (
        "the activation of buys/1 failed at 'application integration': answers differ"
        in plan.reason
    )
    assert shop.store.get(ModelVersion, "buys", 1).state == "refused"
    entry = next(e for e in shop.store.audit() if e.subject == "traffic_plans/buys/2")
    assert (entry.actor, entry.reason) == ("ana", plan.reason)
    found = edition(shop, tmp_path)
    assert (found.arms, found.refused) == ((), "")
    assert shop.store.count(Alert) == 0  # nobody is refused: nobody is named
    assert audit_problems(shop.store) == []


def test_a_later_activation_that_fails_gives_the_traffic_back(shop, tmp_path):
    assert activate(shop, 1).state == "waiting"
    before = in_force(shop)
    failed = activate(shop, 2, application=WRONG)
    assert failed.state == "failed"
    plan = in_force(shop)
    assert (plan.revision, plan.arms, plan.salt) == (3, before.arms, before.salt)
    assert [arm.version for arm in edition(shop, tmp_path).arms] == [1]
    assert shop.store.get(ModelVersion, "buys", 1).state == "released"
    assert audit_problems(shop.store) == []


def test_after_a_failed_first_activation_the_next_version_begins_anew(shop):
    activate(shop, 1, application=WRONG)
    assert activate(shop, 2, strategy="").state == "waiting"
    assert serving(shop) == ([(2, 10_000)], [])
    with pytest.raises(NotFound, match="No version answered 'buys' before"):
        shop.rollouts.roll_back("buys", actor="olga", reason="x")


@pytest.mark.parametrize(("strategy", "arms", "mirrors"), [
    ("canary", [(1, 9_500), (2, 500)], []),
    ("champion-challenger", [(1, 10_000)], [2]),
])  # fmt: skip
def test_a_rollout_under_way_ends_with_the_activation_that_began_it(shop, strategy, arms, mirrors):
    activate(shop, 1)
    activation = activate(shop, 2, strategy=strategy, until=3)
    assert serving(shop) == (arms, mirrors)
    wrong = msgspec.structs.replace(shop, application=WRONG)
    run_activation_step(wrong, activation.id, 4)
    assert serving(shop) == ([(1, 10_000)], [])
    rollout = shop.store.get(Rollout, f"rollout-{activation.id}")
    assert rollout.state == "rolled back"
    assert "application integration" in rollout.reason
    assert rollout.evidence


def test_a_step_that_cannot_be_asked_gives_the_traffic_back_and_does_not_blame_the_version(shop):
    activate(shop, 1)
    down = Application(Unavailable("The gateway does not answer."))
    with pytest.raises(Unavailable):
        activate(shop, 2, application=down)
    (running,) = shop.store.find(Activation, {"version": 2})
    assert (running.state, serving(shop)) == ("running", ([(2, 10_000)], []))
    fail_work(shop, running.id, "application integration: The gateway does not answer.")
    assert turn(shop) == 1
    ended = shop.store.get(Activation, running.id)
    assert (ended.state, ended.reason) == ("failed", "The gateway does not answer.")
    assert serving(shop) == ([(1, 10_000)], [])
    assert shop.store.get(ModelVersion, "buys", 2).state == "released"
    assert activate(shop, 2).state == "passed"  # and may be tried again
    assert serving(shop) == ([(2, 10_000)], [])


def test_traffic_that_a_person_gave_back_already_is_left_alone(shop):
    activate(shop, 1)
    activation = activate(shop, 2, until=3)
    shop.rollouts.roll_back("buys", actor="olga", reason="complaints")
    before = in_force(shop)
    run_activation_step(msgspec.structs.replace(shop, application=WRONG), activation.id, 4)
    assert shop.store.get(Activation, activation.id).state == "failed"
    assert in_force(shop) == before


def test_after_a_rollback_the_alias_and_the_active_state_are_those_of_the_version_that_answers(
    shop,
):
    activate(shop, 1)
    assert activate(shop, 2).state == "passed"
    assert shop.store.get(Alias, "buys", "champion").version == 2
    shop.rollouts.roll_back("buys", actor="olga", reason="complaints")
    assert serving(shop) == ([(1, 10_000)], [])
    assert shop.store.get(Alias, "buys", "champion").version == 1
    states = {v.version: v.state for v in shop.store.find(ModelVersion)}
    assert states == {1: "active", 2: "released"}
    assert audit_problems(shop.store) == []


def test_a_version_that_was_refused_meanwhile_is_not_what_traffic_returns_to(shop):
    activate(shop, 1)
    activate(shop, 2)
    second = shop.store.get(ModelVersion, "buys", 2)
    with shop.store.transaction(actor="olga") as transaction:
        transaction.replace(
            msgspec.structs.replace(second, state="retired", revision=second.revision + 1)
        )
    activate(shop, 3, application=WRONG)
    assert serving(shop) == ([(1, 10_000)], [])


def test_an_activation_that_waits_is_not_begun_a_second_time(shop):
    activate(shop, 1)
    (first,) = shop.store.find(Activation)
    with pytest.raises(Conflict, match="is waiting already"):
        start_activation(shop, shop.store.get(ModelVersion, "buys", 1), actor="ana")
    assert shop.store.find(Activation) == [first]


def test_an_activation_waits_for_approvals_and_goes_on_by_itself(tmp_path):
    shop = context(tmp_path, approvals=2)
    activation = activate(shop, 1)
    assert (activation.step, activation.waits_for) == (ACTIVATION_STEPS[1], "1 of 2 approvals")
    assert turn(shop) == 0
    approve(
        "buys", 1, by="carol", reason="good", expires_in="90d", store=shop.store, blobs=shop.blobs,
        signer=shop.signer, clock=shop.clock,
    )  # fmt: skip
    assert turn(shop) == 1
    assert turn(shop) == 0
    for step in range(1, 8):
        run_activation_step(shop, activation.id, step)
    ended = shop.store.get(Activation, activation.id)
    assert (ended.step, ended.state) == (ACTIVATION_STEPS[6], "waiting")
    assert shop.store.count(TrafficPlan) == 1
    assert shop.store.count(Alias) == 0  # the champion is named when the last step has passed


def test_what_is_not_released_or_has_no_endpoint_is_not_activated(shop):
    made = released(shop, 1)
    for state in ("registered", "refused", "retired"):
        with pytest.raises(Refused, match=f"is {state}, not released"):
            start_activation(shop, msgspec.structs.replace(made, state=state), actor="ana")
    homeless = msgspec.structs.replace(
        shop, settings=msgspec.structs.replace(shop.settings, endpoints={})
    )
    with pytest.raises(NotFound, match="No endpoint serves the model 'buys'"):
        start_activation(homeless, made, actor="ana")
    assert shop.store.count(Activation) == 0
