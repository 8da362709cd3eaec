"""Tables from records: one table a noun, one column a field, so that every row can be queried by plain SQL."""

from __future__ import annotations

import importlib
import pkgutil
import types
from functools import cache
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import msgspec
import sqlalchemy as sa

from keepwell.core import records as records_package
from keepwell.core.digest import canonical
from keepwell.core.records.base import Record

METADATA = sa.MetaData()

_SCALARS: dict[type, sa.types.TypeEngine[Any]] = {
    str: sa.Text(),
    int: sa.BigInteger(),
    float: sa.Float(53),
    bool: sa.Boolean(),
    bytes: sa.LargeBinary(),
}


def record_kinds() -> list[type[Record]]:
    """List every record class that has a table, in the order of its name."""
    for module in pkgutil.iter_modules(records_package.__path__):
        importlib.import_module(f"{records_package.__name__}.{module.name}")
    found: list[type[Record]] = []
    waiting = [Record]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.TABLE and kind.__module__.startswith(records_package.__name__):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.TABLE)


def _scalar(annotation: Any) -> tuple[sa.types.TypeEngine[Any], bool] | None:
    """Give the column type and whether it may be null; None for what is kept as JSON."""
    nullable = False
    if get_origin(annotation) in {Union, types.UnionType}:
        parts = [part for part in get_args(annotation) if part is not type(None)]
        nullable = len(parts) < len(get_args(annotation))
        if len(parts) != 1:
            return None
        annotation = parts[0]
    arguments = get_args(annotation)
    if arguments and all(isinstance(part, str) for part in arguments):
        annotation = str  # a Literal of words
    known = _SCALARS.get(annotation)
    return (known, nullable) if known is not None else None


class Shape:
    """How one kind of record stands in its table."""

    hidden: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kind: type[Record]) -> None:
        self.kind = kind
        hints = get_type_hints(kind)
        self.fields: tuple[str, ...] = kind.__struct_fields__
        self.revised = "revision" in self.fields
        self.json: dict[str, msgspec.json.Decoder[Any]] = {}
        columns: list[sa.Column[Any]] = []
        for field in self.fields:
            scalar = _scalar(hints[field])
            if scalar is None:
                self.json[field] = msgspec.json.Decoder(hints[field])
                scalar = (sa.Text(), False)
            columns.append(
                sa.Column(
                    field,
                    scalar[0],
                    primary_key=field in kind.KEY,
                    nullable=scalar[1],
                    autoincrement=False,
                )
            )
        self.table = sa.Table(
            kind.TABLE,
            METADATA,
            *columns,
            *(sa.Index(f"ix_{kind.TABLE}_{'_'.join(group)}", *group) for group in kind.INDEX),
        )

    def row(self, record: Record) -> dict[str, Any]:
        """Turn a record into column values."""
        values = {field: getattr(record, field) for field in self.fields}
        for field in self.json:
            values[field] = canonical(values[field]).decode()
        return values

    def record(self, row: Any) -> Record:
        """Turn a row, in the order of the fields, into a record."""
        values = dict(zip(self.fields, row, strict=True))
        for field, decoder in self.json.items():
            values[field] = decoder.decode(values[field])
        return self.kind(**values)


@cache
def shapes() -> dict[type[Record], Shape]:
    """Give the shape of every kind of record; the metadata is complete afterwards."""
    return {kind: Shape(kind) for kind in record_kinds()}


AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("time", sa.BigInteger(), nullable=False),
    sa.Column("actor", sa.Text(), nullable=False),
    sa.Column("action", sa.Text(), nullable=False),
    sa.Column("subject", sa.Text(), nullable=False),
    sa.Column("before", sa.Text(), nullable=False),
    sa.Column("after", sa.Text(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("previous", sa.Text(), nullable=False),
    sa.Column("hash", sa.Text(), nullable=False),
    sa.Index("ix_audit_subject", "subject"),
)

CHANGES = sa.Table(
    "changes",
    METADATA,
    sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger(), nullable=False),
)
"""One row: how many transactions were committed. Polling it is how processes notice one another."""
