"""A/B's verdicts: at a horizon, by the exact test, with less noise, beside other metrics. Numbers alone, no log."""

import math

import msgspec
import numpy as np
import pytest
from tests.serving.rollouts.made import NAMES, parted, seen_of, state_of

from keepwell.serving.rollouts.controllers import answer_digest
from keepwell.serving.rollouts.effects import at_horizon, zero_one
from keepwell.serving.rollouts.evidence import Worths, error_comparison
from keepwell.serving.rollouts.history import Before, Known
from keepwell.serving.rollouts.strategies.ab import AB, ABRules
from keepwell.stats.forecast import sequential_forecast
from keepwell.stats.group_sequential import boundaries
from keepwell.stats.rate_comparison import RateComparison

PLANNED = (400, 800, 1200, 1600, 2000)


def worths(values):
    return Worths(np.asarray(values, dtype=np.float64), np.arange(len(values), dtype=np.uint64))


def looked(state, seen, *, every):
    """Let A/B look again and again as rows come; gives its answers, memory carried from look to look."""
    memory: dict[str, object] = {}
    answers = []
    for rows in [*range(every, len(seen), every), len(seen)]:
        now = seen.pick(np.arange(len(seen)) < rows)
        now = msgspec.structs.replace(now, watermark=int(now.time[-1]) + 1)
        answer = AB().plan(
            msgspec.structs.replace(state, memory=memory), now, 0, np.random.default_rng(0)
        )
        answers.append(answer)
        memory = memory | answer.memory
        if answer.verdict != "go on":
            break
    return answers


def at_the_horizon(effect, rng, runs):
    """Ends of tests of unit variance: +1 better, -1 worse, 0 neither."""
    found = []
    for _ in range(runs):
        ours, theirs = rng.normal(effect, 1, 2000), rng.normal(0, 1, 2000)
        told = at_horizon(
            "challenger", worths(ours), worths(theirs), alpha=0.05, planned=PLANNED, ratio=1.0, passed=()
        )  # fmt: skip
        assert told.over or told.better or told.worse
        found.append(int(told.better) - int(told.worse))
    return np.array(found)


def test_a_horizon_keeps_its_alpha_and_finds_what_the_forecast_promises():
    rng = np.random.default_rng(3)
    healthy = at_the_horizon(0.0, rng, 200)
    assert (healthy != 0).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    plan = boundaries([units / 2000 for units in PLANNED], alpha=0.05)
    promised = sequential_forecast(
        effect=0.09, control_variance=1, treatment_variance=1, horizon=2000, looks=5, plan=plan
    ).power
    real = at_the_horizon(0.09, rng, 120)
    assert (real == 1).mean() == pytest.approx(promised, abs=0.12)
    assert (real == -1).mean() < 0.01


def test_a_test_that_looks_at_the_horizons_fractions_without_planning_them_would_be_caught():
    rng = np.random.default_rng(3)
    naive = 0
    for _ in range(500):
        ours, theirs = rng.normal(0, 1, 2000), rng.normal(0, 1, 2000)
        z = [(ours[:n].mean() - theirs[:n].mean()) / math.sqrt(2 / n) for n in PLANNED]
        naive += max(map(abs, z)) > 1.96
    assert naive / 500 > 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


RULES = ABRules(horizon=300, looks=3, min_rows=100)


@pytest.mark.parametrize(
    ("effect", "verdict"), [(0.6, "promote"), (-0.6, "refuse"), (0.0, "refuse")]
)
def test_the_verdict_at_a_horizon_does_not_hang_on_how_often_one_looks(effect, verdict):
    rng = np.random.default_rng(5)
    arms = parted(900, rng)
    seen = seen_of(arms, rng.normal(0, 1, 900) + effect * (arms == 0), rng=rng)
    state = state_of(RULES)
    ends = [looked(state, seen, every=every)[-1] for every in (7, 130, 900)]
    assert {end.verdict for end in ends} == {verdict}
    told = [end.measured["gain"]["challenger"] for end in ends]
    assert told[0] == told[1] == told[2]
    if not effect:
        assert "no proof of a difference at the horizon of 300 units" in ends[0].reason
        assert told[0]["looks"] == 3


