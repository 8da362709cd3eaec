"""Promises of the value ledger's arithmetic: money adds up and noise is not called a gain."""

import numpy as np
import pytest

from keepwell.stats.value import value_against_baseline


def test_the_total_is_the_sum_and_scales_the_decisions_interval() -> None:
    gain = value_against_baseline([5.0, 7.0, 9.0], [4.0, 5.0, 9.0], clusters=["a", "a", "b"])
    assert gain.total.estimate == 3.0
    assert gain.total.upper == pytest.approx(3 * gain.per_decision.upper)
    assert gain.total.standard_error == pytest.approx(3 * gain.per_decision.standard_error)
    assert gain.per_decision.clusters == 2


def test_a_gain_of_nothing_is_rarely_proven_when_days_vary() -> None:
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(40), 30)
    proven = np.zeros(2)
    for _ in range(300):
        baseline = rng.normal(100, 50, size=day.size)
        value = baseline + 5 * rng.normal(size=40)[day] + rng.normal(size=day.size)
        proven += [
            value_against_baseline(value, baseline, clusters=day).proven,
            value_against_baseline(value, baseline).proven,
        ]
    assert proven[0] / 300 <= 0.05
    assert proven[1] / 300 > 0.3  # the known-bad control


def test_pairing_proves_a_gain_that_the_spread_of_decisions_would_hide() -> None:
    rng = np.random.default_rng(1)
    baseline = rng.normal(100, 50, size=500)
    assert value_against_baseline(baseline + rng.normal(1, 2, size=500), baseline).proven


def test_values_without_a_baseline_each_are_refused() -> None:
    with pytest.raises(ValueError, match="value=3, baseline=2"):
        value_against_baseline([1.0, 2.0, 3.0], [1.0, 2.0])
