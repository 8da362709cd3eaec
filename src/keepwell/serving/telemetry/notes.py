"""Notes of requests, for an operator who wants each one told: taken only where somebody listens."""

from __future__ import annotations

import re
from collections.abc import Sized
from typing import Protocol

import msgspec

from keepwell.serving.log.batches import Batch

_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)


class Part(msgspec.Struct):
    """What became of one request in its tick. Moments are those of ``time.perf_counter``."""

    batch: Batch
    start: int
    stop: int
    """Its rows are these of the batch."""
    called: float
    answered: float
    """Before the model calls of the tick, and after."""
    logged: float
    """When the batch was in the log."""


class Asked(Protocol):
    """What a note tells of a request at the desk."""

    @property
    def endpoint(self) -> str:
        """Whom it asked."""
        ...

    @property
    def rows(self) -> Sized | None:
        """What it asked, once it was read."""
        ...

    @property
    def shed(self) -> str:
        """Why it was not computed although it could be; empty if it was."""
        ...

    @property
    def part(self) -> Part | None:
        """What became of it; None: it got into no tick."""
        ...

    @property
    def waits(self) -> bool:
        """Whether its answer waited for the disk."""
        ...


class Note(msgspec.Struct):
    """One request and its answer, without features and tokens."""

    began: float
    """``time.perf_counter`` when it was read."""
    method: str
    path: str
    client: str
    size: int
    """Bytes of the body."""
    parent: bytes = b""
    """The header ``traceparent`` as it came."""
    ask: Asked | None = None
    """Where it went to the desk."""
    ended: float = 0.0
    status: int = 0
    sent: int = 0
    """Bytes of the answer's body."""


class Listener(Protocol):
    """Is told of requests after their answers went out, on the loop's thread; it may not block."""

    def saw(self, note: Note) -> None:
        """Take one request in."""
        ...

    def counts(self) -> dict[str, int]:
        """Give counters by their names in ``keepwell.serving.telemetry.metrics``."""
        ...

    def close(self) -> None:
        """Bring out what was taken in, within seconds."""
        ...


def parent_of(note: Note) -> tuple[str, str, bool] | None:
    """Read a W3C ``traceparent``: trace id, span id, and whether its caller samples; None for none or a wrong one.

    >>> parent_of(Note(0, "", "", "", 0, b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    ('4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7', True)
    """
    found = _PARENT.match(note.parent)
    # Version 00 has these four fields; later ones may have more behind a dash.
    rest = note.parent[55:]
    if found is None or (rest and (note.parent.startswith(b"00") or not rest.startswith(b"-"))):
        return None
    return found[1].decode(), found[2].decode(), bool(int(found[3], 16) & 1)
