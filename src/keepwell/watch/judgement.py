"""Turns readings into states: sequential over a version's windows, with a stated rate of false alarms.

The evidence is folded anew from the earlier measurements each time, so a restart changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from keepwell.core.clock import Time
from keepwell.core.records.watching import Measurement, MonitorState
from keepwell.core.settings import MonitorSettings
from keepwell.stats.detection import ShiftDetector
from keepwell.watch.clusters import FARTHEST
from keepwell.watch.grid import Grid
from keepwell.watch.readings import Reading


def run_length(settings: MonitorSettings, grid: Grid) -> float:
    """Give the mean number of windows between false alarms of one series: at most ``alpha`` in a year."""
    return max(grid.windows_a_year / settings.alpha, 2.0)


class Evidence:
    """What one series of scores says: raised when the evidence is there, ended by a window within the limit.

    Each side of a two-sided series has a detector of its own with twice the run length; a window beyond one
    limit is far within the other.
    """

    def __init__(self, *, average_run_length: float, two_sided: bool) -> None:
        self.alarm = False
        sides = 2 if two_sided else 1
        self._two_sided = two_sided
        self._sides = [
            ShiftDetector.standardised(average_run_length=average_run_length * sides)
            for _ in range(sides)
        ]

    def step(self, score: float, value: float) -> None:
        """Take one window's score; ``value`` tells the side of a two-sided series."""
        scores = [score]
        if self._two_sided:
            scores = [score, -FARTHEST] if value >= 0 else [-FARTHEST, -score]
        for i, own in enumerate(scores):
            self._sides[i] = self._sides[i].step(own)
        if any(detector.alarm for detector in self._sides):
            self.alarm = True
        if self.alarm and max(scores) <= 0:
            self.alarm = False
            self._sides = [detector.restarted() for detector in self._sides]


def judge(
    readings: Sequence[Reading],
    earlier: Mapping[str, Sequence[Measurement]],
    *,
    version: int,
    endpoint: str,
    start: Time,
    end: Time,
    answering: bool,
    settings: MonitorSettings,
    grid: Grid,
    now: Time,
) -> list[Measurement]:
    """Give a measurement a reading. ``earlier`` holds the version's measurements of earlier windows by monitor.

    Each accumulated series raises at most ``alpha`` false alarms in a year, so k of them at most k times
    alpha, however they depend on one another; the many features of data drift are one family by Holm's
    procedure and share one alpha. A version that answers nobody is measured and never in alarm.
    """
    length = run_length(settings, grid)
    found = []
    for reading in readings:
        state = _state(reading, earlier.get(reading.monitor, ()), settings, length)
        message = reading.message
        if state == "alarm" and not answering:
            state, message = "unknown", f"{message}; mirrored, so nobody is alarmed"
        if state == "unknown" and reading.value is not None and reading.rows < settings.min_rows:
            message = f"{message}; {reading.rows:,} of {settings.min_rows:,} rows needed to judge"
        found.append(
            Measurement(
                endpoint=endpoint,
                monitor=reading.monitor,
                kind=reading.kind,
                version=version,
                start=start,
                end=end,
                rows=reading.rows,
                value=reading.value,
                low=reading.low,
                high=reading.high,
                reference=reading.reference,
                limit=reading.limit,
                score=reading.score if reading.rows >= settings.min_rows else None,
                state=state,
                message=message,
                computed=now,
            )
        )
    return found


def _state(
    reading: Reading,
    earlier: Iterable[Measurement],
    settings: MonitorSettings,
    length: float,
) -> MonitorState:
    if reading.value is None or reading.rows < settings.min_rows:
        return "unknown"
    if reading.alarm is not None:
        return "alarm" if reading.alarm else "ok"
    if reading.score is None:
        return "unknown"
    evidence = Evidence(average_run_length=length, two_sided=reading.two_sided)
    for measured in earlier:
        if measured.score is not None and measured.value is not None:
            evidence.step(measured.score, measured.value)
    evidence.step(reading.score, reading.value)
    return "alarm" if evidence.alarm else "ok"
