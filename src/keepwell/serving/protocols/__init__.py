"""The protocols of the field at Keepwell's desk: each reads its own requests and writes its own answers.

A protocol is one file. It routes its paths (``route``), gives the desk an ``Ask`` that carries the desk's
port for it, a ``WireProtocol``, and knows neither connections nor models: the desk computes the requests of
one tick together, whatever protocols they came by.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from keepwell.serving.desk.codec import JSON


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
