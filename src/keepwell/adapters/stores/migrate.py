"""Bringing a database to this version's schema: once, in one transaction, however many processes start together."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError

from keepwell.adapters.stores.connections import HEAD
from keepwell.core.errors import Refused

__all__ = ["HEAD", "migrate"]

_FOLDER = Path(__file__).parent / "migrations"
_MIGRATORS = 0x6B656571
"""PostgreSQL's advisory lock of those who migrate."""


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to the newest revision. Raises Refused if the database is newer than this program.

    The look at the revision and all the changes are one transaction under a lock: who comes second
    finds the work done, and a process that is killed half-way leaves nothing behind.
    """
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                _begin_exclusively(connection)
            else:
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATORS})"))
            _upgrade(connection)
            connection.commit()
    except sa.exc.DBAPIError as error:
        raise (error.orig or error) from error


def _begin_exclusively(connection: sa.Connection) -> None:
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.isolation_level = (
        None  # otherwise the driver would run each change of the schema by itself
    )
    driver.execute("PRAGMA busy_timeout=60000")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        found = MigrationContext.configure(connection).get_current_revision()
        raise Refused(
            f"The database is at the revision {found!r}, which this version does not know.",
            todo="Install the version of keepwell that wrote it, or a newer one.",
        ) from error
