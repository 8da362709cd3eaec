"""The fixed grid of event-time windows: where each begins, when its parts are complete, how its rows cluster."""

from __future__ import annotations

from dataclasses import dataclass

from keepwell.core.clock import DAY, Time

FEW = 7
"""Clusters that a window is cut into where it is shorter than a week of days."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Windows of ``length`` microseconds that start at whole multiples of it since 1970.

    A window's data part (features, predictions) closes at its end, its label part ``label_delay`` later,
    both in event time as the watermark tells it. ``lateness`` is how far the watermark stays behind the
    newest event, so that decisions of several writers may come out of order by that much.
    """

    length: Time
    label_delay: Time

    @property
    def lateness(self) -> Time:
        """A seventh of a window, a day at most."""
        return min(self.length // FEW, DAY)

    @property
    def cluster(self) -> Time:
        """Length of the pieces whose rows share their luck: a day, or a seventh of a shorter window."""
        return min(DAY, max(self.length // FEW, 1))

    def start_of(self, time: Time) -> Time:
        """Give the start of the window that an event belongs to."""
        return time - time % self.length

    def data_closes(self, start: Time) -> Time:
        """Give the event time at which the window's decisions are complete."""
        return start + self.length

    def labels_close(self, start: Time) -> Time:
        """Give the event time at which the window's outcomes are complete."""
        return start + self.length + self.label_delay

    @property
    def windows_a_year(self) -> float:
        """How many windows end in 365 days."""
        return 365 * DAY / self.length
