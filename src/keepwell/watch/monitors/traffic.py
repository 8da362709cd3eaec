"""Traffic: are there as many decisions as usual, are they answered, are the inputs there?"""

from __future__ import annotations

import math
import statistics

from keepwell.stats.intervals import wilson_interval
from keepwell.watch.clusters import FARTHEST, cluster_sums, compare
from keepwell.watch.monitors import Monitor
from keepwell.watch.readings import Reading, View
from keepwell.watch.reference import missing_share

ERROR_LIMIT = 0.01
MISSING_TOLERANCE = 0.02
USUAL = 8
"""Earlier windows that make up what is usual, at least four of them."""
LEAST = 4
CHANGE = 2.0
"""Half or double the usual volume is worth a word."""


def measure(view: View) -> list[Reading]:
    """Give ``volume`` (of the endpoint), ``error_share`` and ``missing_share``."""
    return [_volume(view), _errors(view), *_missing(view)]


def _volume(view: View) -> Reading:
    earlier = view.earlier_volumes[-USUAL:]
    usual = float(statistics.median(earlier)) if len(earlier) >= LEAST else None
    alarm: bool | None = None
    if usual and view.whole:
        alarm = not usual / CHANGE <= view.volume <= usual * CHANGE
    return Reading(
        monitor="volume",
        kind="traffic",
        rows=len(view.rows),
        value=float(view.volume),
        reference=usual,
        limit=None if usual is None else usual / CHANGE,
        alarm=alarm,
        message=f"{view.volume:,} decisions" + (f", usually {usual:,.0f}" if usual else ""),
    )


def _errors(view: View) -> Reading:
    asked = len(view.rows) + view.rows.errors
    if not asked:
        return Reading(
            monitor="error_share", kind="traffic", rows=0, value=None, message="no requests"
        )
    found = wilson_interval(view.rows.errors, asked)
    spread = math.sqrt(ERROR_LIMIT * (1 - ERROR_LIMIT) / asked)
    score = (found.estimate - ERROR_LIMIT) / spread
    return Reading(
        monitor="error_share",
        kind="traffic",
        rows=asked,
        value=found.estimate,
        low=found.lower,
        high=found.upper,
        reference=0.0,
        limit=ERROR_LIMIT,
        score=min(max(score, -FARTHEST), FARTHEST),
        message=f"{view.rows.errors:,} of {asked:,} requests got no prediction",
    )


def _missing(view: View) -> list[Reading]:
    if view.reference is None:
        return []
    if not len(view.rows):
        return [
            Reading(monitor="missing_share", kind="traffic", rows=0, value=None, message="no rows")
        ]
    shares = missing_share(view.rows.features)
    found = compare(
        cluster_sums(shares, view.rows.times, view.grid.cluster), view.reference.missing
    )
    low, high = found.interval()
    limit = (found.reference or 0.0) + MISSING_TOLERANCE
    return [
        Reading(
            monitor="missing_share",
            kind="traffic",
            rows=len(view.rows),
            value=found.mean,
            low=low,
            high=high,
            reference=found.reference,
            limit=limit,
            score=found.score(limit),
            message=f"{found.mean:.1%} of the inputs missing",
        )
    ]


MONITOR = Monitor(kind="traffic", part="data", measure=measure)
