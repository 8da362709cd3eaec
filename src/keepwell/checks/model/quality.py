"""Is it better than the rule it replaces, honest in its probabilities, and so in every slice?"""

from __future__ import annotations

import numpy as np

from keepwell.checks.model.validation import Floats, ValidationRows
from keepwell.core.records.evidence import CheckResult
from keepwell.stats.intervals import clustered_mean_interval
from keepwell.stats.performance import expected_calibration_error


def beats_baseline(rows: ValidationRows) -> CheckResult:
    """Is the loss lower than the baseline's with the whole 95% interval, clustered by day?"""
    difference = rows.loss(rows.baseline) - rows.loss(rows.prediction)
    interval = clustered_mean_interval(difference, rows.days)
    name = "squared error" if rows.task == "regression" else "log loss"
    return CheckResult(
        check="beats the baseline",
        verdict="pass" if interval.lower > 0 else "fail",
        message=(
            f"its {name} is {interval.estimate:.5g} lower than the baseline's"
            f" (95% interval {interval.lower:.5g} to {interval.upper:.5g}, {len(rows):,} rows)"
        ),
        measured={
            "gain": interval.estimate,
            "low": interval.lower,
            "high": interval.upper,
            "loss": float(np.mean(rows.loss(rows.prediction))),
            "baseline_loss": float(np.mean(rows.loss(rows.baseline))),
            "rows": len(rows),
        },
        limits={"low": 0.0},
    )


def calibration(rows: ValidationRows, *, limit: float) -> CheckResult:
    """Do probabilities mean what they say? Expected calibration error over ten bins (binary tasks)."""
    if rows.task != "binary":
        return CheckResult(
            check="calibration",
            verdict="waived",
            message=f"a {rows.task} model states no probability of one event",
        )
    error = expected_calibration_error(rows.label, np.clip(rows.prediction, 0, 1))
    return CheckResult(
        check="calibration",
        verdict="pass" if error <= limit else "fail",
        message=f"expected calibration error {error:.4f}, limit {limit:.4f}",
        measured={"calibration_error": error},
        limits={"calibration_error": limit},
    )


def worst_slice(
    rows: ValidationRows, *, minimum: int, calibration_limit: float, loss_ratio: float
) -> CheckResult:
    """Is there a slice in which it is miscalibrated, or clearly worse than the baseline?

    A slice counts from ``minimum`` rows on. It fails where the mean prediction is further than
    ``calibration_limit`` from the mean label (binary), or where the baseline's loss times ``loss_ratio`` is
    lower beyond a 99% interval (many slices are looked at, so one in a hundred is asked for).
    """
    problems: list[str] = []
    judged = 0
    worst = 0.0
    gain = loss_ratio * rows.loss(rows.baseline) - rows.loss(rows.prediction)
    for column, values in rows.slices.items():
        for value in np.unique(values.astype(str)):
            own = values.astype(str) == value
            if own.sum() < minimum:
                continue
            judged += 1
            if rows.task == "binary":
                gap = float(np.mean(rows.prediction[own]) - np.mean(rows.label[own]))
                worst = max(worst, abs(gap))
                if abs(gap) > calibration_limit:
                    problems.append(f"{column}={value}: predicts {gap:+.3f} beside the truth")
            days = rows.days[own]
            if len(np.unique(days)) >= 5:
                interval = clustered_mean_interval(gain[own], days, level=0.99)
                if interval.upper < 0:
                    problems.append(f"{column}={value}: loss worse than the baseline's allows")
    if not judged:
        return CheckResult(
            check="worst slice",
            verdict="waived",
            message=f"no slice has {minimum} rows or more",
            limits={"rows": minimum},
        )
    return CheckResult(
        check="worst slice",
        verdict="fail" if problems else "pass",
        message="; ".join(problems)
        if problems
        else f"{judged} slices hold; largest distance of mean prediction and label {worst:.3f}",
        measured={"slices": judged, "worst_calibration": worst, "problems": len(problems)},
        limits={"calibration": calibration_limit, "loss_ratio": loss_ratio, "rows": minimum},
    )


def prediction_range(predictions: Floats, *, task: str, what: str = "predictions") -> CheckResult:
    """Are all predictions finite, and probabilities within [0, 1]?"""
    values = np.asarray(predictions, dtype=np.float64)
    broken = int(np.size(values) - np.isfinite(values).sum())
    outside = 0
    if task != "regression":
        finite = values[np.isfinite(values)]
        outside = int(((finite < 0) | (finite > 1)).sum())
    if not np.size(values):
        return CheckResult(
            check="prediction range", verdict="inconclusive", message="no predictions"
        )
    return CheckResult(
        check="prediction range",
        verdict="fail" if broken or outside else "pass",
        message=f"{np.size(values):,} {what}: {broken} not finite, {outside} outside [0, 1]",
        measured={"values": int(np.size(values)), "not_finite": broken, "outside": outside},
        limits={"not_finite": 0, "outside": 0},
    )


def same_predictions(
    found: Floats, expected: Floats, *, tolerance: float, what: str
) -> CheckResult:
    """Are two ways to the same predictions equal within a tolerance?"""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not len(b):
        return CheckResult(check=what, verdict="inconclusive", message="nothing to compare")
    if a.shape != b.shape:
        return CheckResult(
            check=what, verdict="fail", message=f"shape {a.shape} instead of {b.shape}"
        )
    worst = float(np.max(np.abs(a - b)))
    return CheckResult(
        check=what,
        verdict="pass" if worst <= tolerance else "fail",
        message=f"{len(b):,} rows, largest difference {worst:.2g}, tolerance {tolerance:.2g}",
        measured={"rows": len(b), "largest_difference": worst},
        limits={"largest_difference": tolerance},
    )
