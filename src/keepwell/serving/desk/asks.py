"""Asks: requests as the desk takes them, by whatever protocol they came, and the port of those protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from keepwell.serving.desk.codec import JSON, Decoded, encode_error
from keepwell.serving.desk.loading import Serving
from keepwell.serving.log.batches import Answers
from keepwell.serving.telemetry.notes import Part

Work = TypeVar("Work", bound=tuple[Any, ...])
"""A request on its way: a tuple that begins with its ``Ask``. What is behind it is for whoever sends the answer."""


class WireProtocol(Protocol):
    """How one request is read and its answer is written. Made for one request, so it may remember what it read.

    Called on the event loop's thread, ``decode`` before ``encode``; neither may block.
    """

    bad_input: int
    """Status of a request that cannot be read."""

    def decode(self, serving: Serving, body: bytes, headers: Mapping[bytes, bytes]) -> Decoded:
        """Read a request. Raises InvalidInput, and NotFound for a version that is not loaded."""
        ...

    def encode(self, serving: Serving, ask: Ask, answers: Answers) -> tuple[bytes, bytes]:
        """Write the answer: the body, and its content type with any further header lines behind it.

        The answers to a probe have empty ids and were not logged. Columns cost less than records.
        """
        ...

    def error(self, status: int, message: str) -> bytes:
        """Write an error's body, as JSON."""
        ...


class Ask(msgspec.Struct):
    """One request at the desk, and the answer when it is there."""

    endpoint: str
    body: bytes
    began: float
    protocol: WireProtocol | None = None
    """How the body is written; None: rows as JSON, which has the shortest way."""
    headers: Mapping[bytes, bytes] = {}
    status: int = 0
    answer: bytes = b""
    content: bytes = JSON
    """Content type of the answer, and any further header lines."""
    rows: Decoded | None = None
    size: int = 0
    """Bytes of the request, where it is not those of ``body``."""
    deadline: float = 0.0
    """When its caller gives up, by the clock of ``began``; 0: never."""
    postponed: bool = False
    """Others went first, because they were in a hurry."""
    shed: str = ""
    """Why it was not computed although it could be: ``busy``, ``deadline``, ``full`` or ``late``."""
    part: Part | None = None
    """Its place in the tick, where somebody listens."""
    waits: bool = False
    """The answer may leave once the log is on the disk, and not before."""
    aside: Callable[[Any], None] | None = None
    """Takes the request, with its caller, where it is computed beside the tick."""

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, in the words of the request's protocol."""
        self.status = status
        self.content = JSON
        self.answer = (
            encode_error(message) if self.protocol is None else self.protocol.error(status, message)
        )
