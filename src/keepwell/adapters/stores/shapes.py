"""How each kind of record stands in its table: one table a noun, one column a field, so plain SQL can ask anything."""

from __future__ import annotations

import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from keepwell.core.digest import canonical
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.records.base import Record
from keepwell.core.records.kinds import record_kinds

Scalar = Literal["text", "integer", "real", "boolean", "bytes"]

_SCALARS: dict[Any, Scalar] = {
    str: "text",
    int: "integer",
    float: "real",
    bool: "boolean",
    bytes: "bytes",
}
_BIGGEST = 2**63
"""Both databases keep whole numbers in 64 bits with a sign."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One field's column. ``json`` columns hold canonical JSON as text and cannot be searched by."""

    name: str
    scalar: Scalar
    nullable: bool
    json: bool = False


class Shape:
    """Turns one kind of record into rows and back."""

    def __init__(self, kind: type[Record]) -> None:
        self.kind = kind
        hints = get_type_hints(kind)
        self.columns = tuple(_column(name, hints[name]) for name in kind.__struct_fields__)
        self.by_name = {column.name: column for column in self.columns}
        self.revised = "revision" in self.by_name
        self._json = {
            at: (msgspec.json.Decoder(hints[column.name]), column.name)
            for at, column in enumerate(self.columns)
            if column.json
        }
        self._booleans = [at for at, c in enumerate(self.columns) if c.scalar == "boolean"]

    def row(self, record: Record) -> list[Any]:
        """Turn a record into column values, in the order of the columns.

        A NaN becomes None where that is allowed, as it does in canonical JSON. Raises InvalidInput for
        what the column cannot hold on every database.
        """
        return [self._value(record, column) for column in self.columns]

    def _value(self, record: Record, column: Column) -> Any:
        value = getattr(record, column.name)
        if column.json:
            try:
                return canonical(value).decode()
            except (TypeError, UnicodeEncodeError) as error:
                raise InvalidInput(
                    f"{value!r} cannot be kept: {error}.",
                    where=f"{self.kind.__name__}.{column.name}",
                ) from error
        if value is None and column.nullable:
            return None
        if column.scalar == "real" and isinstance(value, int | float):
            value = float(value)
            if value == value:  # noqa: PLR0124 - false for NaN alone
                return value
            value = None
            if column.nullable:
                return None
        elif (
            (column.scalar == "text" and isinstance(value, str) and _storable(value))
            or (
                column.scalar == "integer"
                and isinstance(value, int)
                and -_BIGGEST <= value < _BIGGEST
            )
            or (column.scalar == "boolean" and isinstance(value, bool))
            or (column.scalar == "bytes" and isinstance(value, bytes))
        ):
            return value
        raise InvalidInput(
            f"{getattr(record, column.name)!r} cannot be kept as {column.scalar}.",
            where=f"{self.kind.__name__}.{column.name}",
        )

    def record(self, row: tuple[Any, ...]) -> Record:
        """Turn a row back into a record. Raises Corrupt if a JSON column cannot be read."""
        values = list(row)
        for at, (decoder, name) in self._json.items():
            try:
                values[at] = decoder.decode(values[at])
            except (msgspec.DecodeError, TypeError, UnicodeDecodeError) as error:
                raise Corrupt(
                    f"The column {name!r} of a row does not hold what was written: {error}.",
                    where=f"table {self.kind.TABLE}, row {_key(self, row)}",
                    todo="Restore the store from a backup.",
                ) from error
        for at in self._booleans:
            if values[at] is not None:
                values[at] = bool(values[at])  # SQLite has no type of its own for truth
        return self.kind(**dict(zip(self.by_name, values, strict=True)))

    def as_read(self, record: Record) -> Record:
        """Give the record as it will be read back (1 in a float field becomes 1.0): what digests must be of."""
        return self.record(tuple(self.row(record)))


def _key(shape: Shape, row: tuple[Any, ...]) -> str:
    values = dict(zip(shape.by_name, row, strict=True))
    return "/".join(str(values[name]) for name in shape.kind.KEY)


def _storable(text: str) -> bool:
    """Tell whether both databases can keep a text: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _column(name: str, annotation: Any) -> Column:
    nullable = False
    if get_origin(annotation) in {Union, types.UnionType}:
        parts = [part for part in get_args(annotation) if part is not type(None)]
        nullable = len(parts) < len(get_args(annotation))
        annotation = parts[0] if len(parts) == 1 else None
    if get_origin(annotation) is Literal:
        words = get_args(annotation)
        annotation = str if all(isinstance(word, str) for word in words) else None
    scalar = _SCALARS.get(annotation)
    if scalar is None:
        return Column(name=name, scalar="text", nullable=False, json=True)
    return Column(name=name, scalar=scalar, nullable=nullable)


@cache
def shapes() -> dict[type[Record], Shape]:
    """Give the shape of every kind of record that has a table."""
    return {kind: Shape(kind) for kind in record_kinds()}


def shape_of(kind: type[Record]) -> Shape:
    """Give the shape of one kind. Raises InvalidInput for a class that the store does not keep."""
    try:
        return shapes()[kind]
    except KeyError:
        raise InvalidInput(f"{kind.__name__} is not a record that the store keeps.") from None
