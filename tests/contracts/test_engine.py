"""The engine's contract on DBOS, and on a member that forgets which steps it has finished."""

from __future__ import annotations

import threading

import msgspec
import pytest

from keepwell.adapters.engine.dbos_engine import DbosEngine
from keepwell.adapters.stores.sql import open_store
from keepwell.core.clock import SystemClock
from keepwell.core.errors import Corrupt
from keepwell.core.records.work import Work
from keepwell.testing.engine import EngineContract, ended, noting, procedure, queue, work


@pytest.fixture
def store(tmp_path):
    made = open_store(f"sqlite:///{tmp_path}/keepwell.db")
    yield made
    made.close()


class TestDbosEngine(EngineContract):
    @pytest.fixture
    def store(self, store):
        return store

    @pytest.fixture
    def make(self, store, tmp_path):
        made = []

        def make(version="1"):
            made.append(
                DbosEngine(store=store, state=tmp_path, version=version, clock=SystemClock())
            )
            return made[-1]

        yield make
        for engine in made:
            engine.stop(within=5)

    def test_work_that_another_version_began_is_stranded(self, store, make):
        reached, go = threading.Event(), threading.Event()

        def slow(_):
            reached.set()
            return go.wait(60)

        queue(store, work("w"))
        steps = procedure(("slow", slow), ("after", lambda _: True))
        old = make("1")
        old.start(steps)
        assert reached.wait(60)
        threading.Timer(0.2, go.set).start()
        old.stop(within=60)
        with pytest.raises(Corrupt, match=r"w \(version 1\)"):
            make("2").start(steps)
        make("1").start(steps)
        assert ended(store, "w").state == "done"

    def test_failed_work_that_is_queued_again_runs_from_its_first_step(self, store, make):
        ran = []

        def broken(_):
            ran.append("broken")
            return ran.count("broken") > 1 or 1 // 0 == 1

        queue(store, work("w"))
        make().start(procedure(noting(ran, "first"), ("broken", broken)))
        failed = ended(store, "w")
        assert failed.state == "failed"
        again = msgspec.structs.replace(
            failed, state="queued", error="", revision=failed.revision + 1
        )
        with store.transaction(actor="ana") as transaction:
            transaction.replace(again)
        assert ended(store, "w").state == "done"
        assert ran == ["first", "broken", "first", "broken"]

    def test_a_damaged_database_of_the_worker_is_named(self, store, make, tmp_path):
        (tmp_path / "worker.db").write_bytes(b"no database" * 1000)
        with pytest.raises(Corrupt, match="damaged"):
            make().start(procedure(("step", lambda _: True)))


class _Forgetful:
    """An engine without a memory: after a stop it begins with the first step again."""

    def __init__(self, store):
        self._store = store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self, procedures):
        self._steps = procedures["job"].steps
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.01):
            for found in self._store.find(Work, {"state": ["queued", "running"]}):
                self._mark(found.id, "running")
                for step in self._steps:
                    if self._stop.is_set():
                        return
                    step.run(found.id)
                self._mark(found.id, "done")

    def _mark(self, id, state):
        with self._store.transaction(actor="worker") as transaction:
            found = transaction.get(Work, id)
            transaction.replace(
                msgspec.structs.replace(found, state=state, revision=found.revision + 1)
            )

    def stop(self, *, within):
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(within)


def test_the_contract_catches_an_engine_that_forgets(store):
    made = []

    def make():
        made.append(_Forgetful(store))
        return made[-1]

    with pytest.raises(AssertionError):
        EngineContract().test_work_that_is_parked_goes_on_where_it_was(store, make)
    for engine in made:
        engine.stop(within=5)
