"""What is foretold of a rollout, and what is refused for too little traffic before anything changes."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.serving.rollouts.live import Live
from tests.serving.rollouts.made import seen_of, state_of

from keepwell.core.clock import DAY
from keepwell.core.errors import InvalidInput, NotFound
from keepwell.core.records.rollouts import Look, Rollout
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.rollouts import forecasts, history
from keepwell.serving.rollouts.history import Known, known_of, reach_back, read_again
from keepwell.serving.rollouts.strategies.ab import AB, ABRules
from keepwell.serving.rollouts.strategies.bandit import Bandit, BanditRules
from keepwell.serving.rollouts.strategies.blue_green import BlueGreen, BlueGreenRules
from keepwell.serving.rollouts.strategies.canary import Canary, CanaryRules
from keepwell.serving.rollouts.strategies.recreate import Recreate, RecreateRules
from keepwell.serving.rollouts.strategies.switchback import Switchback, SwitchbackRules
from keepwell.stats.forecast import canary_forecast
from keepwell.stats.rate_limit import RateLimitTest

KNOWN = Known(
    days=14.0, decisions=14_000, new_units=(1000, 500, 400, 300, *[200] * 10), errors=28, judged=4000, gain=1.0, spread=2.0
)  # fmt: skip


def forecast(controller, name, state):
    return forecasts.forecast(controller, name, state)


def looked_back(log, *, newest):
    return reach_back(log, "buys", newest=newest)


def summed(seen):
    return known_of(
        seen, gain=lambda _, outcomes: outcomes, label_delay=0, default=None, attribution=0
    )


def test_units_come_as_they_came_and_then_as_new_ones_came_last():
    assert KNOWN.units_within(1) == 1000
    assert KNOWN.units_within(14) == 4200
    assert KNOWN.units_within(24) == pytest.approx(4200 + 10 * 200)
    assert KNOWN.days_for_units(1250) == pytest.approx(1.5)
    assert KNOWN.days_for_units(6200) == pytest.approx(24)
    nobody_new = msgspec.structs.replace(KNOWN, new_units=(900, *[0] * 13))
    assert nobody_new.days_for_units(901) == float("inf")


def test_what_the_log_showed_is_summed_up():
    rng = np.random.default_rng(1)
    n = 4 * 1440 - 1
    seen = seen_of(np.full(n, 2), rng.random(n) < 0.2, rng=rng, errors=np.arange(n) % 100 == 0, units=(np.arange(n) % 2000).astype(np.uint64))  # fmt: skip
    known = summed(seen)
    assert known.decisions == n
    assert known.per_day == pytest.approx(1440, rel=0.01)
    assert known.error_share == pytest.approx(0.01, rel=0.01)
    assert known.new_units == (1440, 560, 0, 0)
    assert known.zero_one
    assert known.sure
    assert known.gain == pytest.approx(0.2, abs=0.03)
    assert summed(seen.pick(seen.time < 0)) is None


def test_a_canary_is_told_how_long_each_step_takes_and_how_soon_errors_are_found():
    state = state_of(CanaryRules(steps=(0.05, 0.5), min_rows=350), known=KNOWN)
    told = forecast(Canary(), "canary", state)
    first, second = told.expected
    assert (first.days, second.days) == (7.0, 0.7)
    own = canary_forecast(
        control_rate=0.002, treatment_rate=0.02, treatment_share=0.05, requests_per_second=1000 / 86400,
        alpha=0.01, horizon_seconds=28 * 86400,
    )  # fmt: skip
    assert first.delays[0].error_share == pytest.approx(0.02)
    assert first.delays[0].median_seconds == pytest.approx(own.median_seconds)
    assert first.delays[1].error_share == 0.1
    assert second.delays[1].median_seconds < first.delays[1].median_seconds
    assert "step 1 of 2, 0.05 of the traffic: 350 decisions of the challenger take 7 days; an error rate of 2%" in first.said  # fmt: skip
    assert "14,000 decisions, 4,200 units of the last 14 days" in told.notes[0]


def test_blue_green_is_told_when_its_limit_would_be_found_exceeded():
    state = state_of(BlueGreenRules(min_rows=500), known=KNOWN)
    trial, after = forecast(BlueGreen(), "blue-green", state).expected
    assert trial.days == 0.5
    (low, high) = after.delays
    requests = round(high.median_seconds / 86400 * 1000)
    test = RateLimitTest(limit=0.01, alpha=0.01)
    assert test.update(events=round(0.1 * requests), trials=requests).exceeded
    assert high.median_seconds < low.median_seconds


def test_a_switchback_is_told_how_long_its_turns_take_and_refused_where_its_decisions_cannot_come():
    rules = SwitchbackRules(period_minutes=240, washout_minutes=60, share=0.2, min_rows=100)
    (told,) = forecast(Switchback(), "switchback", state_of(rules, known=KNOWN)).expected
    assert told.days == pytest.approx(
        101 * 4 / 24
    )  # 20 turns of the challenger, and the one in which it begins
    assert "20 turns of each arm" in told.said
    many = msgspec.structs.replace(rules, min_rows=5_000)
    (problem,) = Switchback().problems(state_of(many, known=KNOWN))
    assert "min_rows: 5,000 decisions of the rarest arm at 0.15 of 1,000" in problem
    assert Switchback().problems(state_of(rules, known=KNOWN)) == []


@pytest.mark.parametrize("horizon", [0, 1500])
def test_ab_is_told_its_chance_and_how_long_half_of_such_tests_take(horizon):
    rules = ABRules(horizon=horizon, minimum_effect=0.25, min_rows=300)
    least, verdict = forecast(AB(), "ab", state_of(rules, known=KNOWN)).expected
    assert least.days == pytest.approx(KNOWN.days_for_units(600))
    small = ABRules(horizon=horizon, minimum_effect=0.1, min_rows=300)
    _, unlikely = forecast(AB(), "ab", state_of(small, known=KNOWN)).expected
    assert verdict.power > 0.8
    assert unlikely.power < 0.4
    assert verdict.median_days < 28
    assert unlikely.median_days is None
    assert "0.25 in gain per unit" in verdict.said


LABELLED = msgspec.structs.replace(KNOWN, decision_spread=2.0)


def test_a_bandit_is_told_its_end_its_price_and_what_it_will_find():
    state = state_of(BanditRules(), known=LABELLED, label_delay=DAY)
    horizon, verdict = forecast(Bandit(), "bandit", state).expected
    assert (horizon.days, horizon.rows) == (28.0, 27_000)  # of the last day no labels have come
    assert "It ends after 28 days, as declared: 27,000 decisions" in horizon.said
    assert (
        "5% of them to arms that earn less, whatever is learned, and at least 1,350" in horizon.said
    )
    # Even arms would do with 2.8 errors of a difference of two halves; a bandit's log is duller.
    even = 2.8 * 2 * 2.0 / 27_000**0.5
    assert even < verdict.effect < 3 * even
    assert verdict.power == pytest.approx(0.8, abs=0.02)
    assert f"A challenger that earns {verdict.effect:.4g} more per decision" in verdict.said
    assert forecast(Bandit(), "bandit", state).expected[1] == verdict


@pytest.mark.parametrize(
    ("rules", "more"),
    [
        ({"floor": 0.02}, {}),
        ({"algorithm": "linucb"}, {}),
        ({}, {"challengers": 3}),
        ({"horizon_days": 7.0}, {}),
        ({}, {"known": msgspec.structs.replace(LABELLED, bunching=3.0)}),
    ],
)  # fmt: skip
def test_a_bandit_finds_less_with_a_lower_floor_more_arms_fewer_days_and_units_that_return(
    rules, more
):
    _, usual = forecast(Bandit(), "bandit", state_of(BanditRules(), known=LABELLED)).expected
    dull = state_of(BanditRules(**rules), **{"known": LABELLED} | more)
    _, verdict = forecast(Bandit(), "bandit", dull).expected
    assert verdict.effect > 1.1 * usual.effect
    assert ("floor throughout" in verdict.said) == ("algorithm" in rules)


@pytest.mark.parametrize("algorithm", ["ucb1", "kl-ucb", "epsilon-greedy"])
def test_every_algorithm_of_a_bandit_is_foretold_by_its_own_rule(algorithm):
    known = msgspec.structs.replace(LABELLED, gain=0.2, decision_spread=0.4)
    state = state_of(BanditRules(algorithm=algorithm, rewards="binary"), known=known)
    _, verdict = forecast(Bandit(), "bandit", state).expected
    assert verdict.power == pytest.approx(0.8, abs=0.05)


def test_a_bandit_that_could_judge_nobody_is_refused_and_one_without_labels_tells_its_end_alone():
    rules = BanditRules(horizon_days=0.5)
    rare = msgspec.structs.replace(LABELLED, decisions=1400)
    (problem,) = Bandit().problems(state_of(rules, known=rare))
    assert "horizon_days: 50 decisions with their labels come in 0.5 days, 25 an arm" in problem
    assert Bandit().problems(state_of(BanditRules(), known=rare)) == []
    (told,) = forecast(Bandit(), "bandit", state_of(BanditRules(), known=KNOWN)).expected
    assert told.of == "horizon"
    few = msgspec.structs.replace(KNOWN, decisions=420)
    (told,) = forecast(Bandit(), "bandit", state_of(BanditRules(), known=few)).expected
    assert "left with no more is not judged" in told.said


def test_units_whose_decisions_are_alike_bunch_and_bunch_more_the_oftener_they_return():
    rng = np.random.default_rng(4)
    n = 2 * 1440
    units = rng.integers(0, 300, n).astype(np.uint64)
    own = rng.normal(size=300)
    alike = summed(seen_of(np.full(n, 2), own[units.astype(int)], rng=rng, units=units))
    assert alike.decision_spread == pytest.approx(1.0, abs=0.15)
    assert alike.bunching == pytest.approx(n / 300 + 1, rel=0.15)
    assert alike.bunching_within(4) > 1.8 * alike.bunching
    apart = summed(seen_of(np.full(n, 2), rng.normal(size=n), rng=rng, units=units))
    assert apart.bunching == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("rules", "fate"),
    [
        ({}, "About 0.347 requests come meanwhile and wait, 60 s at most"),
        ({"gap": "refuse"}, "are answered 503 with Retry-After"),
    ],
)
def test_recreate_is_told_how_long_nobody_answers_and_whom_that_meets(rules, fate):
    rules = RecreateRules(down_seconds=30.0, gap_seconds=60.0, **rules)
    (told,) = forecast(Recreate(), "recreate", state_of(rules, known=KNOWN)).expected
    assert (told.rows, told.days) == (1, 30 / 86_400)
    assert "nobody answers for 30 s, as declared" in told.said
    assert fate in told.said
    busy = msgspec.structs.replace(KNOWN, decisions=14_000_000)
    (told,) = forecast(Recreate(), "recreate", state_of(rules, known=busy)).expected
    assert told.rows == 348


def test_without_known_traffic_there_is_a_warning_and_no_refusal():
    state = state_of(CanaryRules(steps=(0.001,), min_rows=10**6))
    assert Canary().problems(state) == []
    assert "No traffic is known there" in forecast(Canary(), "canary", state).notes[0]
    brief = msgspec.structs.replace(state, known=msgspec.structs.replace(KNOWN, days=0.2))
    assert Canary().problems(brief) == []
    assert "little to go by" in forecast(Canary(), "canary", brief).notes[1]


def lived(folder, units):
    """Five days of traffic, 96 decisions a day."""
    live = Live(folder, settings={"min_rows": 50})
    live.units = units
    live.send(480, seconds=900)
    return live


@pytest.fixture
def known(tmp_path):
    return lived(tmp_path, 400)


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """One for all refusals, since they change nothing."""
    return lived(tmp_path_factory.mktemp("lived"), 200)


@pytest.mark.parametrize(
    ("strategy", "rules", "says"),
    [
        ("canary", {"steps": [0.005, 0.5], "min_rows": 100}, r"step 1 of 2: 100 decisions at 0.005 of 9\d.* max_days is 28.*greater shares"),
        ("canary", {"steps": [0.1, 0.15], "min_rows": 200}, r"step 2 of 2: 200 decisions.* take 13.\d days, after 20.\d days before"),
        ("ab", {"horizon": 300}, r"horizon: 300 units of an arm with 0.5 of them take 155 days.* 131 come by then"),
        ("ab", {"min_rows": 300}, r"min_rows: 300 units of an arm"),
        ("shadow", {"share": 0.01, "min_rows": 100}, r"share: 100 pairs"),
        ("champion-challenger", {"min_rows": 10_000}, r"min_rows: 10,000 labelled decisions"),
        ("blue-green", {"min_rows": 10_000}, r"10,000 mirrored decisions"),
        ("canary", {"steps": [0.5, 0.5], "guardrails": [{"metric": "latency_p99"}], "stepz": 1},
         r"no rule 'stepz'. Did you mean 'steps'"),
        ("canary", {"steps": [0.5, 0.2], "guardrails": [{"metric": "latency_p99"}]},
         r"do not grow.*no metric 'latency_p99'. Did you mean 'latency_ms_p99'"),
        ("canary, ab", {"min_rows": 9000, "max_days": 1}, r"canary: steps: step 1 of 1.*ab: min_rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_whole_and_nothing_changes(standing, strategy, rules, says):
    known, before = standing, standing.plan
    with pytest.raises((InvalidInput, NotFound), match=says):
        known.start(strategy, rules=rules)
    assert known.plan == before
    assert known.store.find(Rollout) == known.store.find(Look) == []
    audited = [entry for entry in known.store.audit(limit=1000) if "rollout" in str(entry)]
    assert audited == []


def test_versions_named_twice_are_refused(standing):
    with pytest.raises(InvalidInput, match="Version 2 is named twice"):
        standing.start("ab", others=[2])


def test_a_rollout_remembers_what_was_foretold_and_computes_it_again(known, tmp_path):
    known.bias[1] = 0.4
    rules = {
        "horizon": 150, "looks": 3, "min_rows": 50, "cuped": True, "metrics": ["brier", "prediction"],
        "guardrails": [{"metric": "latency_ms_p99", "margin": 1.0, "then": "block"}, {"metric": "error_share", "margin": 0.2}],
    }  # fmt: skip
    known.start("ab", rules=rules)
    (told,) = known.rollout.forecast
    assert told.stage == "ab"
    assert "480 decisions, 400 units of the last" in told.notes[0]
    assert told.expected[1].power > 0
    known.units = 1000
    known.run(requests=160)
    assert known.rollout.state == "promoted", known.rollout.reason
    last = known.store.find(Look, {"rollout": "r"}, order=["-number"], limit=1)[0]
    facts = last.measured["gain"]["challenger"]
    assert facts["z"] > facts["critical"]
    assert "known" not in last.memory
    assert known.driver.replay("r").same
    known.writer.close()
    known.writer = None
    assert Compactor(tmp_path / "log").run(
        [{path.name: 10**12 for path in (tmp_path / "log").glob("*.seg")}]
    )
    assert known.made_driver().replay("r").same


def test_a_script_that_knows_nothing_of_keepwell_finds_the_same_at_the_horizon(known, tmp_path):
    """The plain form of a test at a horizon, from Parquet alone."""
    known.bias[1] = 0.4
    known.start("ab", rules={"horizon": 200, "looks": 4, "min_rows": 50})
    known.units = 1000
    known.run(requests=100)
    last = known.store.find(Look, {"rollout": "r"}, order=["-number"], limit=1)[0]
    known.writer.close()
    known.writer = None
    Compactor(tmp_path / "log").run(
        [{path.name: 10**12 for path in (tmp_path / "log").glob("*.seg")}]
    )
    question = {
        "endpoint": "buys", "cursor": last.cursor, "since_plan": known.rollout.since_plan, "label_delay": DAY // 24,
        "arms": ["champion", "challenger"], "alpha": 0.05, "gain": "squared", "planned": [50, 100, 150, 200],
    }  # fmt: skip
    (tmp_path / "question.json").write_text(json.dumps(question))
    script = Path(__file__).parents[2] / "stories" / "recompute.py"
    ended = subprocess.run(
        [sys.executable, "-I", script, tmp_path / "log", tmp_path / "question.json"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    said = json.loads(ended.stdout)
    facts = last.measured["gain"]["challenger"]
    assert said["looks"] == facts["looks"] >= 1
    assert said["judged"] == last.measured["judged"]
    for name in ("mean", "z", "critical", "low", "high"):
        assert said[name] == pytest.approx(facts[name], rel=1e-6), name


def test_of_a_great_log_only_what_is_needed_is_read(known, tmp_path, monkeypatch):
    known.writer.close()
    assert known.log.count_since(history.FAR) > 400  # nothing is Parquet yet
    log = tmp_path / "log"
    known.writer = None
    reach, seen = looked_back(known.log, newest=0)
    assert len(seen) == 480
    Compactor(log).run([{path.name: 10**12 for path in log.glob("*.seg")}])
    again = read_again(known.log, "buys", reach)
    assert all(
        np.array_equal(getattr(again, name), getattr(seen, name), equal_nan=name == "outcome")
        for name in ("time", "decision", "unit", "status", "outcome")
    )
    newest = seen.watermark
    assert known.log.count_since(history.FAR) == 0
    assert known.log.past(newest) == {}
    assert list(known.log.past(newest + DAY)) == ["w-0001.seg"]
    assert known.log.count_since(0) == 960
    assert known.log.count_since(newest + DAY) == 0
    # Where more comes in those days than may be read, fewer days are looked at.
    monkeypatch.setattr(history, "ROWS", 300)
    _, fewer = looked_back(known.log, newest=newest)
    assert 0 < len(fewer) < 480
    monkeypatch.setattr(history, "MOST_ROWS", 10)
    assert looked_back(known.log, newest=newest) is None
