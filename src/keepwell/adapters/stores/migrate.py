"""Bringing a database to this version's schema: once, under a lock, however many processes start together."""

from __future__ import annotations

import fcntl
from pathlib import Path

import sqlalchemy as sa

from keepwell.core.errors import Refused

HEAD = "0002"
"""The newest revision under ``migrations/versions``; a test compares the two."""

_FOLDER = Path(__file__).parent / "migrations"
_ADVISORY = 0x6B656571


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to ``HEAD``. Raises Refused if the database is newer than this program."""
    if _revision(engine) == HEAD:
        return
    if engine.dialect.name == "sqlite":
        database = engine.url.database or ""
        if database in {"", ":memory:"}:
            _upgrade(engine)
            return
        with Path(f"{database}.migrating").open("w") as lock:
            # An exclusive lock on a file of its own: SQLite's own locks do not span several statements of DDL.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _revision(engine) != HEAD:
                _upgrade(engine)
        return
    with engine.connect() as connection:
        connection.execute(sa.text(f"SELECT pg_advisory_lock({_ADVISORY})"))
        try:
            if _revision(engine) != HEAD:
                _upgrade(engine)
        finally:
            connection.execute(sa.text(f"SELECT pg_advisory_unlock({_ADVISORY})"))


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)


def _upgrade(engine: sa.Engine) -> None:
    # Imported here because a migration is rare and alembic costs a third of a second.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise Refused(
                f"The database is at a revision that this version does not know: {error}.",
                todo="Install the version of keepwell that wrote it, or a newer one.",
            ) from error
        connection.commit()
