"""Connections and plain SQL for tracking: one text a statement, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from keepwell.adapters.tracking.tables import metadata
from keepwell.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import Connection, Engine

BUSY_SECONDS = 30.0


@cache
def _numbered(sql: str) -> str:
    """Give the statement in PostgreSQL's parameter style; our statements hold no literal ``%`` or ``?``."""
    return sql.replace("?", "%s")


def open_engine(url: str) -> Engine:
    """Open an engine whose commits are on disk when they return. Makes nothing in the database."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    engine = create_engine(
        parsed, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # SQLAlchemy's own BEGIN is deferred; a deferred reader that turns writer can fail at once as busy.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA temp_store=MEMORY")

    return engine


class Database:
    """Runs statements with ``?`` parameters on one engine. Safe from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        # Waiting on a lock here is fair and cheap; SQLite's own busy wait sleeps and starves.
        self._writing = threading.Lock()

    def create_tables(self) -> None:
        """Make the tables where there are none yet."""
        metadata.create_all(self.engine)

    @contextmanager
    def read(self) -> Iterator[Statements]:
        """Run reads that see one state of the database."""
        with self.engine.connect() as connection:
            statements = Statements(connection, sqlite=self.sqlite)
            if self.sqlite:
                connection.exec_driver_sql("BEGIN")
            try:
                yield statements
            finally:
                if self.sqlite:
                    connection.exec_driver_sql("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[Statements]:
        """Run writes that become durable together, or not at all."""
        if not self.sqlite:
            with self.engine.begin() as connection:
                yield Statements(connection, sqlite=False)
            return
        with self._writing, self.engine.connect() as connection:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                raise Unavailable(
                    "The database is busy with another writer.", todo="Try again."
                ) from error
            try:
                yield Statements(connection, sqlite=True)
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")


class Statements:
    """Statements inside one transaction."""

    def __init__(self, connection: Connection, *, sqlite: bool) -> None:
        self._connection = connection
        self.sqlite = sqlite

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Give all rows."""
        found = self._connection.exec_driver_sql(self._text(sql), tuple(values))
        # Plain tuples: SQLAlchemy's rows cost as much again as the query itself.
        return list(found.cursor.fetchall()) if found.cursor is not None else []

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any | None:
        """Give the first row, or None."""
        return next(iter(self.all(sql, values)), None)

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Change rows, and count them."""
        return self._connection.exec_driver_sql(self._text(sql), tuple(values)).rowcount

    def many(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run one statement for each row of values."""
        if len(rows) == 1:
            self._connection.exec_driver_sql(self._text(sql), rows[0])
        elif rows:
            self._connection.exec_driver_sql(self._text(sql), list(rows))

    def _text(self, sql: str) -> str:
        return sql if self.sqlite else _numbered(sql)


def marks(values: Sequence[Any]) -> str:
    """Give as many parameter marks as there are values."""
    return ",".join("?" * len(values))
