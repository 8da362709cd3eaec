"""The gap: requests that wait where a plan has no arms for a moment, bounded in number, bytes and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic

from keepwell.serving.desk.asks import Ask, Work
from keepwell.serving.desk.intake import refuse
from keepwell.serving.desk.loading import Serving

MAX_HELD = 1024
MAX_HELD_BYTES = 32 * 1024 * 1024
"""Of all requests that one worker holds."""


class Gap(Generic[Work]):
    """Holds requests until their endpoint has arms again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """So long a request may wait, by endpoint; only endpoints that hold are in it."""
        self.held: list[Work] = []
        self._bytes = 0

    def look(self, endpoints: Mapping[str, Serving]) -> list[Work]:
        """Take in the plans in force; gives the requests that need not wait any more."""
        self.seconds = {
            name: serving.edition.gap_seconds
            for name, serving in endpoints.items()
            if serving.edition.gap == "hold" and not serving.arms
        }
        free = [each for each in self.held if each[0].endpoint not in self.seconds]
        self._keep(each for each in self.held if each[0].endpoint in self.seconds)
        return free

    def part(self, work: list[Work]) -> tuple[list[Work], list[Work]]:
        """Give the requests of a tick to answer now and those that were refused (in place), and hold the rest."""
        now: list[Work] = []
        refused: list[Work] = []
        for each in work:
            ask: Ask = each[0]
            seconds = self.seconds.get(ask.endpoint)
            if seconds is None:
                now.append(each)
                continue
            size = _size(ask)
            if len(self.held) >= MAX_HELD or self._bytes + size > MAX_HELD_BYTES:
                said = f"{len(self.held):,} requests wait for {ask.endpoint!r} to have a version; no more can."
                refuse(ask, "gap", seconds, said)
                refused.append(each)
                continue
            self._bytes += size
            self.held.append(each)
        return now, refused

    def next(self) -> float:
        """Give when the next one has waited long enough, by the clock of ``Ask.began``. Something must be held."""
        return min(self._until(each[0]) for each in self.held)

    def expired(self, now: float) -> list[Work]:
        """Refuse, and give, those that have waited as long as they may or as their callers will."""
        late = [each for each in self.held if self._until(each[0]) <= now]
        for each in late:
            self._refuse(each[0])
        self._keep(each for each in self.held if self._until(each[0]) > now)
        return late

    def close(self) -> list[Work]:
        """Refuse, and give, all that are held: the worker ends."""
        left = self.held
        for each in left:
            self._refuse(each[0])
        self._keep(())
        self.seconds = {}
        return left

    def _until(self, ask: Ask) -> float:
        until = ask.began + self.seconds[ask.endpoint]
        return min(until, ask.deadline) if ask.deadline else until

    def _refuse(self, ask: Ask) -> None:
        seconds = self.seconds[ask.endpoint]
        said = f"The endpoint {ask.endpoint!r} has had no version to answer while this request could wait."
        refuse(ask, "gap", seconds, said)

    def _keep(self, work: Iterable[Work]) -> None:
        self.held = list(work)
        self._bytes = sum(_size(each[0]) for each in self.held)


def _size(ask: Ask) -> int:
    return ask.size or len(ask.body)
