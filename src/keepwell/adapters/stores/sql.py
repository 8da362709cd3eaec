"""The store on SQLite and PostgreSQL: records in tables, each change audited in its own transaction."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from keepwell.adapters.stores.migrate import migrate
from keepwell.adapters.stores.tables import AUDIT, CHANGES, Shape, shapes
from keepwell.core.clock import Clock, SystemClock
from keepwell.core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable, near_miss
from keepwell.core.records.audit import GENESIS, AuditEntry, chain
from keepwell.core.records.base import Record

R = TypeVar("R", bound=Record)

BUSY_SECONDS = 20
_ADVISORY = 0x6B656570
"""PostgreSQL's advisory lock of writers: one at a time, so that the hash chain never forks."""

_OPERATORS = {
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    "!=": lambda column, value: column != value,
}


def open_store(url: str, *, clock: Clock | None = None) -> SqlStore:
    """Open a store by URL, creating and migrating it under a lock where that is needed.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user@host/database``.
    Raises InvalidInput for another URL, Unavailable, Corrupt.
    """
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError as error:
        raise InvalidInput(
            f"{url!r} is not a database URL.",
            todo="Write 'sqlite:///path/to/file.db' or 'postgresql://user@host/database'.",
        ) from error
    family = parsed.get_backend_name()
    if family == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif family != "sqlite":
        raise InvalidInput(
            f"The database {family!r} is not supported.",
            todo=near_miss(family, ["sqlite", "postgresql"]),
        )
    where = parsed.render_as_string(hide_password=True)
    if family == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(parsed, sqlite=family == "sqlite")
    with _translated(where):
        migrate(engine)
    return SqlStore(engine, where=where, clock=clock or SystemClock())


def _engine(url: sa.URL, *, sqlite: bool) -> sa.Engine:
    if not sqlite:
        return sa.create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20)
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=5,
        max_overflow=20,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = (
            None  # transactions begin where we say, not where the driver guesses
        )
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: a commit is on disk before it is acknowledged, also through a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Turn the database's errors into ones that say what to do."""
    try:
        yield
    except OperationalError as error:
        raise Unavailable(
            f"The database did not answer: {error.orig}.",
            where=where,
            todo="See that it exists, that its disk is not full, and that nobody holds it locked.",
        ) from error
    except IntegrityError as error:
        raise Conflict(f"Another record stands in the way: {error.orig}.", where=where) from error
    except DatabaseError as error:
        if "malformed" in str(error) or "not a database" in str(error):
            raise Corrupt(
                f"The file is damaged: {error.orig}.",
                where=where,
                todo="Restore it from a backup, or move it away to begin anew.",
            ) from error
        raise Unavailable(f"The database refused: {error.orig}.", where=where) from error


