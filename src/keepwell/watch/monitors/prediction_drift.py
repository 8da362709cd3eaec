"""Prediction drift: does the model still answer as it did on the reference?"""

from __future__ import annotations

from keepwell.watch.monitors import Monitor
from keepwell.watch.monitors.data_drift import drift_readings
from keepwell.watch.readings import Reading, View
from keepwell.watch.reference import scores


def measure(view: View) -> list[Reading]:
    """Give ``prediction_drift``: of the probability, the value, or the likeliest class."""
    if view.reference is None:
        return []
    answers = scores(view.task, view.rows.outputs)
    return drift_readings(
        view, [("prediction_drift", view.reference.prediction, answers)], kind="prediction"
    )


MONITOR = Monitor(kind="prediction", part="data", measure=measure)
