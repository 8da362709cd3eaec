"""The prediction log, as those read it who did not write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from keepwell.core.clock import Time
from keepwell.core.records.predictions import Outcome, Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping


class LogBatch(msgspec.Struct, frozen=True):
    """What was appended since a cursor, whole frames only, and the cursor to go on from."""

    predictions: tuple[Prediction, ...]
    outcomes: tuple[Outcome, ...]
    cursor: dict[str, int]
    torn: tuple[str, ...] = ()
    """Segments whose tail was cut off by a crash, with the place; the rest of such a tail was never acknowledged."""


class PredictionLog(Protocol):
    """Reads acknowledged records in the order of each writer, at least once; the id tells repeats."""

    def read(
        self,
        cursor: Mapping[str, int],
        *,
        limit: int = 50_000,
        until: Mapping[str, int] | None = None,
    ) -> LogBatch:
        """Give up to about ``limit`` records after the cursor. An empty cursor starts at the oldest segment.

        With ``until``, the cursor of an earlier reading, nothing is given that came after it.
        """
        ...

    def past(self, time: Time) -> dict[str, int]:
        """Give a cursor past what is known to be older than an event time; older records may follow it all the same."""
        ...

    def count_since(self, time: Time) -> int:
        """Say about how many records one reads to have all of that event time or later, without reading them."""
        ...