class _Reads:
    """Reading over one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def get(self, kind: type[R], *key: object) -> R | None:
        shape = _shape(kind)
        if len(key) != len(kind.KEY):
            raise InvalidInput(f"{kind.__name__} has the key {kind.KEY}, got {key!r}.")
        row = self._connection.execute(
            _get_statement(shape), dict(zip((f"k_{n}" for n in kind.KEY), key, strict=True))
        ).first()
        return None if row is None else shape.record(row)  # type: ignore[return-value]

    def find(
        self,
        kind: type[R],
        where: Mapping[str, object] | None = None,
        *,
        order: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[R]:
        shape = _shape(kind)
        statement = _filtered(sa.select(shape.table), shape, where)
        for name in order or kind.KEY:
            column = _column(shape, name.removeprefix("-"))
            statement = statement.order_by(column.desc() if name.startswith("-") else column)
        if limit is not None:
            statement = statement.limit(limit)
        return [shape.record(row) for row in self._connection.execute(statement)]  # type: ignore[misc]

    def count(self, kind: type[R], where: Mapping[str, object] | None = None) -> int:
        shape = _shape(kind)
        statement = _filtered(sa.select(sa.func.count()).select_from(shape.table), shape, where)
        return int(self._connection.execute(statement).scalar_one())


class _Transaction(_Reads):
    """Writing over one connection that holds the writers' lock."""

    def __init__(self, connection: sa.Connection, *, actor: str, clock: Clock) -> None:
        super().__init__(connection)
        self._actor = actor
        self._clock = clock

    def add(self, record: Record, *, reason: str = "") -> None:
        shape = _shape(type(record))
        if self._connection.execute(_get_statement(shape), _key_of(record)).first() is not None:
            raise Conflict(f"{record.address()} exists already.")
        self._connection.execute(shape.table.insert(), shape.row(record))
        self._audit("add", record, None, record, reason)

    def replace(self, record: Record, *, reason: str = "") -> None:
        kind = type(record)
        shape = _shape(kind)
        before = self.get(kind, *record.key())
        if before is None:
            if shape.revised or kind.AUDITED:
                raise NotFound(f"There is no {record.address()} to replace.")
            self._connection.execute(shape.table.insert(), shape.row(record))
            return
        if shape.revised:
            stored, given = before.revision, record.revision  # type: ignore[attr-defined]
            if given != stored + 1:
                raise Conflict(
                    f"{record.address()} is at revision {stored}; revision {given} cannot follow.",
                    todo="Somebody else wrote first: read it again and decide again.",
                )
        elif kind.AUDITED:
            raise Conflict(f"{record.address()} is immutable.")
        values = shape.row(record)
        self._connection.execute(
            shape.table.update().where(*_by_key(shape)), values | _key_of(record)
        )
        self._audit("replace", record, before, record, reason)

    def remove(self, kind: type[Record], *key: object, reason: str) -> None:
        shape = _shape(kind)
        before = self.get(kind, *key)
        if before is None:
            raise NotFound(f"There is no {kind.TABLE}/{'/'.join(map(str, key))} to remove.")
        self._connection.execute(shape.table.delete().where(*_by_key(shape)), _key_of(before))
        self._audit("remove", before, before, None, reason)

    def _audit(
        self, action: str, record: Record, before: Record | None, after: Record | None, reason: str
    ) -> None:
        if not record.AUDITED:
            return
        last = self._connection.execute(_LAST_AUDIT).first()
        entry = chain(
            seq=(last.seq if last else 0) + 1,
            time=self._clock.now(),
            actor=self._actor,
            action=action,
            subject=record.address(),
            before=before.digest() if before else "",
            after=after.digest() if after else "",
            reason=reason,
            previous=last.hash if last else GENESIS,
        )
        self._connection.execute(
            AUDIT.insert(), {name: getattr(entry, name) for name in AuditEntry.__struct_fields__}
        )


_LAST_AUDIT = sa.select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)
_BUMP = CHANGES.update().where(CHANGES.c.id == 1).values(number=CHANGES.c.number + 1)


