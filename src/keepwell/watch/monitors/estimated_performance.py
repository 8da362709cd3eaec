"""Estimated performance: how good should the predictions be, told before any label is there?"""

from __future__ import annotations

import numpy as np

from keepwell.watch.losses import expected_loss_rows
from keepwell.watch.monitors import Monitor
from keepwell.watch.readings import Reading, View

TOLERANCE = 0.05
"""Share of the reference's loss by which it may rise before it counts."""


def measure(view: View) -> list[Reading]:
    """Give ``estimated_log_loss`` for classes; numbers give no such estimate. Blind to concept drift."""
    if view.task == "regression":
        return []
    rows = view.rows
    finite = np.isfinite(rows.outputs)
    good = finite if finite.ndim == 1 else finite.all(axis=1)
    if not good.any():
        return [
            Reading(
                monitor="estimated_log_loss", kind="estimate", rows=0, value=None, message="no rows"
            )
        ]
    calibrator = view.reference.calibrator if view.reference else None
    expected = expected_loss_rows(rows.outputs[good], calibrator)
    found = view.compared(expected, rows.times[good], "expected_log_loss")
    low, high = found.interval()
    limit = None if found.reference is None else found.reference * (1 + TOLERANCE)
    return [
        Reading(
            monitor="estimated_log_loss",
            kind="estimate",
            rows=int(good.sum()),
            value=found.mean,
            low=low,
            high=high,
            reference=found.reference,
            limit=limit,
            score=None if limit is None else found.score(limit, weight=1 + TOLERANCE),
            message=f"log loss of {found.mean:.3f} to be expected",
        )
    ]


MONITOR = Monitor(kind="estimate", part="data", measure=measure)
