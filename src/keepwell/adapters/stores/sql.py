"""The store on SQLite and PostgreSQL: records in tables, each change audited in its own transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from keepwell.adapters.stores.connections import HEAD, Connection, Connections
from keepwell.adapters.stores.shapes import shape_of
from keepwell.adapters.stores.sqlite import SqliteConnections
from keepwell.adapters.stores.texts import Texts
from keepwell.core.clock import Clock, SystemClock
from keepwell.core.errors import Conflict, InvalidInput, NotFound
from keepwell.core.records.audit import GENESIS, AuditEntry, chain
from keepwell.core.records.base import Record

R = TypeVar("R", bound=Record)

_PAGE = 1000


def open_store(url: str, *, clock: Clock | None = None) -> SqlStore:
    """Open a store by URL, creating and migrating it under a lock where that is needed.

    ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user@host/database``.
    Raises InvalidInput for another URL, Unavailable, Corrupt, and Refused for a newer database.
    """
    connections: Connections
    if url.startswith("sqlite:///") and unquote(url.removeprefix("sqlite:///")) not in {
        "",
        ":memory:",
    }:
        connections = _open_sqlite(Path(unquote(url.removeprefix("sqlite:///").partition("?")[0])))
    elif url.startswith(("postgresql://", "postgresql+psycopg://")):
        connections = _open_postgresql(url)
    else:
        family = url.partition(":")[0]
        raise InvalidInput(
            f"A store cannot be opened at a URL that begins with {family[:40]!r}.",
            todo="Write 'sqlite:///path/to/file.db' or 'postgresql://user@host/database'.",
        )
    return SqlStore(connections, clock=clock or SystemClock())


# The functions below import what they need when they need it: SQLite's usual start is without SQLAlchemy and
# Alembic, which cost 0.6 s and 40 MB in every command and every worker of the gateway.
def _open_sqlite(path: Path) -> Connections:
    connections = SqliteConnections(path)
    connections.prepare()
    _bring_up_to_date(connections)
    return connections


def _open_postgresql(url: str) -> Connections:
    try:
        import sqlalchemy as sa  # noqa: PLC0415

        from keepwell.adapters.stores.postgresql import PostgresqlConnections  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"PostgreSQL needs the package {error.name!r}.",
            todo="Install it: pip install 'keepwell[postgres]'.",
        ) from error
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InvalidInput(
            "The URL of the database cannot be read.",
            todo="Write 'postgresql://user@host/database'.",
        ) from error
    connections = PostgresqlConnections(parsed)
    _bring_up_to_date(connections)
    return connections


def _bring_up_to_date(connections: Connections) -> None:
    try:
        if connections.revision() != HEAD:
            from keepwell.adapters.stores.migrate import migrate  # noqa: PLC0415

            with connections.translated():
                migrate(connections.engine)
    except BaseException:
        connections.close()
        raise


class SqlStore:
    """Records in a database. Implements ``keepwell.core.ports.store.Store``."""

    def __init__(self, connections: Connections, *, clock: Clock) -> None:
        self._connections = connections
        self._texts = connections.texts
        self._clock = clock

    @property
    def engine(self) -> Any:
        """SQLAlchemy's engine on the same database, for its tools: comparing schemas, repairs by hand."""
        return self._connections.engine

    def get(self, kind: type[R], *key: object) -> R | None:
        """See ``keepwell.core.ports.store.Reader``."""
        with self._connections.reading() as connection:
            return _Reads(connection, self._texts).get(kind, *key)

    def find(
        self,
        kind: type[R],
        where: Mapping[str, object] | None = None,
        *,
        order: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[R]:
        """See ``keepwell.core.ports.store.Reader``."""
        with self._connections.reading() as connection:
            return _Reads(connection, self._texts).find(kind, where, order=order, limit=limit)

    def count(self, kind: type[R], where: Mapping[str, object] | None = None) -> int:
        """See ``keepwell.core.ports.store.Reader``."""
        with self._connections.reading() as connection:
            return _Reads(connection, self._texts).count(kind, where)

    @contextmanager
    def transaction(self, *, actor: str) -> Iterator[SqlTransaction]:
        """See ``keepwell.core.ports.store.Store``."""
        with self._connections.writing() as connection:
            transaction = SqlTransaction(connection, self._texts, actor=actor, clock=self._clock)
            yield transaction
            if transaction.wrote:
                connection.execute(self._texts.bump)

    def audit(self, *, after: int = 0, limit: int | None = None) -> Iterator[AuditEntry]:
        """See ``keepwell.core.ports.store.Store``."""
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            with self._connections.reading() as connection:
                rows = connection.execute(self._texts.entries, (after, size)).fetchall()
            for row in rows:
                yield AuditEntry(**dict(zip(AuditEntry.__struct_fields__, row, strict=True)))
            if len(rows) < size:
                return
            after = rows[-1][0]
            left = None if left is None else left - len(rows)

    def version(self) -> int:
        """See ``keepwell.core.ports.store.Store``."""
        with self._connections.reading() as connection:
            return int(connection.execute(self._texts.version).fetchone()[0])

    def close(self) -> None:
        """See ``keepwell.core.ports.store.Store``."""
        self._connections.close()


class _Reads:
    """Reading over one connection."""

    def __init__(self, connection: Connection, texts: Texts) -> None:
        self._connection = connection
        self._texts = texts

    def get(self, kind: type[R], *key: object) -> R | None:
        """See ``keepwell.core.ports.store.Reader``."""
        shape = shape_of(kind)
        if len(key) != len(kind.KEY):
            raise InvalidInput(f"{kind.__name__} has the key {kind.KEY}, got {key!r}.")
        row = self._connection.execute(self._texts.get(kind), key).fetchone()
        return None if row is None else shape.record(row)  # type: ignore[return-value]

    def find(
        self,
        kind: type[R],
        where: Mapping[str, object] | None = None,
        *,
        order: Sequence[str] = (),
        limit: int | None = None,
    ) -> list[R]:
        """See ``keepwell.core.ports.store.Reader``."""
        shape = shape_of(kind)
        text, values = self._texts.find(kind, where, order, limit)
        rows = self._connection.execute(text, values).fetchall()
        return [shape.record(row) for row in rows]  # type: ignore[misc]

    def count(self, kind: type[R], where: Mapping[str, object] | None = None) -> int:
        """See ``keepwell.core.ports.store.Reader``."""
        text, values = self._texts.count(kind, where)
        return int(self._connection.execute(text, values).fetchone()[0])


class SqlTransaction(_Reads):
    """Writing over the one connection that may. Implements ``keepwell.core.ports.store.Transaction``."""

    def __init__(self, connection: Connection, texts: Texts, *, actor: str, clock: Clock) -> None:
        super().__init__(connection, texts)
        self._actor = actor
        self._clock = clock
        self._last: tuple[int, str] | None = None
        self.wrote = False

    def add(self, record: Record, *, reason: str = "") -> None:
        """See ``keepwell.core.ports.store.Transaction``."""
        kind = type(record)
        added = self._write(self._texts.insert(kind), shape_of(kind).row(record))
        if not added:
            raise Conflict(f"{record.address()} exists already.")
        self._audit("add", record, None, record, reason)

    def replace(self, record: Record, *, reason: str = "") -> None:
        """See ``keepwell.core.ports.store.Transaction``."""
        kind = type(record)
        shape = shape_of(kind)
        if not shape.revised:
            if kind.AUDITED:
                raise Conflict(f"{record.address()} is immutable.")
            self._write(self._texts.put(kind), shape.row(record))
            return
        before = self.get(kind, *record.key())
        if before is None:
            raise NotFound(f"There is no {record.address()} to replace.")
        stored, given = before.revision, record.revision  # type: ignore[attr-defined]
        if given != stored + 1:
            raise Conflict(
                f"{record.address()} is at revision {stored}; revision {given} cannot follow.",
                todo="Somebody else wrote first: read it again and decide again.",
            )
        self._write(self._texts.update(kind), [*shape.row(record), *record.key()])
        self._audit("replace", record, before, record, reason)

    def remove(self, kind: type[Record], *key: object, reason: str) -> None:
        """See ``keepwell.core.ports.store.Transaction``."""
        before = self.get(kind, *key)
        if before is None:
            raise NotFound(f"There is no {kind.TABLE}/{'/'.join(map(str, key))} to remove.")
        self._write(self._texts.delete(kind), key)
        self._audit("remove", before, before, None, reason)

    def _write(self, text: str, values: Sequence[Any]) -> int:
        self.wrote = True
        return int(self._connection.execute(text, values).rowcount)

    def _audit(
        self, action: str, record: Record, before: Record | None, after: Record | None, reason: str
    ) -> None:
        if not record.AUDITED:
            return
        if self._last is None:
            found = self._connection.execute(self._texts.last_entry).fetchone()
            self._last = (found[0], found[1]) if found else (0, GENESIS)
        entry = chain(
            seq=self._last[0] + 1,
            time=self._clock.now(),
            actor=self._actor,
            action=action,
            subject=record.address(),
            before=before.digest() if before else "",
            # Of what will be read, not of what was given: 1 in a field of floats comes back as 1.0.
            after=shape_of(type(after)).as_read(after).digest() if after else "",
            reason=reason,
            previous=self._last[1],
        )
        values = [getattr(entry, name) for name in AuditEntry.__struct_fields__]
        self._connection.execute(self._texts.add_entry, values)
        self._last = (entry.seq, entry.hash)