class SqlStore:
    """A store over a SQLAlchemy engine. Implements ``keepwell.core.ports.store.Store``."""

    def __init__(self, engine: sa.Engine, *, where: str, clock: Clock) -> None:
        self.engine = engine
        self.where = where
        self._clock = clock
        self._sqlite = engine.dialect.name == "sqlite"
        # SQLite admits one writer; threads of one process queue here rather than spin on the file's lock.
        self._writing = threading.RLock()

    @contextmanager
    def _reading(self) -> Iterator[_Reads]:
        with _translated(self.where), self.engine.connect() as connection:
            yield _Reads(connection)

    def get(self, kind: type[R], *key: object) -> R | None:
        """See ``keepwell.core.ports.store.Reader``."""
        with self._reading() as reads:
            return reads.get(kind, *key)

    def find(
        self,
        kind: type[R],
        where: Mapping[str, object] | None = None,
        *,
        order: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[R]:
        """See ``keepwell.core.ports.store.Reader``."""
        with self._reading() as reads:
            return reads.find(kind, where, order=order, limit=limit)

    def count(self, kind: type[R], where: Mapping[str, object] | None = None) -> int:
        """See ``keepwell.core.ports.store.Reader``."""
        with self._reading() as reads:
            return reads.count(kind, where)

    @contextmanager
    def transaction(self, *, actor: str) -> Iterator[_Transaction]:
        """See ``keepwell.core.ports.store.Store``."""
        with self._writing, _translated(self.where), self.engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY})"))
            try:
                yield _Transaction(connection, actor=actor, clock=self._clock)
                connection.execute(_BUMP)
            except BaseException:
                self._end(connection, "ROLLBACK")
                raise
            self._end(connection, "COMMIT")

    def _end(self, connection: sa.Connection, word: str) -> None:
        if self._sqlite:
            connection.exec_driver_sql(word)
        elif word == "COMMIT":
            connection.commit()
        else:
            connection.rollback()

    def audit(self, *, after: int = 0, limit: int | None = None) -> Iterator[AuditEntry]:
        """See ``keepwell.core.ports.store.Store``."""
        page = 1000
        left = limit
        while left is None or left > 0:
            size = page if left is None else min(page, left)
            statement = (
                sa.select(AUDIT).where(AUDIT.c.seq > after).order_by(AUDIT.c.seq).limit(size)
            )
            with _translated(self.where), self.engine.connect() as connection:
                rows = connection.execute(statement).all()
            for row in rows:
                yield AuditEntry(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
            if len(rows) < size:
                return
            after = rows[-1].seq
            left = None if left is None else left - len(rows)

    def version(self) -> int:
        """See ``keepwell.core.ports.store.Store``."""
        with _translated(self.where), self.engine.connect() as connection:
            return int(connection.execute(sa.select(CHANGES.c.number)).scalar_one())

    def close(self) -> None:
        """See ``keepwell.core.ports.store.Store``."""
        self.engine.dispose()


def _shape(kind: type[Record]) -> Shape:
    try:
        return shapes()[kind]
    except KeyError:
        raise InvalidInput(f"{kind.__name__} is not a record that the store keeps.") from None


_statements: dict[type[Record], sa.Select[Any]] = {}


def _by_key(shape: Shape) -> list[sa.ColumnElement[bool]]:
    return [shape.table.c[name] == sa.bindparam(f"k_{name}") for name in shape.kind.KEY]


def _key_of(record: Record) -> dict[str, Any]:
    return {f"k_{name}": getattr(record, name) for name in record.KEY}


def _get_statement(shape: Shape) -> sa.Select[Any]:
    statement = _statements.get(shape.kind)
    if statement is None:
        statement = sa.select(shape.table).where(*_by_key(shape))
        _statements[shape.kind] = statement
    return statement


def _column(shape: Shape, name: str) -> sa.Column[Any]:
    if name not in shape.table.c or name in shape.json:
        columns = [column for column in shape.fields if column not in shape.json]
        raise InvalidInput(
            f"{shape.kind.__name__} has no column {name!r} to search by.",
            todo=near_miss(name, columns),
        )
    return shape.table.c[name]


def _filtered(statement: Any, shape: Shape, where: Mapping[str, object] | None) -> Any:
    for words, value in (where or {}).items():
        name, _, operator = words.partition(" ")
        column = _column(shape, name)
        if operator:
            if operator not in _OPERATORS:
                raise InvalidInput(
                    f"{operator!r} is not an operator.", todo=near_miss(operator, _OPERATORS)
                )
            statement = statement.where(_OPERATORS[operator](column, value))
        elif isinstance(value, list | tuple | set | frozenset):
            statement = statement.where(column.in_(list(value)))
        elif value is None:
            statement = statement.where(column.is_(None))
        else:
            statement = statement.where(column == value)
    return statement
