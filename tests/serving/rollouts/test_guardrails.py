"""Guardrails: harm beyond the margin rolls back, no proof of safety blocks, and health is left alone."""

import msgspec
import numpy as np
import pytest
from tests.serving.rollouts.made import parted, seen_of, state_of

from keepwell.serving.rollouts.guardrails import GuardrailRule, guard, rate_bounds
from keepwell.serving.rollouts.strategies.ab import AB, ABRules
from keepwell.serving.rollouts.strategies.canary import Canary, CanaryRules


def rule(metric, **given):
    return msgspec.convert({"metric": metric, **given}, GuardrailRule)


def seen_with(harm, rng, *, n=6000, share=0.5):
    """The challenger's requests are worse in everything by so many standard deviations."""
    arms = parted(n, rng, share=share)
    worse = harm * (arms == 0)
    truth = (rng.random(n) < 0.4).astype(float)
    return seen_of(
        arms, truth, rng=rng, share=share,
        output=np.clip(0.4 + 0.15 * worse + rng.normal(0, 0.05, n), 0.01, 0.99),
        latency=rng.lognormal(-4 + 0.5 * worse, 0.4, n),
        errors=rng.random(n) < 0.01 + 0.03 * worse,
    )  # fmt: skip


CASES = [
    rule("latency_ms_p99", margin=5),
    rule("latency_ms_p50", margin=2),
    rule("error_share", margin=0.005),
    rule("brier", margin=0.005),
    rule("prediction", worse="higher", margin=0.05),
]


@pytest.mark.parametrize("each", CASES, ids=lambda each: each.metric)
def test_harm_beyond_the_margin_is_found_and_health_is_not_called_harm(each):
    rng = np.random.default_rng(5)
    state = state_of(ABRules())
    harmed = guard((each,), state, seen_with(1.0, rng), tuned_for=3000, parts=1)
    assert set(harmed.harmed) == {"challenger"}
    assert each.metric in harmed.harmed["challenger"]
    facts = harmed.measured["challenger"][each.metric]
    assert facts["verdict"] == "harmed"
    assert facts["least_harm"] > each.margin
    for _ in range(20):
        healthy = guard((each,), state, seen_with(0.0, rng, n=2000), tuned_for=1000, parts=1)
        assert healthy.harmed == {}


def test_a_latency_guardrail_keeps_its_alpha_at_every_look():
    rng = np.random.default_rng(9)
    each = rule("latency_ms_p90", alpha=0.1)
    state = state_of(ABRules())
    alarms = 0
    for _ in range(60):
        seen = seen_with(0.0, rng, n=1500)
        alarms += any(
            guard((each,), state, seen.pick(np.arange(1500) < rows), tuned_for=750, parts=1).harmed
            for rows in (150, 400, 800, 1500)
        )
    assert alarms <= 60 * 0.1 + 3 * np.sqrt(60 * 0.1 * 0.9)


def test_bounds_of_a_rate_hold_it_and_narrow():
    low, high = rate_bounds(20, 2000, alpha=0.01)
    assert 0.003 < low < 0.01 < high < 0.025
    assert rate_bounds(0, 50, alpha=0.01)[0] == pytest.approx(0, abs=1e-9)
    wide = rate_bounds(2, 200, alpha=0.01)
    assert wide[1] - wide[0] > high - low


def test_ab_rolls_back_for_a_harmed_guardrail_though_its_gain_is_better():
    rng = np.random.default_rng(3)
    seen = seen_with(1.0, rng)
    seen = msgspec.structs.replace(seen, outcome=seen.outcome + (seen.arm == 0), status=seen.status * 0)  # fmt: skip
    rules = ABRules(min_rows=100, guardrails=(rule("latency_ms_p99", margin=5),))
    plain = AB().plan(state_of(ABRules(min_rows=100)), seen, 0, np.random.default_rng(0))
    guarded = AB().plan(state_of(rules), seen, 0, np.random.default_rng(0))
    assert (plain.verdict, guarded.verdict) == ("promote", "roll back")
    assert "latency_ms_p99 is worse by" in guarded.reason


@pytest.mark.parametrize(
    ("harm", "n", "verdict"), [(0.0, 6000, "promote"), (0.0, 260, "go on"), (1.0, 6000, "refuse")]
)
def test_a_guardrail_that_blocks_waits_for_proof_of_safety(harm, n, verdict):
    rng = np.random.default_rng(3)
    seen = seen_with(harm, rng, n=n)
    seen = msgspec.structs.replace(seen, outcome=seen.outcome + 2 * (seen.arm == 0), status=seen.status * 0)  # fmt: skip
    rules = ABRules(min_rows=100, guardrails=(rule("latency_ms_p90", margin=8, then="block"),))
    answer = AB().plan(state_of(rules), seen, 0, np.random.default_rng(0))
    assert answer.verdict == verdict, answer.reason
    if verdict == "go on":
        assert "promoted once its guardrails are shown to be safe" in answer.next
        assert "not shown to be within 8" in answer.reason


@pytest.mark.parametrize(
    ("then", "harm", "verdict"),
    [("roll back", 1.0, "roll back"), ("roll back", 0.0, "promote"), ("block", 1.0, "go on")],
)
def test_a_canary_has_the_same_guardrails(then, harm, verdict):
    rng = np.random.default_rng(4)
    seen = seen_with(harm, rng, n=8000, share=0.2)
    seen = msgspec.structs.replace(seen, status=seen.status * 0)
    rules = CanaryRules(
        steps=(0.2,), min_rows=500, guardrails=(rule("latency_ms_p99", margin=9, then=then),)
    )
    answer = Canary().plan(state_of(rules, unit=""), seen, 0, np.random.default_rng(0))
    assert answer.verdict == verdict, answer.reason
    assert answer.measured["guardrails"]["challenger"]["latency_ms_p99"]["margin"] == 9
    if verdict == "go on":
        assert "once its guardrails are shown to be safe it is promoted" in answer.next


def test_a_canarys_step_is_judged_by_its_own_decisions_alone():
    rng = np.random.default_rng(4)
    n = 8000
    # The nights of the first step were slow for both, and it had less of the traffic.
    arms = np.concatenate([parted(n // 2, rng, share=0.05), parted(n // 2, rng, share=0.5)])
    plan = np.repeat([1, 2], n // 2)
    latency = rng.lognormal(-4 - 1.0 * (plan == 1), 0.3, n)
    seen = seen_of(arms, np.zeros(n), rng=rng, latency=latency, plan=plan)
    each = rule("latency_ms_p50", margin=0)
    mixed = guard((each,), state_of(CanaryRules()), seen, tuned_for=2000, parts=1)
    assert mixed.harmed  # what would be found wrongly
    rules = CanaryRules(steps=(0.05, 0.5), min_rows=5000, guardrails=(each,))
    state = state_of(rules, plan=2, memory={"step": 1})
    assert Canary().plan(state, seen, 0, np.random.default_rng(0)).verdict == "go on"
