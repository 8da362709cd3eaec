"""The SQL that the store speaks: one text a question, the same on SQLite and PostgreSQL but for marks and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from keepwell.adapters.stores.shapes import Column, Shape, shape_of
from keepwell.core.errors import InvalidInput, near_miss
from keepwell.core.records.audit import AuditEntry
from keepwell.core.records.base import Record

_BOUNDS = (">", ">=", "<", "<=", "!=")


class Dialect(NamedTuple):
    """Where the two databases differ in what we say to them."""

    mark: str
    """Stands for a parameter."""
    binary: str
    """Makes texts compare by their bytes, as SQLite does by itself, whatever the database's language is."""
    differs: str
    """Not equal, where NULL is a value like any other."""


SQLITE = Dialect(mark="?", binary="", differs="IS NOT")
POSTGRESQL = Dialect(mark="%s", binary=' COLLATE "C"', differs="IS DISTINCT FROM")

Condition = tuple[str, str, int]
"""Column, comparison, and the number of values of a list."""


class Texts:
    """The texts in one dialect. Names come from our own record classes only; every value is a parameter."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        mark = dialect.mark
        names = AuditEntry.__struct_fields__
        columns = ", ".join(f'"{name}"' for name in names)
        self.version = "SELECT number FROM changes WHERE id = 1"
        self.bump = "UPDATE changes SET number = number + 1 WHERE id = 1"
        self.last_entry = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1"
        self.entries = f"SELECT {columns} FROM audit WHERE seq > {mark} ORDER BY seq LIMIT {mark}"  # noqa: S608
        self.add_entry = f"INSERT INTO audit ({columns}) VALUES ({self._marks(len(names))})"  # noqa: S608
        # A process asks the same few dozen questions over and over; building a text costs more than running it.
        self.get = lru_cache(maxsize=None)(self._get)
        self.insert = lru_cache(maxsize=None)(self._insert)
        self.put = lru_cache(maxsize=None)(self._put)
        self.update = lru_cache(maxsize=None)(self._update)
        self.delete = lru_cache(maxsize=None)(self._delete)
        self._select = lru_cache(maxsize=1000)(self._build_select)

    def _marks(self, count: int) -> str:
        return ", ".join([self._dialect.mark] * count)

    def _by_key(self, kind: type[Record]) -> str:
        return " AND ".join(f'"{name}" = {self._dialect.mark}' for name in kind.KEY)

    def _get(self, kind: type[Record]) -> str:
        return f'SELECT {_names(kind)} FROM "{kind.TABLE}" WHERE {self._by_key(kind)}'  # noqa: S608

    def _insert(self, kind: type[Record]) -> str:
        marks = self._marks(len(shape_of(kind).columns))
        # Not an error but no row when the key exists: on PostgreSQL an error would end the transaction.
        return (
            f'INSERT INTO "{kind.TABLE}" ({_names(kind)}) VALUES ({marks}) ON CONFLICT DO NOTHING'  # noqa: S608
        )

    def _put(self, kind: type[Record]) -> str:
        marks = self._marks(len(shape_of(kind).columns))
        key = ", ".join(f'"{name}"' for name in kind.KEY)
        changes = ", ".join(f'"{c.name}" = excluded."{c.name}"' for c in shape_of(kind).columns)
        return (
            f'INSERT INTO "{kind.TABLE}" ({_names(kind)}) VALUES ({marks}) '  # noqa: S608
            f"ON CONFLICT ({key}) DO UPDATE SET {changes}"
        )

    def _update(self, kind: type[Record]) -> str:
        changes = ", ".join(f'"{c.name}" = {self._dialect.mark}' for c in shape_of(kind).columns)
        return f'UPDATE "{kind.TABLE}" SET {changes} WHERE {self._by_key(kind)}'  # noqa: S608

    def _delete(self, kind: type[Record]) -> str:
        return f'DELETE FROM "{kind.TABLE}" WHERE {self._by_key(kind)}'  # noqa: S608

    def find(
        self,
        kind: type[Record],
        where: Mapping[str, object] | None,
        order: Sequence[str],
        limit: int | None,
    ) -> tuple[str, list[Any]]:
        """Give the text and its parameters. Raises InvalidInput for what is no column or no comparison."""
        conditions, values = _conditions(kind, where)
        if limit is not None:
            if limit < 0:
                raise InvalidInput(f"A limit cannot be {limit}.")
            values.append(limit)
        return self._select(kind, conditions, tuple(order) or kind.KEY, limit is not None), values

    def count(
        self, kind: type[Record], where: Mapping[str, object] | None
    ) -> tuple[str, list[Any]]:
        """Give the text that counts what ``find`` would list, and its parameters."""
        conditions, values = _conditions(kind, where)
        return self._select(kind, conditions, None, False), values

    def _build_select(
        self,
        kind: type[Record],
        conditions: tuple[Condition, ...],
        order: tuple[str, ...] | None,
        limited: bool,  # noqa: FBT001 - part of the cache's key
    ) -> str:
        shape = shape_of(kind)
        what = "COUNT(*)" if order is None else _names(kind)
        text = f'SELECT {what} FROM "{kind.TABLE}"'  # noqa: S608
        if conditions:
            text += " WHERE " + " AND ".join(self._condition(shape, *c) for c in conditions)
        if order is not None:
            text += " ORDER BY " + ", ".join(self._order(shape, name) for name in order)
        return text + (f" LIMIT {self._dialect.mark}" if limited else "")

    def _condition(self, shape: Shape, name: str, comparison: str, count: int) -> str:
        column = f'"{name}"'
        mark = self._dialect.mark
        if comparison in {"IS NULL", "IS NOT NULL"}:
            return f"{column} {comparison}"
        if comparison == "IN":
            return f"{column} IN ({self._marks(count)})" if count else "1 = 0"
        if comparison == "IN OR NULL":
            listed = f"{column} IN ({self._marks(count)}) OR " if count else ""
            return f"({listed}{column} IS NULL)"
        if comparison == "!=":
            return f"{column} {self._dialect.differs} {mark}"
        bytewise = comparison != "=" and shape.by_name[name].scalar == "text"
        return f"{column}{self._dialect.binary if bytewise else ''} {comparison} {mark}"

    def _order(self, shape: Shape, name: str) -> str:
        column = _searchable(shape, name.removeprefix("-"))
        text = f'"{column.name}"' + (self._dialect.binary if column.scalar == "text" else "")
        down = name.startswith("-")
        text += " DESC" if down else ""
        # Nothing sorts before something, as in SQLite; PostgreSQL has it the other way round.
        return text + ((" NULLS LAST" if down else " NULLS FIRST") if column.nullable else "")


def _names(kind: type[Record]) -> str:
    return ", ".join(f'"{column.name}"' for column in shape_of(kind).columns)


def _searchable(shape: Shape, name: str) -> Column:
    column = shape.by_name.get(name)
    if column is None or column.json:
        raise InvalidInput(
            f"{shape.kind.__name__} has no column {name!r} to search by.",
            todo=near_miss(name, [known.name for known in shape.columns if not known.json]),
        )
    return column


def _conditions(
    kind: type[Record], where: Mapping[str, object] | None
) -> tuple[tuple[Condition, ...], list[Any]]:
    shape = shape_of(kind)
    conditions: list[Condition] = []
    values: list[Any] = []
    for words, wanted in (where or {}).items():
        name, _, comparison = words.partition(" ")
        _searchable(shape, name)
        if comparison and comparison not in _BOUNDS:
            raise InvalidInput(
                f"{comparison!r} is not a comparison.", todo=near_miss(comparison, _BOUNDS)
            )
        if isinstance(wanted, list | tuple | set | frozenset):
            if comparison:
                raise InvalidInput(f"{words!r} takes one value, not a list.")
            listed = [value for value in wanted if value is not None]
            conditions.append(
                (name, "IN" if len(listed) == len(wanted) else "IN OR NULL", len(listed))
            )
            values += listed
        elif wanted is None:
            if comparison not in {"", "!="}:
                raise InvalidInput(f"{words!r} needs a value, not None.")
            conditions.append((name, "IS NOT NULL" if comparison else "IS NULL", 0))
        else:
            conditions.append((name, comparison or "=", 1))
            values.append(wanted)
    return tuple(conditions), values