def test_between_planned_looks_nothing_is_said_and_a_look_taken_is_not_taken_again():
    rng = np.random.default_rng(6)
    arms = parted(500, rng)
    seen = seen_of(arms, rng.normal(0, 1, 500), rng=rng)
    answers = looked(state_of(RULES), seen, every=25)
    looks = [len(answer.memory["looks"]["challenger"]) for answer in answers]
    assert looks[0] == 0
    assert "the first planned look is at 100" in answers[0].reason
    assert looks == sorted(looks)
    assert set(looks) == {0, 1, 2}
    of_second = [a.measured["gain"]["challenger"] for a, k in zip(answers, looks, strict=True) if k == 2]  # fmt: skip
    assert all(facts == of_second[0] for facts in of_second)
    # An outcome that becomes known afterwards changes no look that was taken.
    changed = msgspec.structs.replace(seen, outcome=seen.outcome + 5 * (seen.arm == 0))
    state = state_of(RULES, memory={"looks": answers[-1].memory["looks"]})
    again = AB().plan(state, changed, 0, np.random.default_rng(0))
    assert again.measured["gain"]["challenger"] == of_second[0]


def test_planned_looks_below_the_least_rows_are_left_out():
    assert ABRules(horizon=1000, looks=5, min_rows=500).planned == (600, 800, 1000)
    assert ABRules(horizon=400, looks=5, min_rows=500).planned == ()
    said = AB().problems(state_of(ABRules(horizon=400, looks=101, min_rows=500)))
    assert len(said) == 2
    assert "fewer than min_rows" in said[0]


def test_arms_of_unequal_size_reach_a_look_together():
    rng = np.random.default_rng(8)
    arms = parted(4000, rng, share=0.2)
    seen = seen_of(arms, rng.normal(0, 1, 4000), rng=rng, share=0.2)
    rules = ABRules(horizon=500, looks=2, min_rows=100, share=0.2)
    answers = looked(state_of(rules), seen, every=50)
    taken = [len(answer.memory["looks"]["challenger"]) for answer in answers[:-1]]
    judged = answers[taken.index(1)].measured["judged"]
    assert 250 <= judged["challenger"] < 300
    assert judged["champion"] >= 1000
    assert answers[-1].measured["gain"]["challenger"]["looks"] == 2


def test_a_gain_that_was_0_or_1_before_is_compared_exactly_and_others_are_not():
    rng = np.random.default_rng(2)
    arms = parted(16_000, rng)
    outcome = (rng.random(16_000) < np.where(arms == 0, 0.0125, 0.005)).astype(float)
    seen = seen_of(arms, outcome, rng=rng)
    known = Known(days=14, decisions=9000, new_units=(600,) * 15, errors=0, judged=9000, gain=0.005, spread=0.07, zero_one=True)  # fmt: skip
    state = state_of(ABRules(min_rows=500, minimum_effect=0.005), known=known)
    exact = AB().plan(state, seen, 0, np.random.default_rng(0))
    assert exact.measured["gain"]["challenger"]["p_value"] < 0.05
    assert exact.verdict == "promote"
    plain = AB().plan(msgspec.structs.replace(state, known=None), seen, 0, np.random.default_rng(0))
    assert "p_value" not in plain.measured["gain"]["challenger"]


def test_the_exact_test_keeps_its_alpha_at_every_look():
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(60):
        ours, theirs = (rng.random((2, 4000)) < 0.02).astype(float)
        wrong += any(
            (told := zero_one("c", worths(ours[:n]), worths(theirs[:n]), alpha=0.05, tuned_for=4000, rate=0.02, effect=0.01, share=0.5)).better
            or told.worse
            for n in range(1000, 4001, 1000)
        )  # fmt: skip
    assert wrong / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


@pytest.mark.parametrize("cuped", [True, "spend"])
def test_what_was_known_before_takes_its_share_of_the_noise(cuped):
    rng = np.random.default_rng(11)
    n, correlation = 3000, 0.8
    arms, before = parted(n, rng), rng.normal(0, 1, n)
    noise = math.sqrt(1 - correlation**2) * rng.normal(0, 1, n)
    seen = seen_of(arms, correlation * before + noise + 0.09 * (arms == 0), rng=rng, feature=before)
    order = np.argsort(seen.unit)
    # A third of the units were not there before.
    there = order[rng.random(n) < 2 / 3]
    known = Before(keys=seen.unit[there], values=before[there])
    state = state_of(ABRules(min_rows=100, cuped=cuped), fields=("spend",), before=known)
    found = AB().plan(state, seen, 0, np.random.default_rng(0))
    facts = found.measured["gain"]["challenger"]
    left = 1 - correlation**2 * (2 / 3 if cuped is True else 1)
    assert facts["variance_left"] == pytest.approx(left, rel=0.1)
    plain = AB().plan(state_of(ABRules(min_rows=100)), seen, 0, np.random.default_rng(0))
    wide = plain.measured["gain"]["challenger"]
    assert facts["high"] - facts["low"] < math.sqrt(left * 1.2) * (wide["high"] - wide["low"])
    assert facts["low"] < 0.09 < facts["high"]
    assert plain.verdict == "go on"
    if cuped == "spend":
        assert found.verdict == "promote"


