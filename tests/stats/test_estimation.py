"""Promises of label-free estimates: right under covariate shift, honest about their error, blind."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats import estimation, performance

Array = npt.NDArray[np.float64]
Estimate = Callable[[Array], estimation.EstimatedPerformance]
Realise = Callable[[Array, Array], float]


def _accuracy(y: Array, p: Array) -> float:
    return performance.accuracy(y, (p >= 0.5).astype(float))


PAIRS: list[tuple[Estimate, Realise]] = [
    (estimation.expected_brier, performance.brier),
    (estimation.expected_log_loss, performance.log_loss),
    (estimation.expected_accuracy, _accuracy),
    (estimation.expected_roc_auc, performance.roc_auc),
]
BY_NAME = pytest.mark.parametrize(
    ("estimate", "realise"), PAIRS, ids=["brier", "log_loss", "accuracy", "roc_auc"]
)


def _window(rng: np.random.Generator, shift: float, rows: int = 1500) -> Array:
    return np.asarray(1 / (1 + np.exp(-2 * rng.normal(shift, 1, size=rows))))


@BY_NAME
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_the_estimate_is_what_labels_say_later_also_after_a_covariate_shift(
    estimate: Estimate, realise: Realise, shift: float
) -> None:
    rng = np.random.default_rng(0)
    gaps, estimates = [], []
    for _ in range(250):
        p = _window(rng, shift)
        y = (rng.random(p.size) < p).astype(float)
        found = estimate(p)
        estimates.append(realise(y, p))
        gaps.append((realise(y, p) - found.estimate) / found.label_error)
        error = found.standard_error
    # Realised minus estimated, in label errors, is standard normal ...
    assert abs(np.mean(gaps)) < 0.25
    assert np.std(gaps) == pytest.approx(1, abs=0.15)
    # ... and the standard error is the spread of realised metrics over windows.
    assert np.std(estimates) == pytest.approx(error, rel=0.2)


@BY_NAME
def test_concept_drift_is_not_seen_without_labels_and_shows_as_a_gap_with_them(
    estimate: Estimate, realise: Realise
) -> None:
    rng = np.random.default_rng(1)
    p = _window(rng, 0.0)
    flipped = (rng.random(p.size) < 0.7 * p + 0.3 * (1 - p)).astype(float)
    found = estimate(p)
    assert abs(found.estimate - estimate(_window(rng, 0.0)).estimate) < 4 * found.standard_error
    assert abs(realise(flipped, p) - found.estimate) > 6 * found.label_error


def test_a_harder_population_is_seen_before_its_labels_come() -> None:
    rng = np.random.default_rng(2)
    before = estimation.expected_brier(_window(rng, -1.5))
    after = estimation.expected_brier(_window(rng, 0.0))
    assert after.estimate - before.estimate > 4 * np.hypot(
        before.standard_error, after.standard_error
    )


def test_the_models_answers_are_scored_under_the_calibrated_probabilities() -> None:
    p, answered = np.full(10, 0.3), np.full(10, 0.9)
    assert estimation.expected_brier(p, answered).estimate == pytest.approx(0.3 * 0.01 + 0.7 * 0.81)
    assert estimation.expected_accuracy(p, answered).estimate == pytest.approx(0.3)
    assert estimation.expected_log_loss(p, answered).estimate > 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)), min_size=2, max_size=12
    ).filter(lambda p: 0.01 < sum(p) < len(p) - 0.01)
)
def test_the_expected_auc_is_the_weighted_count_of_pairs(p: list[float]) -> None:
    pairs = [(a, b) for i, a in enumerate(p) for j, b in enumerate(p) if i != j]
    weight = sum(a * (1 - b) for a, b in pairs)
    if weight < 1e-6:
        return
    won = sum(a * (1 - b) * ((a > b) + (a == b) / 2) for a, b in pairs)
    assert estimation.expected_roc_auc(p).estimate == pytest.approx(won / weight, abs=1e-7)


def test_input_that_means_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="room for both labels"):
        estimation.expected_roc_auc([0.0, 0.0])
    with pytest.raises(ValueError, match="at least 2"):
        estimation.expected_brier([0.5])
    with pytest.raises(ValueError, match="predictions must be probabilities"):
        estimation.expected_brier([0.5, 0.5], [0.5, 2.0])
    with pytest.raises(ValueError, match="threshold"):
        estimation.expected_accuracy([0.5, 0.5], threshold=1.0)
