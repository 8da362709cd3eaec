"""The store's contract on both databases, and on members that break it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from keepwell.adapters.stores import migrate, tables
from keepwell.adapters.stores.sql import SqlStore, open_store
from keepwell.adapters.tracking import tables as tracking_tables
from keepwell.core.auditing import audit_problems, audited_kinds
from keepwell.core.errors import Corrupt, InvalidInput, Refused, Unavailable
from keepwell.core.records.models import Model
from keepwell.testing.store import StoreContract, a_model


@pytest.fixture
def store(migrated: str) -> Iterator[SqlStore]:
    made = open_store(migrated)
    yield made
    made.close()


class TestSqlStore(StoreContract):
    @pytest.fixture
    def store(self, store: SqlStore) -> SqlStore:
        return store


class _Forgetful(SqlStore):
    """A store that does not check revisions: the last writer wins."""

    @contextmanager
    def transaction(self, *, actor):
        with super().transaction(actor=actor) as transaction:
            replace = transaction.replace

            def blindly(record, *, reason=""):
                from msgspec.structs import replace as copy

                before: Any = transaction.get(type(record), *record.key())
                replace(copy(record, revision=before.revision + 1), reason=reason)

            transaction.replace = blindly  # type: ignore[method-assign]
            yield transaction


class _Silent(SqlStore):
    """A store that keeps no trail."""

    @contextmanager
    def transaction(self, *, actor):
        with super().transaction(actor=actor) as transaction:
            transaction._audit = lambda *_: None  # type: ignore[method-assign]
            yield transaction


def test_the_contract_catches_a_store_where_the_last_writer_wins(tmp_path):
    open_store(f"sqlite:///{tmp_path}/a.db").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db")
    good = open_store(f"sqlite:///{tmp_path}/a.db")
    bad = _Forgetful(good._connections, clock=good._clock)
    with pytest.raises(pytest.fail.Exception):
        StoreContract().test_a_replacement_must_follow_the_stored_revision(bad)
    good.close()
    engine.dispose()


def test_the_contract_catches_a_store_without_a_trail(tmp_path):
    good = open_store(f"sqlite:///{tmp_path}/a.db")
    bad = _Silent(good._connections, clock=good._clock)
    with pytest.raises(AssertionError):
        StoreContract().test_every_audited_change_leaves_one_linked_entry(bad)
    good.close()


def test_the_migrated_schema_equals_the_tables_that_the_program_uses(store):
    tables.shapes()
    wanted = sa.MetaData()
    for metadata in (tables.METADATA, tracking_tables.metadata):
        for table in metadata.tables.values():
            table.to_metadata(wanted)
    with store.engine.connect() as connection, warnings.catch_warnings():
        # SQLite cannot reflect an index over an expression; PostgreSQL's side of this test sees it.
        warnings.filterwarnings("ignore", message=".*expression-based index")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, wanted) == []
        wanted.tables["models"].append_column(sa.Column("unknown", sa.Text()))
        assert compare_metadata(context, wanted), "the comparison must see a missing column"


def test_head_is_the_newest_migration():
    assert ScriptDirectory(str(migrate._FOLDER)).get_current_head() == migrate.HEAD


def test_a_database_of_a_newer_program_is_refused(database):
    store = open_store(database)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(Refused):
        open_store(database)


def test_a_file_that_is_no_database_is_named_as_damaged(tmp_path):
    (tmp_path / "a.db").write_bytes(b"not a database at all" * 400)
    with pytest.raises(Corrupt, match="damaged"):
        open_store(f"sqlite:///{tmp_path}/a.db")


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://localhost/x"])
def test_an_unsupported_url_says_what_to_write(url):
    with pytest.raises(InvalidInput, match="sqlite"):
        open_store(url)


def test_a_database_that_does_not_answer_is_unavailable_and_its_password_is_not_told():
    with pytest.raises(Unavailable) as caught:
        open_store("postgresql://u:secret-word@127.0.0.1:1/x")
    assert "secret-word" not in str(caught.value)


def test_a_changed_byte_of_an_audit_entry_is_found(store):
    with store.transaction(actor="ana") as transaction:
        for name in ("a", "b", "c"):
            transaction.add(a_model(name), reason="new")
    assert audit_problems(store) == []
    for column, value in (("reason", "'nev'"), ("actor", "'anb'"), ("time", "time + 1")):
        with store.engine.begin() as connection:
            before = connection.exec_driver_sql(
                f"SELECT {column} FROM audit WHERE seq = 2"
            ).scalar_one()
            connection.exec_driver_sql(f"UPDATE audit SET {column} = {value} WHERE seq = 2")
        assert any("entry 2" in problem for problem in audit_problems(store)), column
        with store.engine.begin() as connection:
            connection.execute(
                sa.update(tables.AUDIT).where(tables.AUDIT.c.seq == 2).values({column: before})
            )
        assert audit_problems(store) == []


def test_a_row_changed_added_or_removed_past_the_trail_is_found(store):
    with store.transaction(actor="ana") as transaction:
        for name in ("a", "b", "c"):
            transaction.add(a_model(name))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE models SET description = 'x' WHERE name = 'a'")
        connection.exec_driver_sql("DELETE FROM models WHERE name = 'b'")
        connection.exec_driver_sql("UPDATE models SET name = 'd' WHERE name = 'c'")
    found = "\n".join(audit_problems(store))
    assert "models/a: its row was changed" in found
    assert "models/b: its row is gone" in found
    assert "models/c: its row is gone" in found
    assert "models/d: it was added without an entry" in found


def test_a_removed_entry_in_the_middle_is_found(store):
    with store.transaction(actor="ana") as transaction:
        for name in ("a", "b", "c"):
            transaction.add(a_model(name))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit WHERE seq = 2")
    assert any("missing" in problem for problem in audit_problems(store))


def test_every_audited_kind_is_checked():
    assert set(audited_kinds()) == {kind for kind in tables.record_kinds() if kind.AUDITED}
    assert Model in audited_kinds()
