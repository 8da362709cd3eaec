"""Promises of performance metrics: equal to scikit-learn's, invariant where they should be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats import performance

metrics = pytest.importorskip("sklearn.metrics")

ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 64).map(lambda k: k / 64)),
    ),
    min_size=2,
    max_size=60,
)
BOTH = ROWS.filter(lambda rows: len({label for label, _ in rows}) == 2)
Rows = list[tuple[int, float]]


@settings(deadline=None, max_examples=50)
@given(BOTH)
def test_binary_metrics_are_those_of_scikit_learn(rows: Rows) -> None:
    y, p = zip(*rows, strict=True)
    assert performance.roc_auc(y, p) == pytest.approx(metrics.roc_auc_score(y, p))
    assert performance.log_loss(y, p) == pytest.approx(metrics.log_loss(y, p), rel=1e-6)
    assert performance.brier(y, p) == pytest.approx(metrics.brier_score_loss(y, p))


@settings(deadline=None, max_examples=50)
@given(BOTH)
def test_auc_is_unchanged_by_an_increasing_transformation(rows: Rows) -> None:
    y, p = map(np.array, zip(*rows, strict=True))
    auc = performance.roc_auc(y, p)
    assert performance.roc_auc(y, np.exp(3 * p) - 7) == auc
    assert performance.roc_auc(y, p**3 + p) == auc
    assert performance.roc_auc(y, -p) == pytest.approx(1 - auc)
    assert performance.roc_auc(1 - y, p) == pytest.approx(1 - auc)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(1, 12))
def test_calibration_errors_are_bounded_and_ordered(rows: Rows, bins: int) -> None:
    y, p = zip(*rows, strict=True)
    whole = abs(performance.calibration_in_the_large(y, p))
    by_bin = performance.expected_calibration_error(y, p, bins=bins)
    assert -1e-12 <= whole <= by_bin + 1e-12 <= 1 + 1e-9
    assert performance.expected_calibration_error(y, p, bins=1) == pytest.approx(whole)


def test_calibration_error_is_small_for_honest_probabilities_and_large_for_sharpened_ones() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(2, 5, size=20_000)
    y = (rng.random(p.size) < p).astype(int)
    sharpened = p**2 / (p**2 + (1 - p) ** 2)
    assert performance.expected_calibration_error(y, p) < 0.015
    assert performance.expected_calibration_error(y, sharpened) > 0.05


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    y, f = rng.normal(size=300), rng.normal(size=300)
    assert performance.mean_absolute_error(y, f) == pytest.approx(metrics.mean_absolute_error(y, f))
    oracle = metrics.root_mean_squared_error(y, f)
    assert performance.root_mean_squared_error(y, f) == pytest.approx(oracle)
    assert performance.r2(y, f) == pytest.approx(metrics.r2_score(y, f))


def test_multiclass_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    p = rng.dirichlet([1, 2, 3], size=200)
    y = rng.integers(3, size=200)
    oracle = metrics.log_loss(y, p, labels=[0, 1, 2])
    assert performance.multiclass_log_loss(y, p) == pytest.approx(oracle)
    assert performance.accuracy(y, p.argmax(1)) == metrics.accuracy_score(y, p.argmax(1))


def test_losses_by_row_average_to_the_metric() -> None:
    y, p = [0, 1, 1], [0.2, 0.9, 0.4]
    assert performance.log_loss_rows(y, p).mean() == performance.log_loss(y, p)
    assert performance.brier_rows(y, p).mean() == performance.brier(y, p)
    assert performance.squared_error_rows(y, p).mean() == pytest.approx(performance.brier(y, p))


def test_a_sure_and_wrong_row_costs_a_finite_loss() -> None:
    assert performance.log_loss([1], [0.0]) == pytest.approx(36.04, abs=0.01)


def test_input_that_means_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"probabilities must be .* within \[0, 1\], .* 1.5"):
        performance.brier([0, 1], [0.1, 1.5])
    with pytest.raises(ValueError, match="labels must be labels 0 or 1, received 2"):
        performance.brier([0, 2], [0.1, 0.5])
    with pytest.raises(ValueError, match="labels=2, probabilities=3"):
        performance.log_loss([0, 1], [0.1, 0.5, 0.3])
    with pytest.raises(ValueError, match="finite, received 1 NaN"):
        performance.r2([0.0, np.nan], [0.1, 0.5])
    with pytest.raises(ValueError, match="both 0 and 1, received 2 times 1"):
        performance.roc_auc([1, 1], [0.1, 0.5])
    with pytest.raises(ValueError, match="at least 1"):
        performance.brier([], [])
    with pytest.raises(ValueError, match="targets must vary"):
        performance.r2([2.0, 2.0], [0.1, 0.5])
    with pytest.raises(ValueError, match="sum to 1"):
        performance.multiclass_log_loss([0, 1], [[0.5, 0.4], [0.5, 0.5]])
    with pytest.raises(ValueError, match="class numbers"):
        performance.multiclass_log_loss([0, 2], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="numbers"):
        performance.mean_absolute_error(["a"], [1.0])
