"""Monitors: each looks at one complete window and gives readings. One file a monitor; judging is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from keepwell.core.catalog import Catalog
from keepwell.watch.readings import Reading, View

MONITORS = Catalog(
    "monitor",
    {
        "data drift": "keepwell.watch.monitors.data_drift:MONITOR",
        "prediction drift": "keepwell.watch.monitors.prediction_drift:MONITOR",
        "estimated performance": "keepwell.watch.monitors.estimated_performance:MONITOR",
        "performance": "keepwell.watch.monitors.performance:MONITOR",
        "business": "keepwell.watch.monitors.business:MONITOR",
        "traffic": "keepwell.watch.monitors.traffic:MONITOR",
    },
)


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """A way of looking at windows.

    ``kind`` is that of all its readings, under which they share alerts and false alarms; ``part`` tells
    whether it needs a window's decisions only (``data``) or their outcomes too (``labels``). ``measure``
    must be deterministic, and gives the same monitors' names for every window of a version.
    """

    kind: str
    part: Literal["data", "labels"]
    measure: Callable[[View], list[Reading]]


def measure(view: View, part: Literal["data", "labels"]) -> list[Reading]:
    """Give the readings of every monitor, ours and installed ones, of this part of a window."""
    readings: list[Reading] = []
    for name in MONITORS.names():
        monitor: Monitor = MONITORS.load(name)
        if monitor.part == part:
            readings += monitor.measure(view)
    return readings
