"""Metrics that a rollout may judge beside the gain: numbers of each decision, by the names that the monitors use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np

from keepwell.core.clock import Time
from keepwell.core.errors import near_miss
from keepwell.core.ports.rollouts import Gain
from keepwell.serving.log.batches import FALLBACK
from keepwell.serving.rollouts.evidence import Worths, by_unit
from keepwell.serving.rollouts.observations import Floats, Observations
from keepwell.stats.performance import brier_rows, log_loss_rows, squared_error_rows

Worse = Literal["higher", "lower", ""]
Rows = Callable[[Floats, Floats], Floats]
"""Outcomes and answers of shape (n,) in, numbers of shape (n,) out; NaN where there is none."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A number of each decision."""

    worse: Worse = ""
    """Which way it gets worse; empty: that is for who declares it to say."""
    tasks: tuple[str, ...] = ()
    """Kinds of models that have it; none given: all whose answers are numbers."""
    rows: Rows | None = None
    """From a decision's answer and its outcome."""
    quantile: float = 0.0
    """Of latencies: which one; they are compared by decision, others by unit."""


def _of_chances(rows: Rows) -> Rows:
    """Leave out what is neither 0 nor 1, and take answers for probabilities, as the monitors do."""

    def of(labels: Floats, outputs: Floats) -> Floats:
        found = np.full(len(labels), np.nan)
        known = (labels == 0) | (labels == 1)
        if known.any():
            found[known] = rows(labels[known], np.clip(outputs[known], 0.0, 1.0))
        return found

    return of


METRICS: dict[str, Metric] = {
    "log_loss": Metric(worse="higher", tasks=("binary",), rows=_of_chances(log_loss_rows)),
    "brier": Metric(worse="higher", tasks=("binary",), rows=_of_chances(brier_rows)),
    "calibration": Metric(
        tasks=("binary",), rows=_of_chances(lambda labels, outputs: outputs - labels)
    ),
    "squared_error": Metric(worse="higher", tasks=("regression",), rows=squared_error_rows),
    "absolute_error": Metric(
        worse="higher",
        tasks=("regression",),
        rows=lambda labels, outputs: np.abs(outputs - labels),
    ),
    "bias": Metric(tasks=("regression",), rows=lambda labels, outputs: outputs - labels),
    "value": Metric(worse="lower"),
    "outcome": Metric(rows=lambda labels, _: labels),
    "prediction": Metric(),
    "error_share": Metric(worse="higher"),
    "latency_ms_p50": Metric(worse="higher", quantile=0.5),
    "latency_ms_p90": Metric(worse="higher", quantile=0.9),
    "latency_ms_p95": Metric(worse="higher", quantile=0.95),
    "latency_ms_p99": Metric(worse="higher", quantile=0.99),
}
"""Ours; a monitor of the same name shows the same number by window."""


def metric_problems(names: tuple[str, ...], *, rule: str, task: str, money: bool) -> list[str]:
    """Tell which metrics there are not, or not for such a model; ``money``: it has a KPI."""
    found = []
    for name in names:
        metric = METRICS.get(name)
        if metric is None:
            found.append(f"{rule}: there is no metric {name!r}. {near_miss(name, METRICS)}".strip())
        elif metric.tasks and task and task not in metric.tasks:
            fitting = [n for n, m in METRICS.items() if not m.tasks or task in m.tasks]
            found.append(f"{rule}: {name} is not for a {task} model. It has {', '.join(fitting)}.")
        elif name == "value" and not money:
            found.append(f"{rule}: value needs a KPI, and the project declares none for the model.")
    found += [
        f"{rule}: {name} is named twice."
        for k, name in enumerate(names)
        if name in names[:k] and name in METRICS
    ]
    return found


def metric_rows(name: str, seen: Observations, outcome: Floats, *, money: Gain | None) -> Floats:
    """Give a metric of each row, shape (n,); NaN where it is not known. ``outcome`` has defaults filled in."""
    if name == "error_share":
        failed = seen.failed
        return failed.astype(np.float64)
    if METRICS[name].quantile:
        return np.where(seen.status <= FALLBACK, seen.latency * 1e3, np.nan)
    if name == "prediction":
        return np.where(seen.counts, seen.output, np.nan)
    rows = METRICS[name].rows
    if rows is not None:
        return outcome_rows(seen, outcome, lambda outputs, outcomes: rows(outcomes, outputs))
    assert money is not None
    return outcome_rows(seen, outcome, money)


def metric_worths(
    name: str,
    seen: Observations,
    arms: tuple[str, ...],
    *,
    label_delay: Time,
    attribution: Time,
    default: float | None,
    money: Gain | None,
) -> dict[str, Worths]:
    """Give the mean of a metric over each unit's decisions, by arm."""
    units = by_unit(
        seen,
        # An answer is known at once.
        label_delay=0 if name == "prediction" else label_delay,
        attribution=attribution,
        default=default,
    )
    rows = metric_rows(name, units.drawn, units.outcome, money=money)
    return units.values(rows, arms, mean=True)


def outcome_rows(seen: Observations, outcome: Floats, worth: Gain) -> Floats:
    """Give what each decision that counts was worth, by its answer and its outcome; NaN where one is not known."""
    found = np.full(len(seen), np.nan)
    known = seen.counts & ~np.isnan(outcome) & ~np.isnan(seen.output)
    if known.any():
        found[known] = worth(seen.output[known], outcome[known])
    return found
