"""What all records share: frozen, keyword-only, with a key, a table and a canonical form."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from keepwell.core.digest import Digest, canonical, digest_bytes


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
    ADDED: ClassVar[tuple[str, ...]] = ()
    """Fields that a later version of the table brought. While they have their default, the digest leaves them out:
    so a row that was written before still has the digest that its audit entry names."""

    def key(self) -> tuple[Any, ...]:
        """Give the values of the key fields, in order."""
        return tuple(getattr(self, name) for name in self.KEY)

    def address(self) -> str:
        """Give the record's full name, ``table/key/key``, as the audit trail writes it."""
        return "/".join([self.TABLE, *(str(part) for part in self.key())])

    def digest(self) -> Digest:
        """Name the record by the digest of its canonical form."""
        if not self.ADDED:
            return digest_bytes(canonical(self))
        told = [
            canonical(field.name) + b":" + canonical(getattr(self, field.name))
            for field in msgspec.structs.fields(self)
            if field.name not in self.ADDED or getattr(self, field.name) != field.default
        ]
        return digest_bytes(b"{%s}" % b",".join(told))
