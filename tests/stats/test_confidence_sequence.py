"""Promises of confidence sequences: they hold at every look, alone, one-sided and by cluster."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats._normal_mixture import Side
from keepwell.stats.confidence_sequence import ClusterConfidenceSequence, ConfidenceSequence
from keepwell.stats.intervals import cluster_totals, mean_interval

ROWS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 1e6]), st.floats(-1e3, 1e3)), min_size=3, max_size=60
)


def _ever_wrong(draw, *, side: Side, sequences: int = 120, looks: int = 500) -> tuple[float, float]:
    """Share of sequences that ever miss a true mean of 0: ours, and a t test read at each look."""
    rng = np.random.default_rng(11)
    ours = naive = 0
    for _ in range(sequences):
        rows = draw(rng, looks)
        sequence = ConfidenceSequence(alpha=0.05, tuned_for=300, side=side, first_look=10)
        missed = peeked = False
        for row in rows:
            sequence = sequence.update([row])
            missed |= sequence.excludes(0.0)
            if sequence.count >= 10:
                error = math.sqrt(sequence.squares / (sequence.count - 1) / sequence.count)
                peeked |= abs(sequence.mean) > 1.96 * error
        ours += missed
        naive += peeked
    return ours / sequences, naive / sequences


def test_peeking_after_every_observation_keeps_the_false_positive_rate() -> None:
    ours, naive = _ever_wrong(lambda rng, n: rng.normal(size=n), side="both")
    assert ours <= 0.05
    assert naive > 0.20  # the known-bad control


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_one_sided_bounds_keep_the_rate_for_differences_of_paired_losses(side: Side) -> None:
    def differences(rng, n):
        return rng.exponential(size=n) - rng.exponential(size=n)

    ours, naive = _ever_wrong(differences, side=side, sequences=60)
    assert ours <= 0.07  # 4 of 60
    assert naive > 0.20


def test_few_rows_are_exact_for_normal_rows_where_a_normal_bound_fails() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1200, 12))
    missed = plain = 0
    for rows in x:
        wrong = [False, False]
        for n in range(2, 13):
            sequence = ConfidenceSequence(alpha=0.05, tuned_for=6, first_look=2).update(rows[:n])
            wrong[0] |= sequence.excludes(0.0)
            # The asymptotic formula with c = 2, as if twelve rows were many.
            y = (n + 2) / 2
            radius = rows[:n].std(ddof=1) * math.sqrt(
                2 * y / (y - 1) / n * math.log(math.sqrt(y) / 0.05)
            )
            wrong[1] |= abs(rows[:n].mean()) > radius
        missed += wrong[0]
        plain += wrong[1]
    assert missed / 1200 <= 0.055
    assert plain / 1200 > 0.08  # the known-bad control


def test_the_limit_is_the_published_asymptotic_confidence_sequence() -> None:
    n, alpha = 100_000, 0.05
    rows = np.random.default_rng(2).normal(size=n)
    sequence = ConfidenceSequence(alpha=alpha, tuned_for=n).update(rows)
    # 2103.06476, equation (9), with its approximation of the best rho.
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / n
    y = n * rho2 + 1
    published = rows.std() * math.sqrt(2 * y / (n**2 * rho2) * math.log(math.sqrt(y) / alpha))
    assert sequence.radius == pytest.approx(published, rel=0.005)


def test_the_bound_is_narrowest_where_it_was_tuned_and_holds_up_around() -> None:
    def radius(tuned_for: float) -> float:
        return ConfidenceSequence.from_sums(
            alpha=0.05, tuned_for=tuned_for, count=900, total=0.0, total_of_squares=900.0
        ).radius

    assert radius(900) < min(radius(600), radius(1350))
    assert max(radius(300), radius(2700)) < 1.1 * radius(900)


def test_one_side_is_tighter_than_two_and_both_are_wider_than_one_look() -> None:
    rows = np.random.default_rng(3).normal(size=400)
    both = ConfidenceSequence(alpha=0.05, tuned_for=400).update(rows)
    lower = ConfidenceSequence(alpha=0.05, tuned_for=400, side="lower").update(rows)
    assert both.lower < lower.lower < mean_interval(rows).lower
    assert lower.upper == math.inf


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(0, 60))
def test_batches_single_rows_and_kept_sums_give_the_same_bounds(
    rows: list[float], cut: int
) -> None:
    start = ConfidenceSequence(alpha=0.1, tuned_for=20, first_look=2)
    whole = start.update(rows)
    halves = start.update(rows[:cut]).update(rows[cut:])
    summed = ConfidenceSequence.from_sums(
        alpha=0.1,
        tuned_for=20,
        first_look=2,
        count=len(rows),
        total=math.fsum(rows),
        total_of_squares=math.fsum(row * row for row in rows),
    )
    assert halves.count == whole.count == summed.count
    assert halves.mean == pytest.approx(whole.mean, abs=1e-6)
    assert halves.squares == pytest.approx(whole.squares, rel=1e-6, abs=1e-6)
    assert summed.squares == pytest.approx(whole.squares, rel=1e-4, abs=1e-2)
    assert start.count == 0


def test_equal_rows_prove_nothing() -> None:
    sequence = ConfidenceSequence(alpha=0.05, tuned_for=100).update([0.0] * 500)
    assert not sequence.excludes(1.0)
    clusters = ClusterConfidenceSequence(alpha=0.05, tuned_for=100).update([2.0] * 50, [4] * 50)
    assert clusters.lower == -math.inf


def _clustered(rng: np.random.Generator, days: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = rng.integers(10, 40, size=days)
    totals = sizes * rng.normal(size=days) + np.sqrt(sizes) * rng.normal(size=days)
    return totals, sizes


def test_looking_after_every_day_keeps_the_rate_when_rows_of_a_day_are_correlated() -> None:
    rng = np.random.default_rng(4)
    ours = by_rows = 0
    for _ in range(160):
        totals, sizes = _clustered(rng, 60)
        sequence = ClusterConfidenceSequence(alpha=0.05, tuned_for=30)
        rows = ConfidenceSequence(alpha=0.05, tuned_for=750)
        missed = peeked = False
        for total, size in zip(totals, sizes, strict=True):
            sequence = sequence.update([total], [size])
            missed |= sequence.excludes(0.0)
            own = rng.normal(size=size)
            rows = rows.update(own - own.mean() + total / size)
            peeked |= rows.excludes(0.0)
        ours += missed
        by_rows += peeked
    assert ours / 160 <= 0.06
    assert by_rows / 160 > 0.3  # the known-bad control: rows taken as independent


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(-1e4, 1e4))
def test_cluster_bounds_are_where_the_martingale_on_deviations_crosses(
    seed: int, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    totals, sizes = _clustered(rng, 25)
    totals = totals + offset * sizes
    sequence = ClusterConfidenceSequence(alpha=0.05, tuned_for=25).update(totals, sizes)
    assert sequence.mean == pytest.approx(totals.sum() / sizes.sum(), abs=1e-6)

    def one_row_each(candidate: float) -> ConfidenceSequence:
        deviations = totals - candidate * sizes
        return ConfidenceSequence(alpha=0.05, tuned_for=25, first_look=5).update(deviations)

    for bound, outward in ((sequence.lower, -1), (sequence.upper, 1)):
        step = 1e-3 * (sequence.upper - sequence.lower)
        assert one_row_each(bound + outward * step).excludes(0.0)
        assert not one_row_each(bound - outward * step).excludes(0.0)


def test_days_given_one_by_one_or_together_give_the_same_bounds() -> None:
    totals, sizes = _clustered(np.random.default_rng(5), 20)
    start = ClusterConfidenceSequence(alpha=0.05, tuned_for=20, side="lower")
    together = start.update(totals, sizes)
    apart = start.update(totals[:7], sizes[:7]).update(totals[7:], sizes[7:])
    assert apart.lower == pytest.approx(together.lower)
    summed = cluster_totals([1.0, 2.0, 5.0], ["a", "a", "b"])
    assert start.update(summed.totals, summed.sizes).size == 3


def test_a_true_improvement_is_proven_within_days() -> None:
    rng = np.random.default_rng(6)
    sequence = ClusterConfidenceSequence(alpha=0.05, tuned_for=20, side="upper")
    while not sequence.excludes(0.0):
        sequence = sequence.update([100 * rng.normal(-0.5, 0.5)], [100])
    assert sequence.clusters < 40


def test_input_that_means_nothing_is_refused_by_name() -> None:
    for bad, name in (
        ({"alpha": 5.0, "tuned_for": 9}, "alpha"),
        ({"alpha": 0.05, "tuned_for": 1}, "tuned_for"),
        ({"alpha": 0.05, "tuned_for": 9, "side": "left"}, "side"),
        ({"alpha": 0.05, "tuned_for": 9, "first_look": 1}, "first_look"),
    ):
        for kind in (ConfidenceSequence, ClusterConfidenceSequence):
            with pytest.raises(ValueError, match=name):
                kind(**bad)
    with pytest.raises(ValueError, match="finite"):
        ConfidenceSequence(alpha=0.05, tuned_for=9).update([math.nan])
    with pytest.raises(ValueError, match="sizes must be positive"):
        ClusterConfidenceSequence(alpha=0.05, tuned_for=9).update([1.0], [0])
    with pytest.raises(ValueError, match="total_of_squares"):
        ConfidenceSequence.from_sums(
            alpha=0.05, tuned_for=9, count=2, total=4.0, total_of_squares=1.0
        )
