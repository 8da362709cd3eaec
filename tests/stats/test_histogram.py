"""Promises of histograms: nothing is lost, parts add up, frequent values stand alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats.histogram import Histogram, count, edges_from_reference, merge

EDGES = (-1.0, 0.0, 0.5, 3.0)
AWKWARD = st.sampled_from([0.0, -0.0, 0.5, -1.0, 3.0, math.nan, math.inf, -math.inf, 1e308, 5e-324])
VALUES = st.lists(st.one_of(AWKWARD, st.floats()), max_size=30)
FINITE = st.lists(
    st.one_of(st.just(0.0), st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)),
    min_size=1,
    max_size=60,
)


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_every_value_is_counted_once(values: list[float]) -> None:
    histogram = count(values, EDGES)
    assert histogram.total == len(values)
    assert histogram.missing == sum(math.isnan(value) for value in values)


@settings(deadline=None, max_examples=50)
@given(VALUES, VALUES, VALUES)
def test_merging_parts_in_any_order_is_counting_the_whole(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = (count(part, EDGES) for part in (a, b, c))
    whole = count(a + b + c, EDGES)
    assert merge(merge(x, y), z) == merge(x, merge(y, z)) == merge(merge(z, x), y) == whole


@settings(deadline=None, max_examples=50)
@given(FINITE, st.integers(2, 12))
def test_no_bin_of_the_reference_is_empty_unless_it_is_constant(
    values: list[float], bins: int
) -> None:
    histogram = count(values, edges_from_reference(values, bins))
    if len(set(values)) > 1:
        assert min(histogram.counts) > 0
    else:
        assert histogram.counts == (len(values), 0)


def test_a_point_mass_gets_a_bin_of_its_own() -> None:
    rain = np.concatenate([np.zeros(700), np.linspace(0.1, 9, 300)])
    histogram = count(rain, edges_from_reference(rain))
    assert histogram.counts[0] == 700
    assert count([0.0], histogram.edges).counts[0] == 1
    assert count([1e-9], histogram.edges).counts[0] == 0


def test_a_point_mass_in_the_middle_gets_a_bin_of_its_own() -> None:
    values = np.concatenate([np.linspace(-9, -1, 200), np.full(300, 2.0), np.linspace(3, 9, 200)])
    assert 300 in count(values, edges_from_reference(values)).counts


def test_values_without_ties_are_cut_into_equal_shares() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    histogram = count(values, edges_from_reference(values))
    assert histogram.counts == (100,) * 10


@pytest.mark.parametrize(
    ("edges", "counts"),
    [((), (1,)), ((1.0, 1.0), (0, 0, 0)), ((math.nan,), (0, 0)), ((1.0,), (1,))],
)
def test_a_histogram_that_cannot_be_is_refused(
    edges: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="edges"):
        Histogram(edges=edges, counts=counts)


def test_a_reference_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one finite value"):
        edges_from_reference([math.nan, math.inf])


def test_histograms_of_different_edges_are_not_merged() -> None:
    with pytest.raises(ValueError, match="edges must be the same"):
        merge(count([1.0], (0.0,)), count([1.0], (0.5,)))