def test_units_that_were_not_there_before_speak_for_neither_arm():
    known = Before(keys=np.array([3, 9], dtype=np.uint64), values=np.array([1.0, 5.0]))
    assert known.of(np.array([9, 4, 3], dtype=np.uint64)).tolist() == [5.0, 3.0, 1.0]
    nobody = Before(keys=np.zeros(0, dtype=np.uint64), values=np.zeros(0))
    assert nobody.of(np.array([9], dtype=np.uint64)).tolist() == [0.0]


def test_other_metrics_are_told_and_move_no_traffic():
    rng = np.random.default_rng(13)
    n = 4000
    arms = np.where(rng.random(n) < 0.5, 2, rng.integers(0, 2, n))
    outcome = (rng.random(n) < 0.3).astype(float)
    output = np.clip(0.3 + 0.2 * (arms == 1) + rng.normal(0, 0.05, n), 0.01, 0.99)
    seen = seen_of(arms, outcome, rng=rng, output=output, share=0.25)
    rules = ABRules(min_rows=100, metrics=("brier", "prediction", "outcome", "error_share"))
    answer = AB().plan(state_of(rules, challengers=2), seen, 0, np.random.default_rng(0))
    assert answer.verdict == "go on"
    found = answer.measured["metrics"]
    told = {(m, a) for m, arms in found.items() for a, facts in arms.items() if facts["discovered"]}
    assert told == {("brier", "challenger-2"), ("prediction", "challenger-2")}
    assert "also different: brier of challenger-2" in answer.reason
    assert found["prediction"]["challenger-2"]["mean"] == pytest.approx(0.2, abs=0.01)
    # Eight questions were asked: evidence that would do for one does not for all.
    assert found["outcome"]["challenger"]["level"] > 0.05


def test_the_same_observations_give_the_same_answer_to_the_bit():
    rng = np.random.default_rng(17)
    arms = parted(2000, rng)
    seen = seen_of(arms, rng.normal(0, 1, 2000), rng=rng, feature=rng.normal(0, 1, 2000))
    declared = {
        "horizon": 600, "looks": 3, "min_rows": 100, "cuped": "spend", "metrics": ["outcome", "error_share"],
        "guardrails": [{"metric": "latency_ms_p99"}, {"metric": "outcome", "worse": "lower", "margin": 0.5}],
    }  # fmt: skip
    rules = msgspec.convert(declared, ABRules)
    state = state_of(rules, fields=("spend",))
    one, two = (AB().plan(state, seen, 0, np.random.default_rng(k)) for k in range(2))
    assert answer_digest(one) == answer_digest(two)
    # The memory survives being written down.
    memory = msgspec.json.decode(msgspec.json.encode(one.memory))
    assert memory == msgspec.to_builtins(one.memory)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"metrics": ("brierr",)}, "metrics: there is no metric 'brierr'. Did you mean 'brier'?"),
        ({"metrics": ("squared_error",)}, "squared_error is not for a binary model"),
        ({"metrics": ("value",)}, "value needs a KPI"),
        ({"metrics": ("brier", "brier")}, "brier is named twice"),
        ({"metrics": ("latency_ms_p99",)}, "Make it a guardrail"),
        ({"guardrails": ({"metric": "latency_p99"},)}, "Did you mean 'latency_ms_p99'"),
        ({"guardrails": ({"metric": "outcome"},)}, "Say worse = 'higher' or 'lower'"),
        ({"cuped": "spent"}, "no numeric feature 'spent'. Did you mean 'spend'?"),
        ({"cuped": True}, "nothing to adjust by"),
        ({"share": 0.00001}, "less than one of 10,000 buckets"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_said_with_the_way_out(rules, says):
    made = msgspec.convert(rules, ABRules)
    (said,) = AB().problems(state_of(made, numeric=("spend",)))
    assert says in said
    assert NAMES[0] == state_of(made).challenger.name


@pytest.mark.parametrize("worse", [1, 3])
def test_errors_are_held_against_the_requests_that_came_not_against_the_share_of_the_units(worse):
    rng = np.random.default_rng(9)
    n = 20_000
    arms = parted(n, rng, share=0.2)  # a twentieth of the units, but the busy ones
    errors = rng.random(n) < np.where(arms == 0, 0.01 * worse, 0.01)
    seen = seen_of(arms, np.full(n, np.nan), rng=rng, errors=errors, share=0.05)
    ours, theirs = (int((errors & (arms == place)).sum()) for place in (0, 2))
    by_units = RateComparison(alpha=0.01)
    by_units = by_units.update(treatment_events=ours, control_events=theirs, treatment_share=0.05)
    assert by_units.rejected
    found = error_comparison(seen, "champion", "challenger", alpha=0.01)
    assert found.rejected == (worse > 1)
