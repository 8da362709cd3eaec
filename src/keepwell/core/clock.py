"""Time as a value: whole microseconds since 1970 in UTC, so that records sort, hash and replay exactly."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Protocol

from keepwell.core.errors import InvalidInput

Time = int
"""Microseconds since 1970-01-01 in UTC."""

SECOND: Time = 1_000_000
MINUTE: Time = 60 * SECOND
HOUR: Time = 60 * MINUTE
DAY: Time = 24 * HOUR
WEEK: Time = 7 * DAY

_UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")


class Clock(Protocol):
    """Tells what time it is. Safe from any thread; may step, so never use it to measure a duration."""

    def now(self) -> Time:
        """Give the time in microseconds since 1970 in UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> Time:
        """Give the wall clock's time."""
        return time.time_ns() // 1_000


class FixedClock:
    """A clock that stands still until it is moved: for replays and tests."""

    def __init__(self, at: Time = 0) -> None:
        self.at = at

    def now(self) -> Time:
        """Give the time it was set to."""
        return self.at


def duration(text: str) -> Time:
    """Read a duration such as ``"3h"``, ``"1d12h"`` or ``"250ms"``; microseconds.

    Raises InvalidInput for anything else.

    >>> duration("1d12h") == DAY + 12 * HOUR
    True
    """
    stripped = text.strip()
    parts = _DURATION.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise InvalidInput(
            f"{text!r} is not a duration.",
            todo="Write a number and a unit (us, ms, s, m, h, d, w), for example '3h' or '1d12h'.",
        )
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


def moment(text: str) -> Time:
    """Read an ISO 8601 date or time; without an offset it is taken as UTC. Raises InvalidInput.

    >>> moment("1970-01-02") == DAY
    True
    """
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is not a date or time.",
            todo="Write it as '2013-04-01' or '2013-04-01T06:00:00+00:00'.",
        ) from error
    if read.tzinfo is None:
        read = read.replace(tzinfo=UTC)
    return round(read.timestamp() * 1_000_000)


def iso(at: Time) -> str:
    """Write a time as ISO 8601 in UTC, to the second where there is no fraction.

    >>> iso(DAY)
    '1970-01-02T00:00:00Z'
    """
    return datetime.fromtimestamp(at / 1_000_000, tz=UTC).isoformat().replace("+00:00", "Z")
