"""Strategies driven from their start to their verdict: the better version ends up serving, and the log tells why."""

import sqlite3
import time

import msgspec
import pytest
from tests.lifecycle.parts import DAY
from tests.serving.rollouts.live import Live

from keepwell.core.errors import Conflict, InvalidInput, NotFound
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.models import Alias
from keepwell.core.records.rollouts import Look, Rollout
from keepwell.core.records.traffic import Period, TrafficPlan
from keepwell.core.statements import read_evidence
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.rollouts.plans import content_of


@pytest.fixture
def live(tmp_path):
    return Live(tmp_path)


def ended(live):
    rollout = live.rollout
    row = live.store.find(Evidence, {"procedure": "r"})[0]
    said = read_evidence(row, blobs=live.shop.blobs, verifier=live.shop.signer).predicate
    assert said["body"]["answer"] if "body" in said else said["answer"]
    assert rollout.evidence == row.envelope
    assert live.driver.replay("r").differences == ()
    return rollout.state, live.serving()


def test_a_canary_climbs_its_steps_and_is_promoted(live):
    live.start("canary", rules={"steps": [0.05, 0.5], "min_rows": 100})
    assert live.serving() == {1: 9_500, 2: 500}
    live.run(requests=500)
    assert ended(live) == ("promoted", {2: 10_000})
    shares = [
        look.arms[1].weight
        for look in live.store.find(Look, {"rollout": "r"})
        if len(look.arms) > 1
    ]
    assert shares == sorted(shares)
    assert set(shares) == {500, 5_000}
    assert live.store.get(Alias, "buys", "champion").version == 2


def test_a_canary_that_errs_is_rolled_back(live):
    live.errors[2] = 0.3
    live.start("canary", rules={"min_rows": 5_000})
    live.run(requests=100)
    assert ended(live) == ("rolled back", {1: 10_000})
    assert "more errors than the champion" in live.rollout.reason


@pytest.mark.parametrize(("bias", "state", "serves"), [(0.0, "promoted", 2), (0.4, "refused", 1)])
def test_a_shadow_passes_by_how_much_its_answers_differ(live, bias, state, serves):
    live.bias[2] = bias
    live.start("shadow", rules={"tolerance": 0.2, "min_rows": 300})
    assert live.serving() == {1: 10_000}
    live.run(requests=100)
    assert ended(live) == (state, {serves: 10_000})
    measured = live.last_look.measured
    assert measured["pairs"] >= 20
    assert len(measured["examples"]) == 5
    assert measured["shift"] == pytest.approx(bias, abs=0.02)


@pytest.mark.parametrize(("bias", "state", "serves"), [(0.5, "promoted", 2), (-0.5, "refused", 1)])
def test_champion_challenger_judges_both_on_the_same_decisions(live, bias, state, serves):
    live.bias[1 if bias > 0 else 2] = 0.5
    live.start("champion-challenger", rules={"min_rows": 200})
    live.run(requests=240)
    assert ended(live) == (state, {serves: 10_000})


@pytest.mark.parametrize(("worse", "state", "serves"), [(1, "promoted", 2), (2, "refused", 1)])
def test_ab_judges_each_arm_by_its_own_units(live, worse, state, serves):
    live.bias[worse] = 0.5
    live.start("ab", rules={"min_rows": 100, "tuned_for": 300})
    assert live.serving() == {1: 5_000, 2: 5_000}
    live.run(requests=200)
    assert ended(live) == (state, {serves: 10_000})


def test_ab_ends_where_units_are_not_parted_as_the_plan_says(live):
    live.start("ab", rules={"min_rows": 5_000})
    salted = live.plan
    live.send(400)
    # A log that lost the challenger's records.
    real = live.writer.append

    def losing(*, predictions=(), **other):
        real(predictions=[p for p in predictions if p.arm == "champion"], **other)

    live.writer.append = losing
    live.run(requests=200)
    assert ended(live) == ("refused", {1: 10_000})
    assert "not parted as the plan says" in live.rollout.reason
    assert salted.salt == live.plan.salt


def test_ab_of_three_promotes_the_best(tmp_path):
    live = Live(tmp_path, versions=3)
    live.bias.update({1: 0.5, 2: 0.3})
    live.start("ab", rules={"min_rows": 100, "tuned_for": 300, "share": 0.66}, others=[3])
    assert live.serving() == {1: 3_400, 2: 3_300, 3: 3_300}
    live.run(requests=300)
    assert ended(live) == ("promoted", {3: 10_000})
    assert live.rollout.winner == 3


