"""Losses by row, realised and expected: what performance monitors average, on the reference and live alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.core.records.models import Task
from keepwell.stats.performance import CLIP, brier_rows, log_loss_rows

Floats = npt.NDArray[np.float64]
STEPS = 50
PRECISION = 1e-9
PENALTY = 2.5
"""Ten rows of probability one half carry this much information."""


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """What a probability meant on the reference: log odds times ``slope`` plus ``intercept``.

    Two numbers rather than bins, because live probabilities may lie where the reference had none.
    """

    intercept: float
    slope: float

    def __call__(self, probabilities: Floats) -> Floats:
        """Give calibrated probabilities, shape (n,)."""
        return np.asarray(special.expit(self.intercept + self.slope * _log_odds(probabilities)))


def fit_calibrator(labels: Floats, probabilities: Floats) -> Calibrator:
    """Fit a calibrator on labelled rows by penalised likelihood; a handful of rows leaves it the identity.

    Weak at: miscalibration that is no line in log odds. labels, probabilities: shape (n,).
    Source: Platt 1999; Cox 1958. The penalty weighs a slope of 1 and an intercept of 0 like ten rows.
    """
    x = np.column_stack([np.ones(len(labels)), _log_odds(probabilities)])
    identity = np.array([0.0, 1.0])
    found = identity.copy()
    for _ in range(STEPS):
        p = special.expit(x @ found)
        gradient = x.T @ (labels - p) - PENALTY * (found - identity)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + PENALTY * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # Steps are bounded: far from the optimum Newton's may overshoot.
        found += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < PRECISION:
            break
    return Calibrator(intercept=float(found[0]), slope=float(found[1]))


def _log_odds(probabilities: Floats) -> Floats:
    p = np.clip(probabilities, CLIP, 1 - CLIP)
    return np.asarray(np.log(p) - np.log1p(-p))


def expected_loss_rows(outputs: Floats, calibrator: Calibrator | None) -> Floats:
    """Give the log loss to expect of each row before its label is known, shape (n,), in nats.

    outputs: probabilities, shape (n,) or (n, k). Blind to concept drift, see ``keepwell.stats.estimation``.
    """
    if outputs.ndim == 2:
        p = np.clip(outputs, CLIP, 1.0)
        return np.asarray(-(p * np.log(p)).sum(axis=1))
    f = np.clip(outputs, CLIP, 1 - CLIP)
    p = calibrator(outputs) if calibrator is not None else f
    return np.asarray(-(p * np.log(f) + (1 - p) * np.log1p(-f)))


def loss_table(
    task: Task, labels: Floats, outputs: Floats, calibrator: Calibrator | None
) -> dict[str, Floats]:
    """Give each row's losses by name, shapes (n,), for labelled rows.

    binary: ``log_loss``, ``brier``, ``calibration`` (probability minus label), ``expected_log_loss``,
    ``unexplained_log_loss`` (realised minus expected); multiclass: ``log_loss``, ``error_rate``,
    ``expected_log_loss``, ``unexplained_log_loss``; regression: ``absolute_error``, ``squared_error``, ``bias``.
    """
    if task == "regression":
        gap = outputs - labels
        return {"absolute_error": np.abs(gap), "squared_error": gap**2, "bias": gap}
    expected = expected_loss_rows(outputs, calibrator)
    if task == "binary":
        probabilities = np.clip(outputs, 0.0, 1.0)
        loss = np.asarray(log_loss_rows(labels, probabilities))
        return {
            "log_loss": loss,
            "brier": np.asarray(brier_rows(labels, probabilities)),
            "calibration": probabilities - labels,
            "expected_log_loss": expected,
            "unexplained_log_loss": loss - expected,
        }
    classes = labels.astype(np.int64)
    given = outputs[np.arange(len(labels)), np.clip(classes, 0, outputs.shape[1] - 1)]
    loss = -np.log(np.clip(given, CLIP, 1.0))
    return {
        "log_loss": loss,
        "error_rate": (outputs.argmax(axis=1) != classes).astype(np.float64),
        "expected_log_loss": expected,
        "unexplained_log_loss": loss - expected,
    }


def usable(task: Task, labels: Floats, outputs: Floats) -> npt.NDArray[np.bool_]:
    """Tell which rows can be scored, shape (n,): a known label of the task's kind and finite outputs."""
    good = np.isfinite(labels)
    good &= np.isfinite(outputs) if outputs.ndim == 1 else np.isfinite(outputs).all(axis=1)
    if task == "binary":
        good &= (labels == 0) | (labels == 1)
    if task == "multiclass" and outputs.ndim == 2:
        good &= (labels >= 0) & (labels < outputs.shape[1]) & (labels == np.floor(labels))
    return good
