"""Performance: how good were the predictions, now that the labels are there, against the reference?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from keepwell.core.records.models import Task
from keepwell.watch.clusters import Comparison
from keepwell.watch.monitors import Monitor
from keepwell.watch.readings import Reading, View
from keepwell.watch.reference import Reference

LOSS_TOLERANCE = 0.05
"""Share of the reference's loss by which it may rise before it counts."""
CALIBRATION_TOLERANCE = 0.02
"""Two points: what moves a decision with a threshold for about one row in fifty."""
ERROR_TOLERANCE = 0.02
SPREAD_TOLERANCE = 0.05
"""Bias of a regression that does not matter yet, as a share of the labels' standard deviation."""


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """One number to watch: the loss it averages, the tolerance beside the reference, and how it is shown."""

    name: str
    loss: str
    tolerance: Callable[[Reference], float]
    two_sided: bool = False
    shown: Callable[[float], float] = float


def _share(loss: str) -> Callable[[Reference], float]:
    return lambda reference: LOSS_TOLERANCE * abs(reference.losses[loss].mean)


def _root(value: float) -> float:
    return math.sqrt(max(value, 0.0))


_METRICS: dict[Task, tuple[_Metric, ...]] = {
    "binary": (
        _Metric(name="log_loss", loss="log_loss", tolerance=_share("log_loss")),
        _Metric(name="brier", loss="brier", tolerance=_share("brier")),
        _Metric(
            name="calibration",
            loss="calibration",
            tolerance=lambda _: CALIBRATION_TOLERANCE,
            two_sided=True,
        ),
        _Metric(
            name="unexplained_log_loss", loss="unexplained_log_loss", tolerance=_share("log_loss")
        ),
    ),
    "multiclass": (
        _Metric(name="log_loss", loss="log_loss", tolerance=_share("log_loss")),
        _Metric(name="error_rate", loss="error_rate", tolerance=lambda _: ERROR_TOLERANCE),
        _Metric(
            name="unexplained_log_loss", loss="unexplained_log_loss", tolerance=_share("log_loss")
        ),
    ),
    "regression": (
        _Metric(name="mae", loss="absolute_error", tolerance=_share("absolute_error")),
        # The square of 5% more is 10% more.
        _Metric(
            name="rmse",
            loss="squared_error",
            tolerance=lambda r: ((1 + LOSS_TOLERANCE) ** 2 - 1) * r.losses["squared_error"].mean,
            shown=_root,
        ),
        _Metric(
            name="bias",
            loss="bias",
            tolerance=lambda r: SPREAD_TOLERANCE * r.spread,
            two_sided=True,
        ),
    ),
}


def measure(view: View) -> list[Reading]:
    """Give the task's metrics, see ``keepwell.watch.losses`` for what they average.

    binary: ``log_loss``, ``brier``, ``calibration``, ``unexplained_log_loss``; multiclass: ``log_loss``,
    ``error_rate``, ``unexplained_log_loss``; regression: ``mae``, ``rmse``, ``bias``.
    """
    rows = len(view.labelled)
    if not rows:
        return [
            Reading(
                monitor=m.name, kind="performance", rows=0, value=None, message="no labelled rows"
            )
            for m in _METRICS[view.task]
        ]
    return [_reading(view, metric) for metric in _METRICS[view.task]]


def _reading(view: View, metric: _Metric) -> Reading:
    found = view.compared(view.losses[metric.loss], view.labelled.times, metric.loss)
    low, high = (metric.shown(end) for end in found.interval())
    limit: float | None = None
    score: float | None = None
    if view.reference is not None and found.reference is not None:
        limit, score = _beyond(found, metric, metric.tolerance(view.reference))
    reference = None if found.reference is None else metric.shown(found.reference)
    return Reading(
        monitor=metric.name,
        kind="performance",
        rows=len(view.labelled),
        value=metric.shown(found.mean),
        low=low,
        high=high,
        reference=reference,
        limit=None if limit is None else metric.shown(limit) if not metric.two_sided else limit,
        score=score,
        two_sided=metric.two_sided,
        message=f"{metric.name} {metric.shown(found.mean):.3f}"
        + ("" if reference is None else f", {reference:.3f} on the reference"),
    )


def _beyond(found: Comparison, metric: _Metric, tolerance: float) -> tuple[float, float]:
    reference = found.reference or 0.0
    if not metric.two_sided:
        limit = reference + tolerance
        return limit, found.score(limit)
    # What the reference was off by was accepted at its release: only what lies further from 0 is decay.
    if found.mean >= 0:
        limit = max(reference, 0.0) + tolerance
        return limit, found.score(limit, weight=float(reference > 0))
    limit = min(reference, 0.0) - tolerance
    return limit, -found.score(limit, weight=float(reference < 0), above=False)


MONITOR = Monitor(kind="performance", part="labels", measure=measure)
