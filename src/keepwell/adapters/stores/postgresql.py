"""PostgreSQL's connections: a pool, and an advisory lock that lets one writer in at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
import sqlalchemy as sa

from keepwell.adapters.stores.connections import translated
from keepwell.adapters.stores.texts import POSTGRESQL, Texts
from keepwell.core.errors import Unavailable

BUSY_SECONDS = 20
_WRITERS = 0x6B656570
"""The advisory lock of writers. Were there two at once, two audit entries could follow the same one."""


class PostgresqlConnections:
    """Connections to one database. Implements ``keepwell.adapters.stores.connections.Connections``."""

    def __init__(self, url: sa.URL) -> None:
        self.where = url.render_as_string(hide_password=True)
        self.texts = Texts(POSTGRESQL)
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=20,
            pool_timeout=BUSY_SECONDS,
        )

    def revision(self) -> str:
        """Give the schema's revision, or an empty text if there is no schema yet."""
        with self.reading() as connection:
            found = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
            if found is None or found[0] is None:
                return ""
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(row[0]) if row else ""

    @contextmanager
    def _lent(self) -> Iterator[psycopg.Connection]:
        try:
            lent = self.engine.raw_connection()
        except sa.exc.TimeoutError as error:
            raise Unavailable(
                f"No connection became free in {BUSY_SECONDS} seconds.", where=self.where
            ) from error
        except sa.exc.DBAPIError as error:
            raise (error.orig or error) from error
        driver: psycopg.Connection = lent.driver_connection  # type: ignore[assignment]
        try:
            yield driver
        except psycopg.OperationalError:
            if driver.closed or driver.broken:
                lent.invalidate()
            raise
        finally:
            lent.close()

    def translated(self) -> AbstractContextManager[None]:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        return translated(psycopg, self.where)

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection]:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        with self.translated(), self._lent() as connection:
            connection.set_autocommit(True)  # a read alone needs no BEGIN and no ROLLBACK
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.set_autocommit(False)

    @contextmanager
    def writing(self) -> Iterator[psycopg.Connection]:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        with self.translated(), self._lent() as connection:
            try:
                connection.execute(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'")
                connection.execute(f"SELECT pg_advisory_xact_lock({_WRITERS})")
                yield connection
                self._refuse_failed(connection)
                connection.commit()
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise

    def _refuse_failed(self, connection: psycopg.Connection) -> None:
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            # COMMIT would answer ROLLBACK here, without an error, to somebody who thinks it is kept.
            raise Unavailable(
                "A statement of the transaction failed, so nothing of it is kept.",
                where=self.where,
            )

    def close(self) -> None:
        """See ``keepwell.adapters.stores.connections.Connections``."""
        self.engine.dispose()
