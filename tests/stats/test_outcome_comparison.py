"""Promises of the comparison of outcomes: exact at any rate, whatever was declared, replayable."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from keepwell.stats.outcome_comparison import OutcomeComparison, Side, log_evidence

UNIT = st.tuples(st.booleans(), st.booleans())  # on treatment, with the event


def _fed(test: OutcomeComparison, units: list[tuple[bool, bool]], share: float = 0.5):
    return test.update(
        treatment_events=sum(arm and event for arm, event in units),
        treatment_units=sum(arm for arm, _ in units),
        control_events=sum(event and not arm for arm, event in units),
        control_units=sum(not arm for arm, _ in units),
        treatment_share=share,
    )


@pytest.mark.parametrize("side", ["both", "greater", "less"])
@pytest.mark.parametrize("rate", [0.002, 0.3])
def test_expected_evidence_is_one_whatever_the_outcomes_when_arms_were_drawn_by_the_plan(
    side, rate
) -> None:
    # Summed exactly over all arms of 12 units, 4 of them with the event: the outcomes are given.
    share, mean = 0.2, 0.0
    for on_events in range(5):
        for on_others in range(9):
            chance = (
                special.binom(4, on_events)
                * special.binom(8, on_others)
                * share ** (on_events + on_others)
                * (1 - share) ** (12 - on_events - on_others)
            )
            test = OutcomeComparison(alpha=0.05, rate=rate, effect=rate / 2, side=side).update(
                treatment_events=on_events,
                treatment_units=on_events + on_others,
                control_events=4 - on_events,
                control_units=8 - on_others + 4 - on_events,
                treatment_share=share,
            )
            mean += chance * math.exp(test.log_evidence)
    assert mean == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(st.lists(UNIT, max_size=40), st.integers(0, 40))
def test_units_one_by_one_in_batches_or_by_array_give_the_same_evidence(units, cut) -> None:
    start = OutcomeComparison(alpha=0.05, rate=0.1, effect=0.05)
    together = _fed(start, units)
    apart = _fed(_fed(start, units[:cut]), units[cut:])
    assert apart.log_evidence == pytest.approx(together.log_evidence, abs=1e-9)
    by_array = log_evidence(
        together.treatment_events,
        together.treatment_units,
        together.control_events,
        together.control_units,
        rate=0.1,
        effect=0.05,
    )
    assert float(by_array) == pytest.approx(together.log_evidence, abs=1e-9)
    assert _fed(start, units) == together  # bit for bit


def test_a_ramp_of_the_share_keeps_what_was_learnt() -> None:
    rng = np.random.default_rng(0)
    test = OutcomeComparison(alpha=0.05, rate=0.1, effect=0.05, side="greater")
    for share in (0.01, 0.05, 0.25, 0.5):
        arm = rng.random(4000) < share
        event = rng.random(4000) < np.where(arm, 0.15, 0.10)
        test = _fed(test, list(zip(arm.tolist(), event.tolist(), strict=True)), share)
    assert test.rejected
    # The known-bad control: the ramp read as if the share had always been a half.
    pooled = log_evidence(
        test.treatment_events,
        test.treatment_units,
        test.control_events,
        test.control_units,
        rate=0.1,
        effect=0.05,
        side="greater",
    )
    assert float(pooled) != pytest.approx(test.log_evidence, abs=1.0)


def test_a_rate_that_moves_over_the_day_does_not_fool_it() -> None:
    rng = np.random.default_rng(1)
    hour = np.repeat(np.linspace(0.01, 0.6, 24), 200)
    fooled = 0
    for _ in range(100):
        arm = rng.random(hour.size) < 0.5
        event = rng.random(hour.size) < hour
        a, b = (arm & event).cumsum(), (~arm & event).cumsum()
        n = arm.cumsum()
        found = log_evidence(a, n, b, np.arange(1, hour.size + 1) - n, rate=0.1, effect=0.03)
        fooled += bool((found >= math.log(20)).any())
    assert fooled <= 10  # 5 expected at most, and two standard errors


def test_a_difference_on_the_wrong_side_is_no_evidence() -> None:
    worse: dict[str, Any] = {
        "treatment_events": 100,
        "treatment_units": 2000,
        "control_events": 200,
        "control_units": 2000,
    }
    sides: tuple[tuple[Side, bool], ...] = (("greater", False), ("less", True), ("both", True))
    for side, rejected in sides:
        test = OutcomeComparison(alpha=0.01, rate=0.1, effect=0.03, side=side).update(**worse)
        assert test.rejected is rejected
        assert (test.p_value <= 0.01) is rejected


def test_the_verdict_stays_when_evidence_fades() -> None:
    test = OutcomeComparison(alpha=0.05, rate=0.1, effect=0.03).update(
        treatment_events=160, treatment_units=1000, control_events=100, control_units=1000
    )
    later = test.update(
        treatment_events=500, treatment_units=5000, control_events=600, control_units=5000
    )
    assert test.rejected
    assert later.rejected
    assert later.log_evidence < test.log_evidence


def test_input_that_means_nothing_is_refused_by_name() -> None:
    for bad, name in (
        ({"alpha": 1.0, "rate": 0.1, "effect": 0.1}, "alpha"),
        ({"alpha": 0.1, "rate": 0.0, "effect": 0.1}, "rate"),
        ({"alpha": 0.1, "rate": 0.5, "effect": 0.5}, "effect"),
        ({"alpha": 0.1, "rate": 0.5, "effect": -0.1}, "effect"),
        ({"alpha": 0.1, "rate": 0.5, "effect": 0.1, "side": "up"}, "side"),
    ):
        with pytest.raises(ValueError, match=name):
            OutcomeComparison(**bad)
    start = OutcomeComparison(alpha=0.05, rate=0.1, effect=0.02)
    with pytest.raises(ValueError, match=r"control_events must be within \[0, control_units=1\]"):
        start.update(treatment_events=0, treatment_units=0, control_events=2, control_units=1)
    with pytest.raises(ValueError, match="treatment_share"):
        start.update(
            treatment_events=0,
            treatment_units=1,
            control_events=0,
            control_units=1,
            treatment_share=0.0,
        )
    with pytest.raises(ValueError, match="events"):
        log_evidence(3, 2, 0, 1, rate=0.1, effect=0.1)
