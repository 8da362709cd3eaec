"""Promises of slices: the harmed one is found, chance ones are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats.multiplicity import benjamini_hochberg, holm
from keepwell.stats.slices import evaluate_slices


def test_chance_rarely_names_a_harmed_slice_among_twenty() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 40)
    adjusted = unadjusted = 0
    for _ in range(120):
        report = evaluate_slices(rng.exponential(size=groups.size), groups)
        adjusted += bool(report.harmed)
        unadjusted += any(each.p_value / 20 < 0.05 for each in report.slices)
    assert adjusted / 120 <= 0.10  # 0.05 and the skew of small slices
    assert unadjusted / 120 > 0.3  # the known-bad control


def test_the_slice_that_is_served_worse_is_found_and_small_ones_are_named() -> None:
    rng = np.random.default_rng(1)
    groups = np.array(["JFK"] * 400 + ["EWR"] * 400 + ["LGA"] * 400 + ["XXX"] * 5)
    report = evaluate_slices(rng.exponential(size=1205) * np.where(groups == "LGA", 1.5, 1), groups)
    assert report.worst is not None
    assert report.worst.name == "LGA"
    assert [each.name for each in report.harmed] == ["LGA"]
    assert report.too_small == ("XXX",)
    assert report.worst.lower < report.worst.mean < report.worst.upper
    assert report.worst.gap == pytest.approx(0.5, abs=0.15)


def test_a_bad_day_is_not_a_bad_slice_when_days_are_clusters() -> None:
    rng = np.random.default_rng(2)
    day = np.repeat(np.arange(30), 40)
    airport = day % 3  # each airport is seen on days of its own
    alarms = np.zeros(2)
    for _ in range(100):
        losses = rng.normal(size=30)[day] + rng.normal(size=day.size)
        alarms += [
            bool(evaluate_slices(losses, airport, clusters=day).harmed),
            bool(evaluate_slices(losses, airport).harmed),
        ]
    assert alarms[0] / 100 <= 0.13
    assert alarms[1] / 100 > 0.5  # the known-bad control


def test_names_of_slices_are_the_callers_own_whatever_the_array_holds_them_in() -> None:
    losses = np.arange(80.0)
    for keys in (["a", "b"] * 40, np.array(["a", "b"] * 40, dtype=object), [1, 2] * 40):
        report = evaluate_slices(losses, keys)
        assert {each.name for each in report.slices} == set(keys)
        assert {type(each.name) for each in report.slices} <= {str, int}


def test_nothing_is_judged_where_nothing_is_large_enough() -> None:
    report = evaluate_slices([1.0, 2.0, 3.0], ["a", "b", "b"])
    assert report.worst is None
    assert report.harmed == ()
    assert report.too_small == ("a", "b")


def test_one_slice_that_is_everything_has_no_rest_to_be_worse_than() -> None:
    report = evaluate_slices(np.arange(50.0), ["all"] * 50)
    assert report.slices[0].p_value == 1
    assert report.slices[0].gap == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.sampled_from([0.0, 0.05, 1.0]), st.floats(0, 1)), max_size=20))
def test_adjusting_keeps_order_and_never_lowers(p: list[float]) -> None:
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        assert all(a >= b - 1e-15 for a, b in zip(adjusted, p, strict=True))
        assert all(0 <= a <= 1 for a in adjusted)
        order = np.argsort(p, kind="stable")
        assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_benjamini_hochberg_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    p = np.random.default_rng(3).random(25)
    assert benjamini_hochberg(p) == pytest.approx(tuple(stats.false_discovery_control(p)))


def test_a_p_value_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p_values must be .* within \[0, 1\]"):
        holm([0.1, 1.2])