def test_blue_green_moves_all_traffic_at_once_and_keeps_blue_at_hand(live):
    live.start("blue-green", rules={"min_rows": 100, "keep_seconds": 3600})
    assert live.serving() == {1: 10_000, 2: 0}
    live.send(20, header="green")
    live.send(100)
    live.driver._resting.clear()
    live.driver.look()
    assert live.serving() == {2: 10_000, 1: 0}
    assert live.plan.cohorts[0].values == ("blue",)
    assert live.plan.fallback == "champion"  # blue answers where green fails
    live.run(requests=10)
    assert ended(live) == ("promoted", {2: 10_000})


def test_blue_green_returns_to_blue_when_green_errs_after_the_switch(live):
    live.start("blue-green", rules={"min_rows": 100, "keep_seconds": 86_400})
    live.send(150)
    live.driver.look()
    live.errors[2] = 0.2
    live.run(requests=20)
    assert ended(live) == ("rolled back", {1: 10_000})


def test_recreate_stops_the_old_version_before_the_new_one_starts(live):
    live.start("recreate", rules={"down_seconds": 5, "gap_seconds": 20})
    assert (live.plan.arms, live.plan.gap, live.plan.gap_seconds) == ((), "hold", 20.0)
    live.driver.look()
    assert live.plan.arms == ()
    live.clock.at += 5_000_000
    live.driver._resting.clear()
    live.driver.look()
    assert ended(live) == ("promoted", {2: 10_000})


def test_stages_follow_one_another_and_each_has_its_own_evidence(live):
    live.bias[1] = 0.4
    live.strategies = {}
    live.start("shadow, canary, ab", rules={"min_rows": 150})
    seen = []
    for _ in range(200):
        live.run(rounds=1, requests=200)
        if live.rollout.strategy not in seen:
            seen.append(live.rollout.strategy)
        if live.rollout.state != "running":
            break
    # Its answers are 0.4 away from the champion's, so that the first stage refuses it.
    assert (live.rollout.state, seen) == ("refused", ["shadow"])


def test_a_version_that_passes_every_stage_becomes_the_champion(live):
    live.bias[1] = 0.4
    live.start("canary, ab", rules={"min_rows": 150})
    seen = []
    for _ in range(200):
        live.run(rounds=1, requests=200)
        if live.rollout.strategy not in seen:
            seen.append(live.rollout.strategy)
        if live.rollout.state != "running":
            break
    assert seen == ["canary", "ab"]
    assert ended(live) == ("promoted", {2: 10_000})


def test_another_process_goes_on_where_one_stopped(live):
    live.bias[1] = 0.5
    live.start("ab", rules={"min_rows": 100, "tuned_for": 300})
    for _ in range(50):
        live.driver = live.made_driver()  # nothing is kept in memory from look to look
        live.run(rounds=1, requests=200)
        if live.rollout.state != "running":
            break
    assert ended(live) == ("promoted", {2: 10_000})


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("stage", [1, 2])
def test_from_any_stage_traffic_returns_to_the_plan_before_the_whole_rollout(
    live, stage, by_hand, monkeypatch
):
    before = content_of(live.plan)
    live.start("shadow, canary, ab", rules={"min_rows": 150, "steps": [0.4]})

    def killed(*_):
        raise Killed

    while live.rollout.stage < stage:
        at = live.rollout.stage
        try:
            with monkeypatch.context() as patch:
                patch.setattr("keepwell.serving.rollouts.driver.begin", killed)
                live.run(rounds=1, requests=100)
        except Killed:  # as it went from one stage to the next: nothing has changed yet
            assert live.rollout.stage == at
            live.driver = live.made_driver()
            live.run(rounds=1, requests=1)
    live.run(rounds=1, requests=60)
    assert (live.rollout.stage, live.rollout.state) == (stage, "running")
    assert "after" in live.last_look.next  # what it waits for
    if by_hand:
        live.driver.roll_back("buys", actor="olga", reason="wrong offers")
    else:
        live.errors[2] = 0.5
        live.run(requests=100)
    assert ended(live) == ("rolled back", {1: 10_000})
    assert content_of(live.plan) == before
    row = live.store.find(Evidence, {"procedure": "r"})[0]
    said = read_evidence(row, blobs=live.shop.blobs, verifier=live.shop.signer).predicate
    assert said["stages"] == ["shadow", "canary", "ab"]
    assert said["strategy"] == ["shadow", "canary", "ab"][stage]
    looks = live.store.find(Look, {"rollout": "r"}, order=["number"])
    assert [look.number for look in looks] == list(range(1, len(looks) + 1))
    plans = live.store.find(TrafficPlan, {"endpoint": "buys"}, order=["revision"])
    assert [plan.revision for plan in plans] == list(range(1, len(plans) + 1))


