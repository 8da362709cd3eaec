"""Promises of detectors: false alarms at least the run length apart, true ones soon."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats.detection import ShiftDetector, robust_z, step


def _steps_to_alarm(detector: ShiftDetector, series) -> float:
    for x in series:
        detector = step(detector, float(x))
        if detector.alarm:
            return detector.steps
    return math.inf


def test_false_alarms_of_standardised_windows_are_at_least_the_run_length_apart() -> None:
    rng = np.random.default_rng(0)
    start = ShiftDetector.standardised(average_run_length=50)
    # Cut at 400: can only make the mean smaller.
    runs = [min(_steps_to_alarm(start, rng.normal(size=400)), 400) for _ in range(150)]
    assert np.mean(runs) >= 50


def test_false_alarms_of_bounded_windows_are_at_least_the_run_length_apart() -> None:
    rng = np.random.default_rng(1)
    start = ShiftDetector.bounded(average_run_length=50, tolerance=0.1)
    runs = [min(_steps_to_alarm(start, rng.binomial(40, 0.1, 400) / 40), 400) for _ in range(150)]
    assert np.mean(runs) >= 50


def test_a_limit_of_two_standard_deviations_alarms_far_oftener() -> None:
    rng = np.random.default_rng(2)
    runs = [float(np.argmax(np.abs(rng.normal(size=2000)) > 2)) + 1 for _ in range(200)]
    assert np.mean(runs) < 50  # the known-bad control


@pytest.mark.parametrize(("shift", "windows"), [(0.5, 60), (1.0, 18), (3.0, 4)])
def test_a_shift_is_found_after_few_windows(shift: float, windows: int) -> None:
    rng = np.random.default_rng(3)
    start = ShiftDetector.standardised(average_run_length=1000)
    delays = []
    for _ in range(60):
        detector = start
        for x in rng.normal(size=20):
            detector = detector.step(float(x))
        if not detector.alarm:
            delays.append(_steps_to_alarm(detector, rng.normal(shift, 1, size=400)) - 20)
    assert np.median(delays) <= windows


def test_a_doubled_error_rate_is_found_after_few_windows() -> None:
    rng = np.random.default_rng(4)
    start = ShiftDetector.bounded(average_run_length=1000, tolerance=0.05)
    delays = [_steps_to_alarm(start, rng.binomial(100, 0.1, 2000) / 100) for _ in range(30)]
    assert np.median(delays) <= 60


def test_a_tolerated_offset_does_not_alarm_where_it_else_would() -> None:
    rng = np.random.default_rng(5)
    series = rng.normal(0.4, 1, size=(60, 200))
    strict = ShiftDetector.standardised(average_run_length=500)
    lenient = ShiftDetector.standardised(average_run_length=500, tolerance=0.4)
    assert np.mean([_steps_to_alarm(strict, row) < 200 for row in series]) > 0.5
    assert np.mean([_steps_to_alarm(lenient, row) < 200 for row in series]) < 0.3


def test_a_restarted_detector_has_forgotten() -> None:
    start = ShiftDetector.standardised(average_run_length=100)
    alarmed = start.step(9.0)
    assert alarmed.alarm
    assert alarmed.restarted() == start
    assert not start.alarm


def test_scores_against_short_references_seldom_pass_where_plain_z_often_do() -> None:
    rng = np.random.default_rng(6)
    results = [robust_z(rng.normal(size=1), rng.normal(size=15)) for _ in range(3000)]
    plain = np.mean([abs(result.z[0]) > 3 for result in results])
    scored = np.mean([abs(result.score[0]) > 3 for result in results])
    assert scored <= 0.005  # 0.0027 for a normal
    assert plain > 0.01  # the known-bad control


def test_one_odd_reference_window_does_not_widen_the_scale() -> None:
    reference = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98]
    clean = robust_z([2.0], reference)
    odd = robust_z([2.0], [*reference, 50.0])
    assert odd.scale < 2 * clean.scale
    assert odd.z[0] > 8


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(-1e6, 1e6)), max_size=8),
    st.lists(st.one_of(st.just(0.0), st.floats(-1e6, 1e6)), min_size=3, max_size=12),
)
def test_scores_are_finite_and_never_further_out_than_z(
    values: list[float], reference: list[float]
) -> None:
    result = robust_z(values, reference)
    assert len(result.score) == len(values)
    for z, score in zip(result.z, result.score, strict=True):
        assert math.isfinite(score)
        assert abs(score) <= abs(z)
        assert not math.isnan(z)


def test_equal_reference_windows_give_zero_or_the_cut() -> None:
    result = robust_z([1.0, 2.0, 0.0], [1.0, 1.0, 1.0])
    assert result.z == (0.0, math.inf, -math.inf)
    assert result.score == (0.0, 8.0, -8.0)


def test_input_that_means_nothing_is_refused_by_name() -> None:
    bounded = ShiftDetector.bounded(average_run_length=100, tolerance=0.1)
    with pytest.raises(ValueError, match=r"x must be within \[0, 1\], received 1.5"):
        bounded.step(1.5)
    with pytest.raises(ValueError, match="x must be finite"):
        ShiftDetector.standardised(average_run_length=100).step(math.nan)
    with pytest.raises(ValueError, match="average_run_length"):
        ShiftDetector.standardised(average_run_length=1.0)
    with pytest.raises(ValueError, match="tolerance"):
        ShiftDetector.bounded(average_run_length=100, tolerance=1.0)
    with pytest.raises(ValueError, match="reference must have at least 3"):
        robust_z([1.0], [1.0, 2.0])
