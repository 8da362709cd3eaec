"""Promises of bounds for quantiles: they hold at every look, with ties, and from histograms."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from keepwell.stats.histogram import count
from keepwell.stats.quantile_sequence import (
    quantile_bounds,
    quantile_bounds_binned,
    quantile_difference,
    quantile_ranks,
)


def _bet(k, n, p, weight):
    """The mixture's gain by quadrature: what the ranks are defined by."""

    def density(x):
        return x ** (weight * p + k - 1) * (1 - x) ** (weight * (1 - p) + n - k - 1)

    def prior(x):
        return x ** (weight * p - 1) * (1 - x) ** (weight * (1 - p) - 1)

    above = integrate.quad(density, p, 1)[0] / integrate.quad(prior, p, 1)[0]
    return above / (p**k * (1 - p) ** (n - k))


def test_ranks_are_where_a_bet_by_quadrature_reaches_its_limit() -> None:
    # The weight is the normal mixture's best precision, -W(-a^2/e) - 1 below the tuned rows.
    y = -special.lambertw(-(0.1**2) / math.e, -1).real
    n, p, weight = 40, 0.6, 40 / (y - 1)
    low, high = quantile_ranks(n, p, alpha=0.1, tuned_for=40)
    assert _bet(high, n, p, weight) >= 20 > _bet(high - 1, n, p, weight)
    assert _bet(n - low, n, 1 - p, weight) < 20 <= _bet(n - low + 1, n, 1 - p, weight)


def test_expected_gain_of_a_bet_at_the_quantile_is_one() -> None:
    # The promise at every look rests on this alone (Ville), so it is summed exactly.
    from keepwell.stats.quantile_sequence import _log_bet

    k = np.arange(51)
    chance = special.binom(50, k) * 0.9**k * 0.1 ** (50 - k)
    gains = np.exp([_log_bet(int(i), 50, 0.9, 7.0) for i in k])
    assert float(chance @ gains) == pytest.approx(1)
    fewer = special.binom(50, k) * 0.85**k * 0.15 ** (50 - k)
    assert float(fewer @ gains) < 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-1e6, 1e6)), max_size=200),
    st.sampled_from([0.1, 0.5, 0.99]),
)
def test_bounds_hold_the_estimate_and_widen_with_less_alpha_and_with_bins(values, p) -> None:
    bounds = quantile_bounds(values, p, alpha=0.1, tuned_for=50)
    stricter = quantile_bounds(values, p, alpha=0.01, tuned_for=50)
    assert stricter.lower <= bounds.lower
    assert bounds.upper <= stricter.upper
    if values:
        assert bounds.lower <= bounds.estimate <= bounds.upper
        assert not bounds.excludes(bounds.estimate)
        binned = quantile_bounds_binned(
            count(values, edges=(-10.0, 0.0, 0.5, 10.0)), p, alpha=0.1, tuned_for=50
        )
        assert binned.lower <= bounds.lower
        assert bounds.upper <= binned.upper
        assert binned.rows == bounds.rows
    else:
        assert (bounds.lower, bounds.upper) == (-math.inf, math.inf)
        assert math.isnan(bounds.estimate)


def test_peeking_at_values_with_ties_keeps_the_rate() -> None:
    # Milliseconds rounded to tens: the median is a value that many rows share.
    rng = np.random.default_rng(0)
    looks = range(20, 601, 20)
    ranks = [quantile_ranks(n, 0.5, alpha=0.05, tuned_for=300) for n in looks]
    missed = 0
    for _ in range(300):
        rows = np.round(rng.exponential(30, size=600), -1)
        for n, (low, high) in zip(looks, ranks, strict=True):
            seen = np.sort(rows[:n])
            if (low and seen[low - 1] > 20) or (high <= n and seen[high - 1] < 20):
                missed += 1
                break
    assert missed / 300 <= 0.05


def test_a_slower_arm_is_found_and_equal_arms_are_not() -> None:
    rng = np.random.default_rng(1)
    now, same = rng.lognormal(3, 0.5, size=(2, 4000))
    slower = 1.3 * rng.lognormal(3, 0.5, size=4000)
    found = quantile_difference(slower, now, 0.95, alpha=0.05, tuned_for=4000)
    assert found.lower > 0
    assert found.excludes(0.0)
    assert found.treatment.alpha == 0.025
    assert not quantile_difference(same, now, 0.95, alpha=0.05, tuned_for=4000).excludes(0.0)


def test_input_that_means_nothing_is_refused_by_name() -> None:
    good: dict[str, Any] = {"rows": 9, "probability": 0.5, "alpha": 0.1, "tuned_for": 9}
    for bad, name in (
        ({"probability": 1.0}, "probability"),
        ({"alpha": 0.0}, "alpha"),
        ({"tuned_for": 1}, "tuned_for"),
        ({"rows": -1}, "rows"),
    ):
        with pytest.raises(ValueError, match=name):
            quantile_ranks(**{**good, **bad})
    with pytest.raises(ValueError, match="finite"):
        quantile_bounds([math.nan], 0.5, alpha=0.1, tuned_for=9)