@pytest.mark.parametrize("strategy", ["ab", "canary"])
def test_a_verdict_whose_process_was_killed_before_it_was_signed_stands(
    live, strategy, monkeypatch
):
    live.bias[1] = 0.5
    live.start(strategy, rules={"min_rows": 100} | ({"tuned_for": 300} if strategy == "ab" else {}))

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(live.driver, "_end", killed)
    with pytest.raises(Killed):
        live.run(requests=200)
    assert (live.rollout.state, live.serving()) == ("running", {2: 10_000})
    last = live.rollout.looks
    live.send(3_000)  # what the winner answers meanwhile is no evidence
    live.driver = live.made_driver()
    live.driver.look()
    assert ended(live) == ("promoted", {2: 10_000})
    assert (live.rollout.winner, live.rollout.looks) == (2, last)


def test_a_verdict_is_the_same_after_the_log_was_compacted(live, tmp_path):
    live.bias[1] = 0.5
    live.start("ab", rules={"min_rows": 100, "tuned_for": 300})
    live.run(requests=200)
    live.writer.close()
    live.writer = None
    before = live.driver.replay("r")
    told = Compactor(tmp_path / "log").run(
        [{path.name: 10**12 for path in (tmp_path / "log").glob("*.seg")}]
    )
    assert told
    assert not list((tmp_path / "log").glob("*.seg"))
    assert live.driver.replay("r") == before
    assert before.same
    assert before.assignments > 100


def test_assignments_that_the_plan_does_not_explain_are_told_by_the_replay(live, tmp_path):
    live.bias[1] = 0.5
    live.start("ab", rules={"min_rows": 100, "tuned_for": 300})
    live.run(requests=200)
    with sqlite3.connect(tmp_path / "keepwell.db") as connection:
        connection.execute("UPDATE traffic_plans SET salt = 'another' WHERE revision = 2")
    told = live.driver.replay("r")
    assert not told.same
    assert "computed again it goes to" in told.differences[0]


def test_a_paused_rollout_does_not_look_and_goes_on_when_resumed(live):
    live.start("canary", rules={"min_rows": 10})
    live.driver.pause("r", actor="olga", reason="a release of the shop")
    live.send(2000)
    assert live.driver.look() == 0
    assert live.rollout.state == "paused"
    with pytest.raises(Conflict, match="paused, not running"):
        live.driver.pause("r", actor="olga", reason="again")
    live.driver.resume("r", actor="olga", reason="done")
    live.driver.look()
    assert live.rollout.state == "promoted"


def test_a_person_may_end_a_rollout_either_way(live):
    live.start("ab")
    live.driver.promote("r", actor="olga", reason="the campaign needs it")
    assert ended(live) == ("promoted", {2: 10_000})
    with pytest.raises(Conflict, match="has ended"):
        live.driver.promote("r", actor="olga", reason="again")


@pytest.mark.parametrize(
    ("strategy", "send"),
    [("canary", 100), ("ab", 100), ("shadow", 100), ("blue-green", 0), ("blue-green", 300),
     ("recreate", 0), ("champion-challenger", 100), ("shadow, canary", 100)],
)  # fmt: skip
def test_traffic_returns_to_the_champion_from_any_state(live, strategy, send):
    live.start(strategy, rules={"min_rows": 200})
    if send:
        live.run(rounds=1, requests=send)
    assert live.rollout.state == "running"
    live.driver.roll_back("buys", actor="olga", reason="wrong offers")
    assert ended(live) == ("rolled back", {1: 10_000})
    assert live.plan.mirrors == live.plan.cohorts == ()


