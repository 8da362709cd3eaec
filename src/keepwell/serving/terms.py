"""The terms on which a gateway takes requests: settings that every worker is started with."""

from __future__ import annotations

import msgspec

TERMS_FILE = "terms.json"
"""Lies beside the editions, for processes that no gateway's parent starts."""


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Travels as JSON on a worker's command line, so it holds nothing secret."""

    max_wait: float = 1.0
    """Seconds of expected work ahead above which a request is refused; 0: never."""
    tokens: str = ""
    """File with the digests of the tokens that may ask; empty: everybody may."""
    runtime_seconds: float = 5.0
    """Longest that a model in a process of its own may compute one batch; 0: as long as it likes."""
    runtime_memory: int = 0
    """Megabytes above which such a process is replaced by a fresh one; 0: never."""
    runtime_processes: int = 1
    """Processes of one such model; more than one share the gateway's workers among them."""
    tls_certificate: str = ""
    tls_key: str = ""
    """Files of the certificate and its key; empty: no TLS."""
    access_log: str = ""
    """File for a line a request, ``-`` for standard output; empty: none."""
    traces_endpoint: str = ""
    """Where spans go (OTLP over HTTP); empty: none are made."""
    traces_share: float = 0.0
    """Share of the requests without a ``traceparent`` that are traced."""
