"""SQLite's connections: one a thread to read by, one a process to write by.

They go straight to the driver: through an engine's pool and its compiled statements a read by key takes
100 us, this way 10.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from keepwell.adapters.stores.connections import translated
from keepwell.adapters.stores.texts import SQLITE, Texts
from keepwell.core.errors import InvalidInput, Unavailable

BUSY_SECONDS = 20.0
"""How long a writer waits for another; a transaction takes milliseconds, so this is a stuck one."""


class _Connection(sqlite3.Connection):
    """The driver's own, in a form that can be watched without being kept alive."""


class SqliteConnections:
    """Connections to one file. Implements ``keepwell.adapters.stores.connections.Connections``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)
        self.texts = Texts(SQLITE)
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._mine = threading.local()
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._writer: _Connection | None = None
        # SQLite admits one writer. Threads of one process queue here: its own waiting is sleeping and looking again.
        self._lock = threading.Lock()
        self._holder: int | None = None

    def _open(self, *, mode: str = "rw") -> _Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}",  # "rw": a file that was taken away is not made anew
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions begin where we say, not where the driver guesses
            check_same_thread=False,
            cached_statements=512,
            factory=_Connection,
        )
        # FULL: a commit is on disk before it is acknowledged, also through a power cut. NORMAL would save
        # one fdatasync a transaction and lose the last ones then.
        connection.execute("PRAGMA synchronous=FULL")
        self._all.add(connection)
        return connection

    def prepare(self) -> None:
        """Make the file if there is none, and see that it keeps a write-ahead log."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"The database's folder cannot be made: {error.strerror}.", where=self.where
            ) from error
        with self.translated():
            connection = self._open(mode="rwc")
            # Readers never wait for the writer, nor it for them. The file remembers it.
            try:
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    # Of several processes that change the mode at once SQLite refuses all but one, without waiting.
                    with Path(f"{self.path}.migrating").open("w") as lock:
                        fcntl.flock(lock, fcntl.LOCK_EX)
                        connection.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()

    def revision(self) -> str:
        """Give the schema's revision, or an empty text if there is no schema yet."""
        with self.reading() as connection:
            found = connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
            ).fetchone()
            row = found and connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(row[0]) if row else ""

    @cached_property
    def engine(self) -> Any:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        import sqlalchemy as sa  # noqa: PLC0415 - a start without SQLAlchemy takes half the time and memory

        return sa.create_engine(
            sa.URL.create("sqlite", database=str(self.path)), poolclass=sa.NullPool
        )

    def translated(self) -> AbstractContextManager[None]:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        return translated(sqlite3, self.where)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        with self.translated():
            if self._process != os.getpid():
                self._begin()  # connections must not be carried over a fork
            connection: _Connection | None = getattr(self._mine, "connection", None)
            if connection is None:
                connection = self._open()
                self._mine.connection = connection
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        if self._process != os.getpid():
            self._begin()
        if self._holder == threading.get_ident():
            raise InvalidInput(
                "A transaction is open in this thread already.",
                todo="Write through the open one; a second would wait for it for ever.",
            )
        if not self._lock.acquire(timeout=BUSY_SECONDS):
            raise Unavailable(
                f"Another thread has been writing for {BUSY_SECONDS:g} seconds.", where=self.where
            )
        try:
            self._holder = threading.get_ident()
            with self.translated():
                if self._writer is None:
                    self._writer = self._open()
                connection = self._writer
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.commit()
                except BaseException:
                    connection.rollback()  # does nothing where SQLite has rolled back by itself (disk full)
                    raise
        finally:
            self._holder = None
            self._lock.release()

    def close(self) -> None:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        if self._process == os.getpid():
            for connection in list(self._all):
                connection.close()
        self._begin()
