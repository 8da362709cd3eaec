"""Many processes on one store: they migrate it once, never write over one another, and die without loss."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from keepwell.adapters.stores.sql import open_store
from keepwell.core.auditing import audit_problems
from keepwell.core.errors import Conflict
from keepwell.core.records.models import Model
from keepwell.testing.store import a_model

# Forked children share no connection with the test: each opens its own.
PROCESSES = multiprocessing.get_context("fork")


def together(count: int, work: Callable[..., None], *given: Any) -> list[int | None]:
    """Let so many processes begin at once, each with its number first, and give how they ended."""
    start = PROCESSES.Barrier(count)

    def run(number: int) -> None:
        start.wait(90)
        work(number, *given)

    children = [PROCESSES.Process(target=run, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(150)
    return [child.exitcode for child in children]


def open_and_write(number: int, url: str) -> None:
    store = open_store(url)
    with store.transaction(actor=f"p{number}") as transaction:
        transaction.add(a_model(f"m{number}"))
    store.close()


def swap(number: int, url: str, rounds: int, folder: Path) -> None:
    store = open_store(url)
    won = []
    for revision in range(2, rounds + 2):
        try:
            with store.transaction(actor=f"p{number}") as transaction:
                transaction.replace(a_model("m", revision=revision, description=f"p{number}"))
            won.append(revision)
        except Conflict:
            # Refused because another was first, so its revision is there to be seen.
            found = store.get(Model, "m")
            assert found is not None
            assert found.revision >= revision
        time.sleep(0.002)
    (folder / f"{number}.json").write_bytes(msgspec.json.encode(won))
    store.close()


def write_and_die(_number: int, url: str, noted: Path) -> None:
    store = open_store(url)
    with noted.open("w", encoding="utf-8") as file:
        for number in range(20):
            with store.transaction(actor="child") as transaction:
                transaction.add(a_model(f"m{number}"))
            file.write(f"m{number}\n")
            file.flush()
        with store.transaction(actor="child") as transaction:
            transaction.add(a_model("half"))
            os.kill(os.getpid(), signal.SIGKILL)


def test_eight_processes_that_open_a_new_database_together_migrate_it_once(database):
    assert together(8, open_and_write, database) == [0] * 8
    store = open_store(database)
    with store.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar_one() == 1
    assert store.count(Model) == 8
    assert audit_problems(store) == []
    store.close()


def test_of_eight_processes_that_swap_exactly_one_wins_each_round(migrated, tmp_path):
    rounds = 10
    first = open_store(migrated)
    with first.transaction(actor="test") as transaction:
        transaction.add(a_model("m"))
    first.close()
    assert together(8, swap, migrated, rounds, tmp_path) == [0] * 8
    won = [msgspec.json.decode((tmp_path / f"{n}.json").read_bytes()) for n in range(8)]
    assert sorted(revision for revisions in won for revision in revisions) == list(
        range(2, rounds + 2)
    )
    store = open_store(migrated)
    found = store.get(Model, "m")
    assert found is not None
    assert found.revision == rounds + 1
    assert audit_problems(store) == []
    assert sum(1 for _ in store.audit()) == rounds + 1
    store.close()


def test_a_writer_killed_inside_a_transaction_loses_nothing_acknowledged(migrated, tmp_path):
    assert together(1, write_and_die, migrated, tmp_path / "noted") == [-signal.SIGKILL]
    acknowledged = (tmp_path / "noted").read_text().split()
    assert len(acknowledged) == 20
    store = open_store(migrated)
    assert {model.name for model in store.find(Model)} == set(acknowledged)
    with store.transaction(actor="test") as transaction:
        transaction.add(a_model("after"))
    assert audit_problems(store) == []
    store.close()
