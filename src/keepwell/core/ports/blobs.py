"""Blobs: immutable content under the name of its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepwell.core.digest import Digest


class Blobs(Protocol):
    """Content-addressed storage. Safe from any thread and process; writing the same content twice is harmless."""

    def put(self, content: bytes) -> Digest:
        """Keep these bytes, durable on return."""
        ...

    def put_file(self, path: Path) -> Digest:
        """Keep a file's bytes without reading it whole into memory, durable on return."""
        ...

    def get(self, digest: Digest) -> bytes:
        """Give the bytes, after checking them against the digest. Raises NotFound, Corrupt."""
        ...

    def path(self, digest: Digest) -> Path:
        """Give a local read-only file with this content, checked against the digest. Raises NotFound, Corrupt."""
        ...

    def has(self, digest: Digest) -> bool:
        """Tell whether it is there (without checking the bytes)."""
        ...

    def digests(self) -> Iterator[Digest]:
        """List all blobs, in no promised order."""
        ...

    def remove(self, digest: Digest) -> None:
        """Delete one. Callers prove first that nothing stands on it. Raises NotFound."""
        ...
