"""What the contract does not ask: awkward values, both databases alike, a full disk, a kill while migrating."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keepwell.adapters.stores.sql import SqlStore, open_store
from keepwell.adapters.stores.tables import AUDIT
from keepwell.core.auditing import audit_problems
from keepwell.core.errors import Conflict, Corrupt, InvalidInput, Unavailable
from keepwell.core.records.audit import GENESIS, chain
from keepwell.core.records.evidence import CheckResult, SigningKey
from keepwell.core.records.lifecycle import StepResult
from keepwell.core.records.models import Model
from keepwell.core.records.traffic import TrafficPlan
from keepwell.core.records.watching import Alert, Measurement
from keepwell.core.records.work import Work
from keepwell.testing.store import a_measurement, a_model


@pytest.fixture
def store(migrated: str) -> Iterator[SqlStore]:
    made = open_store(migrated)
    yield made
    made.close()


def add(store: SqlStore, *records) -> None:
    with store.transaction(actor="ana") as transaction:
        for record in records:
            transaction.add(record)


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
) | st.sampled_from(["", " ", "'", '"', "%s", "?", "a\nb", "ÄÖÜ", "ä", "Z", "_", "%"])
numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.none() | st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 5e-324])


@pytest.fixture(scope="module")
def both(tmp_path_factory, postgres_server):
    """A store on each database, used by many examples."""
    folder = tmp_path_factory.mktemp("both")
    stores = [open_store(f"sqlite:///{folder}/a.db"), open_store(postgres_server)]
    yield stores
    for made in stores:
        made.close()


QUIET = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUIET
@given(
    rows=st.lists(
        st.tuples(texts, texts, numbers, floats, st.none() | numbers, st.booleans()),
        unique_by=lambda row: row[0],
        max_size=6,
    ),
    bound=texts,
)
def test_whatever_is_stored_both_databases_give_it_back_equal_and_in_the_same_order(
    both, rows, bound
):
    kept = []
    for made in both:
        for kind in (Alert, Measurement):
            with made.transaction(actor="ana") as transaction:
                for old in made.find(kind):
                    transaction.remove(kind, *old.key(), reason="next example")
        with made.transaction(actor="ana") as transaction:
            for id, text, number, value, closed, drill in rows:
                alert = Alert(
                    id=id,
                    endpoint=text,
                    model="m",
                    version=number,
                    monitor="x",
                    severity="info",
                    message=text,
                    event_time=0,
                    opened=0,
                    closed=closed,
                    drill=drill,
                )
                transaction.add(alert)
                assert transaction.get(Alert, id) == alert
                transaction.replace(
                    msgspec.structs.replace(a_measurement(value), monitor=id, low=value)
                )
        kept.append(
            [
                made.find(Alert),
                made.find(Alert, order=["-message", "closed", "id"]),
                made.find(Alert, order=["-closed", "-id"]),
                made.find(Alert, {"message >": bound}),
                made.find(Alert, {"message !=": bound}),
                made.find(Alert, {"closed !=": 0}),
                made.find(Alert, {"closed": [None, 0, 1]}),
                made.find(Alert, {"drill": True}),
                made.find(Measurement, order=["value", "monitor"]),
                made.count(Measurement, {"value <=": 0.0}),
            ]
        )
    assert kept[0] == kept[1]
    assert [alert.id for alert in kept[0][0]] == sorted((row[0] for row in rows), key=str.encode)


def test_the_trail_of_all_those_examples_holds(both):
    for made in both:
        assert audit_problems(made) == []


def test_a_whole_number_in_a_field_of_floats_does_not_break_the_trail(store):
    result = CheckResult(check="c", verdict="pass", message="m", measured={"gain": 1})
    add(
        store,
        StepResult(
            procedure="p",
            step="s",
            number=1,
            model="m",
            version=1,
            verdict="pass",
            results=(result,),
            evidence="",
            started=0,
            ended=1,
        ),
    )
    with store.transaction(actor="watch") as transaction:
        transaction.replace(a_measurement(1))
    assert store.find(Measurement)[0].value == 1.0
    assert audit_problems(store) == []


def test_a_value_that_is_no_number_is_kept_as_nothing(store):
    with store.transaction(actor="watch") as transaction:
        transaction.replace(a_measurement(float("nan")))
    assert store.find(Measurement)[0].value is None


@pytest.mark.parametrize(
    "record",
    [
        a_model("m", description="half \ud800"),
        a_model("m", description="zero \0"),
        a_model("m", created=2**63),
        a_model("m", created=None),
        a_model("m", created="now"),
        a_model("m", tags={"a": object()}),
        SigningKey(keyid="k", public="text", created=0),  # type: ignore[arg-type]
    ],
)
def test_what_a_column_cannot_hold_is_refused_by_name_and_the_transaction_goes_on(store, record):
    with store.transaction(actor="ana") as transaction:
        with pytest.raises(InvalidInput, match=type(record).__name__):
            transaction.add(record)
        transaction.add(a_model("other"))
    assert [model.name for model in store.find(Model)] == ["other"]


def test_after_a_conflict_the_same_transaction_can_go_on(store):
    add(store, a_model("a"))
    with store.transaction(actor="ana") as transaction:
        with contextlib.suppress(Conflict):
            transaction.add(a_model("a"))
        transaction.add(a_model("b"))
    assert store.count(Model) == 2
    assert audit_problems(store) == []


def test_a_transaction_that_writes_nothing_changes_no_version(store):
    before = store.version()
    with store.transaction(actor="ana") as transaction:
        transaction.get(Model, "a")
    assert store.version() == before


def test_what_another_thread_has_not_committed_is_not_read(store):
    with store.transaction(actor="ana") as transaction:
        transaction.add(a_model("a"))
        assert store.get(Model, "a") is None
    assert store.get(Model, "a") is not None


def test_a_row_whose_json_was_damaged_is_named_by_the_audit_and_by_a_read(store):
    add(store, a_model("a"), a_model("b"))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE models SET tags = '{' WHERE name = 'a'")
    with pytest.raises(Corrupt, match="'tags'"):
        store.get(Model, "a")
    found = audit_problems(store)
    assert len(found) == 1
    assert "row a" in found[0]


def test_the_audit_is_proved_while_others_write(store):
    ended = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not ended.is_set():
            name = f"m{len(written)}"
            with store.transaction(actor="writer") as transaction:
                transaction.add(a_model(name))
            with store.transaction(actor="writer") as transaction:
                transaction.replace(a_model(name, revision=2, description="new"))
            if len(written) % 3 == 0:
                with store.transaction(actor="writer") as transaction:
                    transaction.remove(Model, name, reason="third")
            written.append(name)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while len(written) < 8 and time.monotonic() < deadline:
            assert audit_problems(store) == []
    finally:
        ended.set()
        thread.join()
    assert len(written) >= 8


# From here on: SQLite alone.


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/keepwell.db"


def test_a_second_transaction_in_a_thread_is_refused_instead_of_waiting_for_ever(sqlite_url):
    store = open_store(sqlite_url)
    with (
        store.transaction(actor="ana"),
        pytest.raises(InvalidInput, match="open in this thread"),
        store.transaction(actor="ben"),
    ):
        pass
    add(store, a_model("a"))
    store.close()


def test_a_file_that_was_taken_away_is_not_made_anew(sqlite_url, tmp_path):
    open_store(sqlite_url).close()
    store = open_store(sqlite_url)
    store.close()
    (tmp_path / "keepwell.db").unlink()
    with pytest.raises(Unavailable):
        store.get(Model, "a")
    assert not (tmp_path / "keepwell.db").exists()


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable):
        open_store(f"sqlite:///{tmp_path}/file/keepwell.db")


def test_a_commit_is_on_disk_before_it_is_acknowledged(sqlite_url):
    store = open_store(sqlite_url)
    with store._connections.writing() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    store.close()


def test_a_forked_child_opens_connections_of_its_own(sqlite_url):
    store = open_store(sqlite_url)
    add(store, a_model("parent"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            add(store, a_model("child"))
            code = 0 if store.count(Model) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    add(store, a_model("parent again"))
    assert store.count(Model) == 3
    assert audit_problems(store) == []
    store.close()


def test_a_page_that_was_damaged_is_named(sqlite_url, tmp_path):
    store = open_store(sqlite_url)
    add(store, *(a_model(f"m{n}", description="x" * 2000) for n in range(50)))
    store.close()
    path = tmp_path / "keepwell.db"
    content = bytearray(path.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        open_store(sqlite_url).find(Model)


def test_on_a_full_disk_nothing_acknowledged_is_lost_and_work_goes_on_when_there_is_room(tmp_path):
    # A limit on the size of files is how a process meets a full disk without filling one.
    url = f"sqlite:///{tmp_path}/keepwell.db"
    open_store(url).close()
    store = open_store(url)
    acknowledged = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        with pytest.raises(Unavailable, match="disk"):
            for number in range(1000):
                add(store, a_model(f"m{number}", description="x" * 5000))
                acknowledged.append(f"m{number}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(acknowledged) > 5
    assert {model.name for model in store.find(Model)} == set(acknowledged)
    add(store, a_model("after"))
    assert audit_problems(store) == []
    store.close()


KILLED_WHILE_MIGRATING = """
import os, signal, sys
from alembic import op
from keepwell.adapters.stores.sql import open_store
make, made = op.create_table, []
def create_table(*words, **named):
    made.append(make(*words, **named))
    if len(made) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
