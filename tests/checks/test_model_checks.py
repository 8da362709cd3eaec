"""Checks of a model pass a good one and fail a known-bad one."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from keepwell.checks.model.limits import at_most
from keepwell.checks.model.quality import (
    beats_baseline,
    calibration,
    prediction_range,
    same_predictions,
    worst_slice,
)
from keepwell.checks.model.validation import ValidationRows
from keepwell.checks.model.value import kpi_gain
from keepwell.core.clock import HOUR
from keepwell.core.errors import InvalidInput

N = 4000


def rows(prediction=None, *, task="binary", label=None):
    draw = np.random.default_rng(1)
    chance = draw.uniform(0.05, 0.95, N)
    labels = (draw.random(N) < chance).astype(float) if label is None else label
    return ValidationRows(
        task=task,
        time=np.arange(N, dtype=np.int64) * HOUR,
        label=labels,
        prediction=chance if prediction is None else prediction(chance),
        baseline=np.full(N, 0.5),
        slices={"half": np.array(["a", "b"], dtype=object)[(np.arange(N) % 2)]},
    )


def test_a_model_that_knows_the_chances_passes():
    good = rows()
    assert beats_baseline(good).verdict == "pass"
    assert calibration(good, limit=0.05).verdict == "pass"
    assert worst_slice(good, minimum=200, calibration_limit=0.1, loss_ratio=1.0).verdict == "pass"
    msgspec.json.encode([beats_baseline(good), calibration(good, limit=0.05)])


def test_a_model_that_knows_nothing_does_not_beat_the_baseline():
    assert beats_baseline(rows(lambda c: np.full(N, 0.5))).verdict == "fail"
    assert beats_baseline(rows(lambda c: c[::-1])).verdict == "fail"


def test_probabilities_that_promise_too_much_are_not_calibrated():
    assert calibration(rows(lambda c: np.clip(c + 0.2, 0, 1)), limit=0.05).verdict == "fail"
    assert calibration(rows(task="regression"), limit=0.05).verdict == "waived"


def test_one_bad_slice_is_found_among_good_ones():
    def bad_in_b(chance):
        return np.where(np.arange(N) % 2 == 1, np.clip(chance + 0.3, 0, 1), chance)

    found = worst_slice(rows(bad_in_b), minimum=200, calibration_limit=0.1, loss_ratio=1.0)
    assert found.verdict == "fail"
    assert "half=b" in found.message
    assert "half=a" not in found.message
    assert (
        worst_slice(rows(bad_in_b), minimum=N, calibration_limit=0.1, loss_ratio=1.0).verdict
        == "waived"
    )


@pytest.mark.parametrize(
    ("values", "task", "verdict"),
    [
        ([0.0, 1.0], "binary", "pass"),
        ([0.0, 1.1], "binary", "fail"),
        ([-5.0, 9.0], "regression", "pass"),
        ([1.0, float("nan")], "regression", "fail"),
        ([], "binary", "inconclusive"),
    ],
)
def test_predictions_are_finite_and_probabilities_probabilities(values, task, verdict):
    assert prediction_range(np.array(values), task=task).verdict == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [([1.0, 2.0], "pass"), ([1.0, 2.1], "fail"), ([1.0], "fail"), ([1.0, float("nan")], "fail")],
)
def test_two_ways_to_the_same_predictions_are_equal_or_not(found, verdict):
    result = same_predictions(np.array(found), np.array([1.0, 2.0]), tolerance=1e-6, what="again")
    assert result.verdict == verdict


def test_limits_and_money_have_an_edge():
    assert at_most("latency", 5.0, 5.0, unit="ms").verdict == "pass"
    assert at_most("latency", 5.1, 5.0, unit="ms").verdict == "fail"
    assert at_most("latency", float("nan"), 5.0, unit="ms").verdict == "fail"
    draw = np.random.default_rng(2)
    gain: dict[str, Any] = {"clusters": np.arange(500), "unit": "EUR", "floor": 0.0}
    assert kpi_gain(draw.normal(1, 1, 500), np.zeros(500), **gain).verdict == "pass"
    assert kpi_gain(draw.normal(0, 1, 500) - 0.05, np.zeros(500), **gain).verdict == "fail"


def test_no_rows_are_nothing_to_judge_by():
    empty = np.array([])
    with pytest.raises(InvalidInput):
        ValidationRows(
            task="binary",
            time=np.array([], dtype=np.int64),
            label=empty,
            prediction=empty,
            baseline=empty,
            slices={},
        )
