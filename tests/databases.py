"""New databases for tests: the schema is made once in a test process, and copied."""

import functools
import tempfile
import uuid
from pathlib import Path

import sqlalchemy as sa

from keepwell.adapters.stores.sql import open_store


@functools.cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keepwell.db"
        open_store(f"sqlite:///{path}").close()
        return path.read_bytes()


def migrated_file(path: Path) -> str:
    """Make an SQLite database with the whole schema and no rows where there is none; give its URL."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_migrated_file())
    return f"sqlite:///{path}"


def postgres_database(server: str, *, like: str = "template1") -> str:
    """Make a database on a server as a copy of another; give its URL."""
    base = sa.make_url(server)
    name = f"t{uuid.uuid4().hex}"
    engine = sa.create_engine(
        base.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
    engine.dispose()
    return base.set(database=name).render_as_string(hide_password=False)


@functools.cache
def _migrated_postgres(server: str) -> str:
    url = postgres_database(server)
    open_store(url).close()
    return str(sa.make_url(url).database)


def migrated_postgres(server: str) -> str:
    """Make a database with the whole schema and no rows on a server; give its URL."""
    return postgres_database(server, like=_migrated_postgres(server))
