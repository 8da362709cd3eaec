"""What all records share: frozen, keyword-only, with a key, a table and a canonical form."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from keepwell.core.digest import Digest, digest_of


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen part of a record, without an identity of its own."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen row of the store.

    A class names its ``TABLE``, its ``KEY`` fields and the field groups to ``INDEX``. Fields of type
    str, int, float, bool, bytes (or one of these with None) become columns; anything else is kept as
    canonical JSON in one column. ``AUDITED`` records leave an audit entry with every change; set it
    to False only for measurements and for the queue's own bookkeeping. A record that changes after it
    is written has a field ``revision``, which each replacement raises by one.
    """

    TABLE: ClassVar[str] = ""
    KEY: ClassVar[tuple[str, ...]] = ()
    INDEX: ClassVar[tuple[tuple[str, ...], ...]] = ()
    AUDITED: ClassVar[bool] = True

    def key(self) -> tuple[Any, ...]:
        """Give the values of the key fields, in order."""
        return tuple(getattr(self, name) for name in self.KEY)

    def address(self) -> str:
        """Give the record's full name, ``table/key/key``, as the audit trail writes it."""
        return "/".join([self.TABLE, *(str(part) for part in self.key())])

    def digest(self) -> Digest:
        """Name the record by the digest of its canonical form."""
        return digest_of(self)
