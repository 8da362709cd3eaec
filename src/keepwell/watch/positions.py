"""Where to read on after a crash: the oldest place in the log that an open window still needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from keepwell.core.clock import Time

Cursor = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    before: Cursor
    needed: dict[str, Time]


class Positions:
    """The batches that were read, in order, each with the event time until which each endpoint needs it."""

    def __init__(self, start: Mapping[str, int]) -> None:
        self.cursor: Cursor = dict(start)
        """Where reading goes on."""
        self._batches: deque[_Batch] = deque()

    def read(self, after: Mapping[str, int], needed: Mapping[str, Time]) -> None:
        """Note that a batch up to ``after`` was read."""
        self._batches.append(_Batch(before=self.cursor, needed=dict(needed)))
        self.cursor = dict(after)

    def safe(self, closed: Mapping[str, Time]) -> Cursor:
        """Give the cursor from which everything still needed can be read again.

        ``closed`` is the event time up to which each endpoint's windows are dealt with.
        """
        for batch in self._batches:
            if _is_needed(batch, closed):
                return batch.before
        return self.cursor

    def forget(self, closed: Mapping[str, Time]) -> None:
        """Let go of the oldest batches that nobody needs; call it once the safe cursor is saved."""
        while self._batches and not _is_needed(self._batches[0], closed):
            self._batches.popleft()


def _is_needed(batch: _Batch, closed: Mapping[str, Time]) -> bool:
    return any(until > closed.get(endpoint, 0) for endpoint, until in batch.needed.items())


def oldest(cursors: Iterable[Mapping[str, int]]) -> Cursor:
    """Give the cursor that lies before all of these; a segment that one of them does not name is read whole.

    >>> oldest([{"a": 5, "b": 2}, {"a": 3}])
    {'a': 3}
    """
    found = [dict(cursor) for cursor in cursors]
    if not found:
        return {}
    shared = set(found[0]).intersection(*found[1:])
    return {name: min(cursor[name] for cursor in found) for name in sorted(shared)}
