"""Promises of intervals: they cover as often as they say, also when rows are correlated."""

import numpy as np
import pytest
from scipy import stats

from keepwell.stats import intervals


def test_the_mean_interval_is_that_of_scipy() -> None:
    x = np.random.default_rng(0).exponential(size=40)
    ours = intervals.mean_interval(x, level=0.9)
    oracle = stats.t.interval(0.9, 39, loc=x.mean(), scale=stats.sem(x))
    assert (ours.lower, ours.upper) == pytest.approx(oracle)


def test_the_paired_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=30)
    b = a + rng.normal(0.1, 0.1, size=30)
    oracle = stats.ttest_rel(a, b).confidence_interval()
    ours = intervals.paired_difference_interval(a, b)
    assert (ours.lower, ours.upper) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (3, 70), (50, 50), (999, 1000)])
def test_the_wilson_interval_is_that_of_scipy(k: int, n: int) -> None:
    oracle = stats.binomtest(k, n).proportion_ci(method="wilson")
    ours = intervals.wilson_interval(k, n)
    assert (ours.lower, ours.upper) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert ours.lower <= ours.estimate <= ours.upper


def _days(rng: np.random.Generator, days: int) -> tuple[np.ndarray, np.ndarray]:
    day = np.repeat(np.arange(days), rng.integers(20, 60, size=days))
    return rng.normal(size=days)[day] + 2 * rng.normal(size=day.size), day


def test_the_clustered_interval_covers_where_the_one_by_rows_does_not() -> None:
    rng = np.random.default_rng(2)
    covered = np.array(
        [
            (
                not intervals.clustered_mean_interval(x, day).excludes(0),
                not intervals.mean_interval(x).excludes(0),
            )
            for x, day in (_days(rng, 25) for _ in range(600))
        ]
    ).mean(axis=0)
    assert 0.92 <= covered[0] <= 0.975
    assert covered[1] < 0.7  # the known-bad control


def test_clusters_of_one_row_give_the_interval_of_rows() -> None:
    x = np.random.default_rng(3).normal(size=50)
    assert intervals.clustered_mean_interval(x, np.arange(50)).upper == pytest.approx(
        intervals.mean_interval(x).upper
    )


def test_the_bootstrap_by_cluster_covers_and_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        x, day = _days(rng, 30)
        covered += not intervals.bootstrap_interval(x, rng, clusters=day, draws=300).excludes(0)
    assert 0.87 <= covered / 200 <= 0.98
    x, day = _days(rng, 10)
    first, second = (
        intervals.bootstrap_interval(x, np.random.default_rng(7), clusters=day) for _ in range(2)
    )
    assert first == second


def test_the_bootstrap_of_a_given_mean_is_that_of_the_default() -> None:
    x = np.random.default_rng(5).normal(size=80)
    given = intervals.bootstrap_interval(x, np.random.default_rng(0), statistic=np.mean)
    default = intervals.bootstrap_interval(x, np.random.default_rng(0))
    assert given.estimate == pytest.approx(default.estimate)
    assert given.standard_error == pytest.approx(default.standard_error, rel=0.1)


def test_constant_values_give_a_point() -> None:
    assert intervals.mean_interval([2.0, 2.0]).upper == 2.0
    assert intervals.clustered_mean_interval([2.0, 2.0], ["a", "b"]).lower == 2.0


def test_input_that_means_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        intervals.mean_interval([1.0])
    with pytest.raises(ValueError, match="at least two distinct"):
        intervals.clustered_mean_interval([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match="one key a row"):
        intervals.clustered_mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="key for every row"):
        intervals.clustered_mean_interval([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match="keys of one type, received NoneType, str"):
        intervals.clustered_mean_interval([1.0, 2.0], np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        intervals.mean_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match=r"within \[0, 3\], received 4"):
        intervals.wilson_interval(4, 3)
    with pytest.raises(ValueError, match="draws"):
        intervals.bootstrap_interval([1.0, 2.0], np.random.default_rng(0), draws=5)
