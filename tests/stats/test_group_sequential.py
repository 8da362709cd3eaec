"""Promises of planned looks: published boundaries, alpha kept, and forecasts."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats.forecast import (
    canary_forecast,
    fixed_forecast,
    outcome_forecast,
    sequential_forecast,
)
from keepwell.stats.group_sequential import GroupSequentialTest, boundaries, crossing, spent


def test_boundaries_are_those_of_the_tables() -> None:
    # Jennison and Turnbull 2000, tables 2.1 and 2.9 give the classical ones; these are Lan-DeMets,
    # as Reboussin, DeMets, Kim and Lan 2000 (ld98) print them for five looks at alpha 0.05.
    fifths = [0.2, 0.4, 0.6, 0.8, 1.0]
    late = boundaries(fifths, alpha=0.05, spending="obrien_fleming")
    assert late.critical == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)
    early = boundaries(fifths, alpha=0.05, spending="pocock")
    assert early.critical == pytest.approx([2.4380, 2.4268, 2.4101, 2.3966, 2.3859], abs=2e-4)


def test_constant_boundaries_of_pocock_keep_alpha_and_two_looks_at_one_do_not() -> None:
    # Pocock 1977, table 1: the constant for five looks is 2.413, for ten 2.555.
    assert sum(crossing(np.arange(1, 6) / 5, [2.413] * 5)) == pytest.approx(0.05, abs=1e-4)
    assert sum(crossing(np.arange(1, 11) / 10, [2.555] * 10)) == pytest.approx(0.05, abs=1e-4)
    # Armitage, McPherson and Rowe 1969, table 2.
    assert sum(crossing([0.5, 1.0], [1.96] * 2)) == pytest.approx(0.083, abs=1e-3)
    assert sum(crossing(np.arange(1, 51) / 50, [1.96] * 50)) == pytest.approx(0.320, abs=2e-3)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8),
    st.sampled_from(["obrien_fleming", "pocock", "kim_demets"]),
    st.sampled_from(["both", "greater"]),
    st.sampled_from([0.001, 0.05, 0.2]),
)
def test_whatever_the_looks_exactly_what_was_spent_is_crossed(parts, spending, side, alpha) -> None:
    t = np.cumsum(parts) / sum(parts)
    if (np.diff(t, prepend=0) < 0.001).any():
        return
    plan = boundaries(t, alpha=alpha, spending=spending, side=side)
    crossed = np.cumsum(plan.crossing(0.0))
    assert crossed[-1] == pytest.approx(alpha, rel=1e-5)
    assert crossed == pytest.approx(plan.spent, abs=1e-8)


def test_a_test_looked_at_as_data_come_keeps_alpha_where_one_look_repeated_does_not() -> None:
    rng = np.random.default_rng(0)
    t = np.array([0.11, 0.3, 0.45, 0.8, 1.0])
    steps = rng.normal(size=(400, 5)) * np.sqrt(np.diff(t, prepend=0))
    z = steps.cumsum(axis=1) / np.sqrt(t)
    rejected = 0
    for row in z:
        test = GroupSequentialTest(alpha=0.1, spending="pocock")
        for share, value in zip(t, row, strict=True):
            test = test.look(information=float(share), z=float(value))
        rejected += test.rejected
    assert rejected / 400 <= 0.145  # 10% and three standard errors
    assert (np.abs(z) > 1.645).any(axis=1).mean() > 0.2  # the known-bad control


def test_boundaries_already_used_do_not_move_with_later_looks() -> None:
    first = GroupSequentialTest(alpha=0.05).look(information=0.3, z=1.0)
    later = first.look(information=0.7, z=-1.0).look(information=1.2, z=-2.1)
    assert later.critical[0] == first.critical[0]
    assert later.finished
    assert later.rejected  # on the lower side
    assert (
        not GroupSequentialTest(alpha=0.05, side="greater").look(information=1.0, z=-3.0).rejected
    )
    with pytest.raises(ValueError, match="within the horizon"):
        later.look(information=1.5, z=0.0)


def test_early_looks_without_alpha_cannot_stop() -> None:
    plan = boundaries([0.01, 1.0], alpha=0.05)
    assert plan.critical[0] == math.inf
    assert plan.critical[1] == pytest.approx(1.96, abs=1e-3)
    assert spent(0.0, alpha=0.05) == 0.0
    assert spent(1.5, alpha=0.05) == pytest.approx(0.05)


def test_units_of_a_fixed_sample_give_the_power_they_promise() -> None:
    told = fixed_forecast(effect=0.02, control_variance=0.09, treatment_variance=0.1056, power=0.9)
    rng = np.random.default_rng(1)
    a, b = (rng.binomial(told.units, p, size=4000) / told.units for p in (0.12, 0.10))
    error = np.sqrt((a * (1 - a) + b * (1 - b)) / told.units)
    assert (np.abs(a - b) > 1.96 * error).mean() == pytest.approx(told.power, abs=0.02)
    one_look = sequential_forecast(
        effect=0.02,
        control_variance=0.09,
        treatment_variance=0.1056,
        horizon=told.units,
        looks=1,
        plan=boundaries([1.0], alpha=0.05),
    )
    assert one_look.power == pytest.approx(told.power, abs=1e-6)


def test_a_forecast_grows_with_the_effect_and_says_when_the_horizon_is_too_short() -> None:
    short, smaller = (
        outcome_forecast(rate=0.1, effect=0.02, horizon=2000, looks=20, true_effect=true)
        for true in (0.02, 0.01)
    )
    assert smaller.power < short.power < 0.5
    assert short.median_units == math.inf
    assert short.mean_units <= 2000
    none = canary_forecast(
        control_rate=0.002, treatment_rate=0.002, treatment_share=0.05, requests_per_second=100
    )
    assert none.found <= 0.01
    assert none.median_seconds == math.inf


def test_the_forecast_of_a_canary_is_exact_where_it_can_be_counted() -> None:
    # Every error but one in fifty falls on the canary: with alpha 0.3 a single one nearly decides.
    told = canary_forecast(
        control_rate=0.001,
        treatment_rate=0.5,
        treatment_share=0.1,
        requests_per_second=10,
        alpha=0.3,
        horizon_seconds=60,
    )
    rng = np.random.default_rng(2)
    per_error = 0.1 * 0.5 / (0.1 * 0.5 + 0.9 * 0.001)
    assert per_error > 0.98
    first = rng.exponential(1 / (10 * (0.05 + 0.0009)), size=20_000)
    assert told.median_seconds == pytest.approx(np.median(first), rel=0.1)
    assert told.found == pytest.approx(1, abs=1e-6)


def wrong(name: str, value: str) -> dict[str, Any]:
    return {name: value}


def test_input_that_means_nothing_is_refused_by_name() -> None:
    for looks in ([0.5, 0.5], [0.0, 1.0], [0.5, 1.1], []):
        with pytest.raises(ValueError, match="information"):
            boundaries(looks, alpha=0.05)
    with pytest.raises(ValueError, match="spending"):
        spent(0.5, alpha=0.05, **wrong("spending", "linear"))
    with pytest.raises(ValueError, match="side"):
        boundaries([1.0], alpha=0.05, **wrong("side", "less"))
    with pytest.raises(ValueError, match="critical"):
        crossing([0.5, 1.0], [2.0])
    with pytest.raises(ValueError, match="z must be finite"):
        GroupSequentialTest(alpha=0.05).look(information=0.5, z=math.nan)
    with pytest.raises(ValueError, match="effect"):
        fixed_forecast(effect=0.0, control_variance=1.0, treatment_variance=1.0)
    with pytest.raises(ValueError, match="plan must have 2 looks"):
        sequential_forecast(
            effect=1.0,
            control_variance=1.0,
            treatment_variance=1.0,
            horizon=10,
            looks=2,
            plan=boundaries([1.0], alpha=0.05),
        )
