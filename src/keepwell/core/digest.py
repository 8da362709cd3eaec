"""Digests and the one canonical form of a record, so that the same content has the same name everywhere."""

from __future__ import annotations

import hashlib
import re

import msgspec

Digest = str
"""``"sha256:"`` and 64 lower-case hexadecimal digits."""

_FORM = re.compile(r"sha256:[0-9a-f]{64}")
_encoder = msgspec.json.Encoder(order="deterministic")


def canonical(value: object) -> bytes:
    """Encode as JSON with sorted keys and no spaces: equal values give equal bytes.

    >>> canonical({"b": 1, "a": (2, 3)})
    b'{"a":[2,3],"b":1}'
    """
    return _encoder.encode(value)


def digest_bytes(content: bytes | bytearray | memoryview) -> Digest:
    """Name a piece of content by its SHA-256 (FIPS 180-4)."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of(value: object) -> Digest:
    """Name a record or plain value by the SHA-256 of its canonical form."""
    return digest_bytes(canonical(value))


def is_digest(text: str) -> bool:
    """Tell whether a text has the form of a digest."""
    return _FORM.fullmatch(text) is not None


def short(digest: Digest) -> str:
    """Give the twelve digits that people read.

    >>> short("sha256:" + "ab" * 32)
    'abababababab'
    """
    return digest.removeprefix("sha256:")[:12]
