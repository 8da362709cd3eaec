"""Promises of the difference of two arms, plain and with a covariate."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats._normal_mixture import Side
from keepwell.stats.confidence_sequence import ConfidenceSequence
from keepwell.stats.cuped import cuped, cuped_difference
from keepwell.stats.difference_sequence import ArmSums, DifferenceSequence

ROWS = st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.one_of(st.just(0.0), st.floats(-1e3, 1e3))),
    min_size=2,
    max_size=40,
)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(0, 40))
def test_sums_in_batches_are_those_of_all_rows(rows, cut) -> None:
    y, x = np.array(rows).T
    sums = ArmSums().update(y[:cut], x[:cut]).update(y[cut:], x[cut:])
    assert sums.count == y.size
    assert sums.mean == pytest.approx(y.mean(), abs=1e-9)
    near: dict[str, Any] = {"rel": 1e-9, "abs": 1e-6}
    assert sums.squares == pytest.approx(((y - y.mean()) ** 2).sum(), **near)
    assert sums.covariate_squares == pytest.approx(((x - x.mean()) ** 2).sum(), **near)
    assert sums.products == pytest.approx(((y - y.mean()) * (x - x.mean())).sum(), **near)


def test_a_large_mean_costs_no_digits() -> None:
    rng = np.random.default_rng(0)
    y = 1e9 + rng.normal(size=1000)
    sums = ArmSums()
    for batch in np.split(y, 20):
        sums = sums.update(batch)
    assert sums.squares / 999 == pytest.approx(np.var(y - 1e9, ddof=1), rel=1e-6)


def test_it_meets_the_sequence_of_one_mean_when_the_other_arm_is_known() -> None:
    # Control without noise and with as many units: twice the units, all the variance in one arm.
    rows = np.random.default_rng(1).normal(0.2, 1.0, size=4000)
    pair = DifferenceSequence(alpha=0.05, tuned_for=8000).update(
        treatment=rows, control=np.zeros(4000)
    )
    alone = ConfidenceSequence(alpha=0.05, tuned_for=4000).update(rows)
    assert pair.estimate == pytest.approx(alone.mean)
    assert pair.radius == pytest.approx(alone.radius, rel=1e-3)


def test_peeking_at_every_pair_keeps_the_rate_where_a_z_test_does_not() -> None:
    rng = np.random.default_rng(2)
    ours = naive = 0
    for _ in range(60):
        a, b = rng.exponential(size=(2, 300))
        sequence = DifferenceSequence(alpha=0.05, tuned_for=400)
        missed = peeked = False
        for start in range(0, 300, 3):
            sequence = sequence.update(treatment=a[start : start + 3], control=b[start : start + 3])
            missed |= sequence.excludes(0.0)
            if sequence.treatment.count >= 30:
                peeked |= abs(sequence.estimate) > 1.96 * sequence.standard_error
        ours += missed
        naive += peeked
    assert ours <= 5
    assert naive >= 10  # the known-bad control


def test_a_covariate_shrinks_the_interval_by_its_correlation() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(size=20_000)
    value = 0.8 * before + 0.6 * rng.normal(size=20_000)
    arms: dict[str, Any] = {"treatment": value[:10_000] + 0.035, "control": value[10_000:]}
    plain = DifferenceSequence(alpha=0.05, tuned_for=20_000).update(**arms)
    adjusted = DifferenceSequence(alpha=0.05, tuned_for=20_000).update(
        **arms, treatment_covariate=before[:10_000], control_covariate=before[10_000:]
    )
    assert adjusted.radius / plain.radius == pytest.approx(0.6, rel=0.02)
    assert adjusted.theta == pytest.approx(0.8, abs=0.02)
    assert adjusted.excludes(0.0)
    assert not plain.excludes(0.0)
    fixed = cuped_difference(
        **arms, treatment_covariate=before[:10_000], control_covariate=before[10_000:]
    )
    assert fixed.estimate == pytest.approx(adjusted.estimate)
    assert adjusted.lower < fixed.lower  # one look is narrower than all looks
    assert cuped(value, before).variance_left == pytest.approx(0.36, abs=0.02)


def test_a_covariate_that_does_not_vary_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=100)
    arms = {"treatment": y[:50], "control": y[50:]}
    plain = DifferenceSequence(alpha=0.05, tuned_for=100).update(**arms)
    flat = DifferenceSequence(alpha=0.05, tuned_for=100).update(
        **arms, treatment_covariate=np.full(50, 7.0), control_covariate=np.full(50, 7.0)
    )
    assert flat.radius == plain.radius
    fitted = cuped(y, np.full(100, 7.0))
    assert (fitted.theta, fitted.variance_left) == (0.0, 1.0)
    assert fitted.apply(y, np.full(100, 7.0)).tolist() == y.tolist()


def test_one_side_is_tighter_and_few_or_equal_rows_prove_nothing() -> None:
    rng = np.random.default_rng(5)
    arms = {"treatment": rng.normal(size=200), "control": rng.normal(size=200)}
    both, lower = (
        DifferenceSequence(alpha=0.05, tuned_for=400, side=side).update(**arms)
        for side in ("both", "lower")
    )
    assert both.lower < lower.lower
    assert lower.upper == math.inf
    few = DifferenceSequence(alpha=0.05, tuned_for=400).update(treatment=[1.0], control=[2.0, 3.0])
    assert few.lower == -math.inf
    equal = few.update(treatment=np.ones(99), control=np.ones(99) * 2)
    assert (
        not DifferenceSequence(alpha=0.05, tuned_for=400)
        .update(treatment=np.ones(99), control=np.ones(99))
        .excludes(5.0)
    )
    assert equal.estimate < 0


@pytest.mark.parametrize("side", ["both", "lower", "upper"])
def test_evidence_reaches_its_limit_where_the_bounds_end(side: Side) -> None:
    rng = np.random.default_rng(6)
    alone = ConfidenceSequence(alpha=0.05, tuned_for=200, side=side).update(rng.normal(size=200))
    pair = DifferenceSequence(alpha=0.05, tuned_for=400, side=side).update(
        treatment=rng.normal(size=150), control=rng.normal(size=250)
    )
    for sequence in (alone, pair):
        for bound in (sequence.lower, sequence.upper):
            if math.isfinite(bound):
                assert sequence.log_evidence(bound) == pytest.approx(math.log(20))
        middle = sequence.mean if sequence is alone else pair.estimate
        assert sequence.log_evidence(middle) < 0
    wrong = alone.mean + 9 if side == "lower" else alone.mean - 9
    assert (alone.log_evidence(wrong) == -math.inf) is (side != "both")
    assert DifferenceSequence(alpha=0.05, tuned_for=9).log_evidence() == 0


def test_input_that_means_nothing_is_refused_by_name() -> None:
    start = DifferenceSequence(alpha=0.05, tuned_for=100)
    with pytest.raises(ValueError, match="both arms or for neither"):
        start.update(treatment=[1.0], control=[1.0], treatment_covariate=[1.0])
    with pytest.raises(ValueError, match="lengths"):
        start.update(
            treatment=[1.0], control=[1.0], treatment_covariate=[1.0, 2.0], control_covariate=[1.0]
        )
    with pytest.raises(ValueError, match="finite"):
        start.update(treatment=[math.nan], control=[1.0])
    with pytest.raises(ValueError, match="tuned_for"):
        DifferenceSequence(alpha=0.05, tuned_for=0)
    with pytest.raises(ValueError, match="first_look"):
        DifferenceSequence(alpha=0.05, tuned_for=9, first_look=0)
    with pytest.raises(ValueError, match="treatment"):
        cuped_difference(
            [1.0], [1.0, 2.0, 3.0], treatment_covariate=[1.0], control_covariate=[1.0, 2.0, 3.0]
        )
