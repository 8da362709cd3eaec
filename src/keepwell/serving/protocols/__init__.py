"""The protocols of the field at Keepwell's desk: each reads its own requests and writes its own answers.

A protocol is one file. It routes its paths (``route``), gives the desk an ``Ask`` that carries a
``WireProtocol``, and knows neither connections nor models: the desk computes the requests of one tick
together, whatever protocols they came by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:  # the desk knows this port; the port needs the desk's words for its types alone
    from keepwell.serving.desk.codec import Decoded
    from keepwell.serving.desk.desk import Ask, Serving
    from keepwell.serving.log.batches import Answers

JSON = b"application/json"


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


class Call(msgspec.Struct, kw_only=True):
    """One HTTP request that plain rows do not answer."""

    method: str
    path: str
    body: bytes
    headers: Mapping[bytes, bytes]
    """Those of ``HEADERS`` and of the plans' cohorts, by their names in lower case."""
    began: float


class Reply(msgspec.Struct):
    """An answer that needs no desk."""

    status: int
    body: bytes
    content: bytes = JSON


HEADERS = frozenset(
    {
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"inference-header-content-length",
        b"x-deadline-ms",
        b"request-timeout",
        b"traceparent",
    }
)
"""The headers that somebody reads, besides those that a plan names."""
