"""Signing: statements become envelopes that anyone with the public key can check."""

from __future__ import annotations

from typing import Any, Protocol

from keepwell.core.records.base import Value


class Statement(Value, frozen=True, kw_only=True):
    """An in-toto Statement v1: subjects by digest, a predicate type (URI) and the predicate itself."""

    subjects: dict[str, str]
    """Name to digest (``sha256:...``)."""
    predicate_type: str
    predicate: dict[str, Any]


class Verifier(Protocol):
    """Checks envelopes against the public keys that it was given."""

    def open(self, envelope: bytes) -> tuple[Statement, str]:
        """Give the statement and the identifier of the key that signed it.

        Raises Corrupt if the envelope is malformed or no known, unrevoked key's signature holds.
        """
        ...


class Signer(Verifier, Protocol):
    """Signs statements with the project's key."""

    @property
    def keyid(self) -> str:
        """Identifier of the key that signs."""
        ...

    @property
    def public(self) -> bytes:
        """Raw Ed25519 public key."""
        ...

    def sign(self, statement: Statement) -> bytes:
        """Give the DSSE envelope of the statement: JSON, signed by Ed25519 over DSSE's pre-authentication encoding."""
        ...