@pytest.mark.parametrize(
    ("strategy", "rules", "says"),
    [
        ("canery", {}, "canery"),
        ("canary", {"steps": []}, "There are no steps"),
        ("canary", {"steps": [0.5, 0.1]}, "do not grow"),
        ("canary", {"steps": [1.5]}, "canary"),
        ("canary", {"stepz": [0.1]}, "no rule 'stepz'.*steps"),
        ("ab", {"share": 2}, "A rule of 'ab'"),
        ("blue-green", {"header": "X-Arm"}, "lower case"),
        ("recreate", {"gap_seconds": 0.5}, "held for 0.5 s"),
        ("bandit", {"algorithm": "kl-ucb"}, "kl-ucb needs rewards that are binary"),
        ("bandit", {"algorithm": "thomson"}, "algorithm"),
        ("shadow, canary", {"tolerance": "far"}, "tolerance|no rule"),
        ("shadow", {"share": 0}, "share"),
        ("shadow, canary", {"stepz": [0.1]}, "'shadow' and 'canary' have no rule 'stepz'.*steps"),
        ("basic, canary", {}, "'canary' would never begin: put it last"),
        ("switchback", {"period_minutes": 0.5}, "give it 1 or more"),
        ("switchback", {"period_minutes": 5}, "washout of 10 minutes leaves nothing of a turn of 5"),
        ("switchback", {"max_days": 1}, "1 days have 24 turns, 12 of them of some arm"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_refused_before_anything_changes(live, strategy, rules, says):
    before = live.plan
    with pytest.raises((InvalidInput, NotFound), match=says):
        live.start(strategy, rules=rules)
    assert live.plan == before
    assert live.store.find(Look) == []


def test_ab_without_a_unit_key_is_refused(tmp_path):
    live = Live(tmp_path, unit="")
    with pytest.raises(InvalidInput, match="no unit key"):
        live.start("ab")


def test_a_challenger_without_traffic_is_refused_when_its_days_are_over(live):
    live.start("canary", rules={"min_rows": 1_000_000, "max_days": 2})
    live.run(requests=200, seconds=DAY / 1e6 / 100)
    assert ended(live) == ("refused", {1: 10_000})
    assert "too little traffic" in live.rollout.reason


@pytest.mark.parametrize("algorithm", ["thompson", "ucb1", "epsilon-greedy", "linucb", "lints"])
def test_a_bandit_moves_traffic_to_the_better_arm_and_judges_at_its_end(live, algorithm):
    live.bias[1] = 0.5
    live.start(
        "bandit",
        rules={"algorithm": algorithm, "horizon_days": 3, "floor": 0.2, "every_seconds": 3600},
    )
    assert live.serving() == {1: 5_000, 2: 5_000}
    live.run(requests=240, rounds=10)
    if algorithm in {"linucb", "lints"}:
        assert live.plan.policy.kind == algorithm
    else:
        assert live.serving()[2] > 7_000
        assert live.serving()[1] >= 1_000  # the floor
    live.run(requests=240)
    assert ended(live) == ("promoted", {2: 10_000})
    measured = live.last_look.measured
    assert measured["effects"]["challenger"]["low"] > 0
    assert measured["left out"] == 0  # each plan explains the chances of all its rows
    assert live.driver.replay("r").assignments > 1_000  # a policy's draws among them


@pytest.mark.parametrize("algorithm", ["linucb", "lints"])
def test_a_contextual_bandit_moves_traffic_though_most_requests_miss_a_value(live, algorithm):
    live.gaps = 8
    live.bias[1] = 0.5
    live.start("bandit", rules={"algorithm": algorithm, "horizon_days": 3, "every_seconds": 3600})
    live.run(requests=240)
    assert ended(live) == ("promoted", {2: 10_000})
    drawn = [
        p.version
        for p in live.log.read({}).predictions
        if live.store.get(TrafficPlan, "buys", p.plan).policy is not None
    ]
    assert len(drawn) > 2_000
    assert drawn.count(2) > 0.9 * len(drawn)  # the floor of 0.1 leaves a half of it to either
    assert live.last_look.measured["left out"] == 0
    assert live.driver.replay("r").same


def test_a_bandit_keeps_the_champion_that_earns_more(live):
    live.bias[2] = 0.5
    live.start("bandit", rules={"horizon_days": 3, "every_seconds": 3600})
    live.run(requests=240)
    assert ended(live) == ("refused", {1: 10_000})
    assert "none earns more than the champion" in live.rollout.reason


FACTORS = {
    "1": {"model": "old", "features": "few"},
    "2": {"model": "new", "features": "few"},
    "3": {"model": "old", "features": "many"},
    "4": {"model": "new", "features": "many"},
}


def test_multivariate_tells_what_each_factor_does(tmp_path):
    live = Live(tmp_path, versions=4)
    live.bias.update({1: 0.6, 2: 0.3, 3: 0.6, 4: 0.3})
    live.start(
        "multivariate", others=[3, 4], rules={"factors": FACTORS, "min_rows": 400, "tuned_for": 500}
    )
    assert live.serving() == {1: 2_500, 2: 2_500, 3: 2_500, 4: 2_500}
    live.run(requests=400)
    state, serves = ended(live)
    assert (state, set(serves) <= {2, 4}) == ("promoted", True)
    effects = {tuple(e["factors"]): e for e in live.last_look.measured["effects"]}
    assert effects["model",]["low"] > 0.1
    assert effects["features",]["low"] < 0 < effects["features",]["high"]


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ({}, "nothing of version"),
        ({**FACTORS, "9": FACTORS["4"]}, "factors: version 9 takes no part"),
        ({**FACTORS, "4": {"model": "new"}}, "a level of each factor"),
        ({**FACTORS, "4": FACTORS["3"]}, "No version stands for the combination features=many, model=new"),
    ],
)  # fmt: skip
def test_a_factorial_that_is_not_whole_is_refused(tmp_path, factors, says):
    live = Live(tmp_path, versions=4)
    with pytest.raises(InvalidInput, match="leaves nothing to the champion"):
        live.start("multivariate", others=[3, 4], rules={"factors": factors, "share": 1.2})
    with pytest.raises(InvalidInput, match=says):
        live.start("multivariate", others=[3, 4], rules={"factors": factors})


def test_a_rollout_that_an_earlier_version_began_goes_on(live):
    live.start("canary", rules={"min_rows": 100})
    with live.store.transaction(actor="ana") as transaction:
        rollout = transaction.get(Rollout, "r")
        transaction.replace(
            msgspec.structs.replace(
                rollout, stages=(), since_plan=0, revision=rollout.revision + 1,
                settings={"strategy": "canary", "alpha": 0.05, "min_rows": 100, "canary_share": 0.05},
                memory={"cursor": "{}", "plan before": 1},
            )
        )  # fmt: skip
    live.run(requests=200)
    assert (live.rollout.state, live.serving()) == ("promoted", {2: 10_000})


@pytest.mark.parametrize(
    ("worse", "group", "state", "serves"),
    [(1, "", "promoted", 2), (2, "", "refused", 1), (1, "x", "promoted", 2)],
)
def test_switchback_judges_whole_turns_of_all_traffic(live, worse, group, state, serves):
    live.bias[worse] = 0.7
    rules = {"period_minutes": 20, "washout_minutes": 5, "tuned_for": 60, "group": group}
    live.start("switchback", rules=rules)
    assert live.plan.period == Period(seconds=1200, field=group)
    assert live.serving() == {1: 5_000, 2: 5_000}
    live.run(requests=240)
    assert ended(live) == (state, {serves: 10_000})
    assert live.plan.period is None
    looks = live.store.find(Look, {"rollout": "r"}, order=["number"])
    measured = looks[-1].measured
    assert measured["mixed"] == 0
    assert min(measured["turns"].values()) >= 20
    low, high = measured["gain"]["challenger"]["low"], measured["gain"]["challenger"]["high"]
    assert low > 0 if worse == 1 else high < 0
    # One plan for all turns.
    assert len({look.written for look in looks[:-1]}) == 1


def test_switchback_does_not_take_the_luck_of_an_hour_for_an_effect_but_rolls_back_what_breaks(
    live,
):
    live.start("switchback", rules={"period_minutes": 60, "min_rows": 10_000})
    for hour in range(30):
        # Everybody's errors come by the hour, whoever's turn it is.
        live.errors = dict.fromkeys((1, 2), 0.04 * (hour % 3 == 0))
        live.run(rounds=1, requests=60)
    assert live.rollout.state == "running"
    assert "more whole turns" in live.last_look.next
    live.errors = {1: 0.0, 2: 0.5}
    sent = live.run(requests=20)
    assert ended(live) == ("rolled back", {1: 10_000})
    assert "failed in" in live.rollout.reason
    assert sent <= 600  # ten hours, those of the champion among them


def test_a_look_that_fails_is_said_in_the_rollout_holds_up_no_other_and_is_tried_again(
    live, monkeypatch
):
    live.start("canary", rules={"min_rows": 30, "steps": [0.5]})

    def broken(*_):
        raise ZeroDivisionError("no rows")

    with monkeypatch.context() as patch:
        patch.setattr("keepwell.serving.rollouts.driver.ask", broken)
        live.run(rounds=3, requests=5)
    assert (live.rollout.state, live.rollout.looks) == ("running", 1)
    assert live.rollout.reason.startswith("it cannot look: ")
    assert "no rows" in live.rollout.reason
    live.run(rounds=1, requests=5)
    assert (live.rollout.state, live.rollout.reason) == ("running", "")
    live.run(requests=50)
    assert ended(live) == ("promoted", {2: 10_000})


def test_a_look_that_waited_for_others_is_not_rested_off(live, monkeypatch):
    live.start("canary", rules={"min_rows": 5_000})
    real = live.driver._look

    def slow(rollout):
        time.sleep(0.3)  # somebody else has the processor
        return real(rollout)

    monkeypatch.setattr(live.driver, "_look", slow)
    live.run(rounds=1, requests=5)
    assert live.driver._resting["r"] - time.monotonic() < 0.5
