"""The store: records in tables, changed in audited transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from keepwell.core.records.audit import AuditEntry
    from keepwell.core.records.base import Record

R = TypeVar("R", bound="Record")


class Reader(Protocol):
    """Reads records. What is read was committed, or was written earlier in the same transaction."""

    def get(self, kind: type[R], *key: object) -> R | None:
        """Give the record with this key, or None."""
        ...

    def find(
        self,
        kind: type[R],
        where: Mapping[str, object] | None = None,
        *,
        order: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[R]:
        """List records whose columns match.

        ``where`` maps ``"field"`` to a value, or to a list or tuple of allowed values (an empty one matches
        nothing), and ``"field >"``, ``"field >="``, ``"field <"``, ``"field <="``, ``"field !="`` to a
        bound. ``order`` names fields, each with an optional ``-`` in front for descending; without it,
        the key's order. Raises InvalidInput for a field that is not a column.
        """
        ...

    def count(self, kind: type[R], where: Mapping[str, object] | None = None) -> int:
        """Count what ``find`` would list."""
        ...


class Transaction(Reader, Protocol):
    """Writes that become durable and visible together, with their audit entries, or not at all."""

    def add(self, record: Record, *, reason: str = "") -> None:
        """Insert a record. Raises Conflict if its key exists."""
        ...

    def replace(self, record: Record, *, reason: str = "") -> None:
        """Replace the record of the same key.

        The new record's ``revision`` must be the stored one plus one; otherwise somebody else wrote first
        and Conflict is raised. A kind without ``revision`` cannot be replaced, except measurements
        (``AUDITED`` false without ``revision``), where the last one wins and a missing one is added.
        Raises NotFound if there is nothing to replace.
        """
        ...

    def remove(self, kind: type[Record], *key: object, reason: str) -> None:
        """Delete a record. Raises NotFound."""
        ...


class Store(Reader, Protocol):
    """The one place of shared state. Safe from any thread and process."""

    def transaction(self, *, actor: str) -> AbstractContextManager[Transaction]:
        """Open a write transaction: committed and durable when the block ends, rolled back if it raises.

        Writers wait for one another (bounded; then Unavailable). Keep the block short and free of I/O.
        """
        ...

    def audit(self, *, after: int = 0, limit: int | None = None) -> Iterator[AuditEntry]:
        """Give audit entries with a sequence number over ``after``, in order."""
        ...

    def version(self) -> int:
        """Give a number that grows with every committed transaction on this store, by any process; cheap to poll."""
        ...

    def close(self) -> None:
        """Release connections. Closing twice is harmless."""
        ...
