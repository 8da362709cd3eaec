"""Promises of drift measures: zero on the same, calibrated by chance, equal to their oracles."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from keepwell.stats import drift
from keepwell.stats.histogram import count, edges_from_reference

COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 10_000)), min_size=2, max_size=12)
PAIRS = (
    st.integers(2, 10)
    .flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 500), min_size=k, max_size=k)] * 2))
    .filter(lambda pair: min(sum(pair[0]), sum(pair[1])) > 0)
)


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_no_measure_is_negative_and_order_does_not_matter(
    pair: tuple[list[int], list[int]],
) -> None:
    a, b = pair
    assert drift.psi(a, b) >= 0
    assert drift.psi(a, b) == pytest.approx(drift.psi(b, a))
    assert 0 <= drift.jensen_shannon(a, b) <= 1
    assert drift.jensen_shannon(a, b) == pytest.approx(drift.jensen_shannon(b, a), abs=1e-7)
    for test in (drift.psi_test(a, b), drift.ks_binned(a, b), drift.chi_square(a, b)):
        assert 0 <= test.p_value <= 1
        assert test.effect >= 0


@settings(deadline=None, max_examples=50)
@given(COUNTS.filter(any))
def test_every_measure_is_zero_on_the_same_counts(a: list[int]) -> None:
    assert drift.psi(a, a) == 0
    assert drift.jensen_shannon(a, a) == 0
    for test in (drift.psi_test(a, a), drift.ks_binned(a, a), drift.chi_square(a, a)):
        assert test.effect == 0
        assert test.p_value == 1


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_jensen_shannon_is_that_of_scipy(pair: tuple[list[int], list[int]]) -> None:
    a, b = pair
    assert drift.jensen_shannon(a, b) == pytest.approx(distance.jensenshannon(a, b, 2), abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_chi_square_is_that_of_scipy(pair: tuple[list[int], list[int]]) -> None:
    table = np.array(pair)[:, np.array(pair).sum(axis=0) > 0]
    ours = drift.chi_square(*pair)
    oracle = stats.chi2_contingency(table, correction=False)
    assert ours.statistic == pytest.approx(oracle.statistic, abs=1e-9)
    assert ours.p_value == pytest.approx(oracle.pvalue, abs=1e-9)
    assert ours.degrees_of_freedom == oracle.dof


@pytest.mark.parametrize("seed", range(5))
def test_ks_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=800), rng.normal(0.1, 1.1, size=500)
    oracle = stats.ks_2samp(a, b, method="exact")
    assert drift.ks_two_sample(a, b).statistic == pytest.approx(oracle.statistic)
    assert drift.ks_two_sample(a, b).p_value == pytest.approx(oracle.pvalue, abs=0.02)
    limiting = stats.kstwobign.sf(np.sqrt(800 * 500 / 1300) * oracle.statistic)
    assert drift.ks_two_sample(a, b).p_value == pytest.approx(limiting)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 3).map(float), min_size=1, max_size=40),
    st.lists(st.one_of(st.just(math.nan), st.floats(-2, 5)), min_size=1, max_size=40),
)
def test_binned_ks_never_exceeds_ks_of_the_rows(a: list[float], b: list[float]) -> None:
    present = [value for value in b if not math.isnan(value)]
    if not present:
        with pytest.raises(ValueError, match="not NaN"):
            drift.ks_two_sample(a, b)
        return
    edges = (0.5, 1.0, 2.0, 2.5)
    rows = drift.ks_two_sample(a, b)
    binned = drift.ks_binned(count(a, edges), count(b, edges))
    assert binned.effect <= rows.effect + 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy falls back from exact on ties, and says so
        assert rows.statistic == pytest.approx(stats.ks_2samp(a, present).statistic)


@pytest.mark.parametrize("rows", [200, 5000])
def test_psi_raises_few_false_alarms_at_any_window_size_where_the_custom_raises_many(
    rows: int,
) -> None:
    rng = np.random.default_rng(3)
    tests = []
    for _ in range(300):
        reference = rng.lognormal(size=4000)
        edges = edges_from_reference(reference)
        current = rng.lognormal(size=rows)
        tests.append(drift.psi_test(count(reference, edges), count(current, edges)))
    found = np.mean([test.p_value < 0.05 for test in tests])
    assert 0.02 <= found <= 0.085
    assert np.mean([test.p_value for test in tests]) == pytest.approx(0.5, abs=0.06)


def test_a_fixed_psi_limit_has_an_alarm_rate_that_depends_on_the_rows() -> None:
    rng = np.random.default_rng(4)
    edges = edges_from_reference(rng.normal(size=5000))
    alarms = {}
    for rows in (100, 2000):
        indices = [
            drift.psi(count(rng.normal(size=rows), edges), count(rng.normal(size=rows), edges))
            for _ in range(200)
        ]
        alarms[rows] = np.mean(np.array(indices) > 0.1)
    assert alarms[100] > 0.5
    assert alarms[2000] == 0


def test_psi_sees_a_shift_of_a_fifth_of_a_standard_deviation() -> None:
    rng = np.random.default_rng(5)
    reference = rng.normal(size=5000)
    edges = edges_from_reference(reference)
    found = drift.psi_test(count(reference, edges), count(rng.normal(0.2, 1, size=5000), edges))
    assert found.p_value < 1e-6
    assert found.effect == pytest.approx(0.04, abs=0.02)  # shift^2 is the exact, unbinned index


def test_missing_values_are_a_bin_of_their_own() -> None:
    edges = (0.0,)
    full, half = count([-1.0, 1.0] * 50, edges), count([-1.0, 1.0] * 25 + [math.nan] * 50, edges)
    assert drift.psi_test(full, half).p_value < 1e-6
    assert drift.ks_binned(full, half).effect == 0


Comparison = Callable[[drift.Binned, drift.Binned], object]


@pytest.mark.parametrize(
    "measure", [drift.psi, drift.psi_test, drift.jensen_shannon, drift.ks_binned, drift.chi_square]
)
def test_counts_that_do_not_compare_are_refused(measure: Comparison) -> None:
    with pytest.raises(ValueError, match="lengths must be equal"):
        measure([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least one row"):
        measure([0, 0], [1, 2])
    with pytest.raises(ValueError, match="zero or more"):
        measure([1, -1], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        measure([1, math.nan], [1, 2])
    with pytest.raises(ValueError, match="received a mix"):
        measure(count([1.0], (0.0,)), [1, 2])
    with pytest.raises(ValueError, match="same edges"):
        measure(count([1.0], (0.0,)), count([1.0], (0.5,)))