op.create_table = create_table
open_store(sys.argv[1])
"""


def test_a_migration_that_is_killed_half_way_leaves_nothing_behind(database):
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_MIGRATING, database], check=False, timeout=150
    )
    assert child.returncode == -9
    store = open_store(database)
    add(store, a_model("a"))
    assert audit_problems(store) == []
    store.close()


OLD_PLAN = """INSERT INTO traffic_plans
(endpoint, revision, arms, mirrors, fallback, salt, reason, "by", created) VALUES ('e', 1,
'[{"name":"champion","model":"m","version":3,"artefact":"sha256:0","weight":10000}]',
'[{"name":"challenger","model":"m","version":4,"artefact":"sha256:1","weight":0}]', '', 's', 'first', 'ana', 5)"""
OLD_DIGEST = "sha256:e915dc21771bc2e3aaaa0f2d34615d3669459be6ccdf16ec0055f9bf678fa627"
"""What the program of revision 0003 wrote into the trail for this plan."""


def test_a_plan_of_an_earlier_program_is_read_and_its_entry_in_the_trail_holds(
    database, monkeypatch
):
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0003"))
        old = open_store(database)
    entry = chain(
        seq=1, time=5, actor="ana", action="add", subject="traffic_plans/e/1", before="", after=OLD_DIGEST,
        reason="first", previous=GENESIS,
    )  # fmt: skip
    with old.engine.begin() as connection:
        connection.exec_driver_sql(OLD_PLAN)
        connection.execute(AUDIT.insert(), [msgspec.structs.asdict(entry)])
    old.close()

    store = open_store(database)
    plan = store.get(TrafficPlan, "e", 1)
    assert plan is not None
    assert (plan.cohorts, plan.policy, plan.gap, plan.gap_seconds) == ((), None, "refuse", 0.0)
    assert (plan.arms[0].weight, plan.mirrors[0].name) == (10_000, "challenger")
    assert audit_problems(store) == []
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE traffic_plans SET gap_seconds = 1")
    assert "its row was changed" in audit_problems(store)[0]
    store.close()


def test_a_start_on_sqlite_imports_no_sqlalchemy(sqlite_url):
    open_store(sqlite_url).close()
    program = (
        "import sys; from keepwell.adapters.stores.sql import open_store; open_store(sys.argv[1]).version(); "
        "sys.exit(bool({'sqlalchemy', 'alembic', 'psycopg'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program, sqlite_url], check=False).returncode == 0


def test_a_file_in_another_journal_mode_is_brought_to_the_log(sqlite_url, tmp_path):
    open_store(sqlite_url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "keepwell.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    store = open_store(sqlite_url)
    with store._connections.reading() as reading:
        assert reading.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    store.close()


def test_lists_of_wanted_values_may_be_long(store):
    add(
        store,
        *(Work(id=f"w{n}", kind="k", subject="s", requested_by="a", created=n) for n in range(3)),
    )
    wanted = [f"w{n}" for n in range(5000)]
    assert store.count(Work, {"id": wanted}) == 3
