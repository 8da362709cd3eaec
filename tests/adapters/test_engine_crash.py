"""The engine through kill -9, through a freeze longer than its lease, and without a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keepwell.adapters.stores.sql import open_store
from keepwell.core.records.work import Lease, Work
from keepwell.testing.engine import queue, work

LEASE = 60.0
CHILD = Path(__file__).with_name("engine_process.py")


def start(
    folder: Path, url: str, *, die_in: str = "", lease: float = LEASE, seconds: float = 60.0
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, CHILD, folder, url, die_in, str(lease), str(seconds)],
        stderr=subprocess.PIPE,
    )


def notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/keepwell.db"


def state_of(url: str) -> Work:
    store = open_store(url)
    found = store.get(Work, "w")
    store.close()
    assert found is not None
    return found


def enqueue(url: str) -> None:
    store = open_store(url)
    queue(store, work("w"))
    store.close()


def finish(folder: Path, url: str) -> float:
    """Run a worker to the end of the work, quietly, and give the seconds it took from its start."""
    began = time.monotonic()
    child = start(folder, url)
    said = child.communicate(timeout=150)[1]
    assert child.returncode == 0, said.decode()
    assert said == b"", "a worker that has nothing to complain of says nothing"
    return time.monotonic() - began


def die(folder: Path, url: str, step: str) -> None:
    child = start(folder, url, die_in=step)
    child.communicate(timeout=150)
    assert child.returncode == -signal.SIGKILL
    assert state_of(url).state == "running"


@pytest.mark.slow
def test_after_kill_in_each_step_in_turn_finished_steps_are_not_run_again(url, tmp_path):
    enqueue(url)
    for step in ("first", "second", "third"):
        die(tmp_path, url, step)
    seconds = finish(tmp_path, url)
    ran = [note for note in notes(tmp_path) if note.startswith(("begin", "end"))]
    assert ran == [
        *("begin first", "begin first", "end first"),
        *("begin second", "begin second", "end second"),
        *("begin third", "begin third", "end third"),
    ]
    found = state_of(url)
    assert (found.state, found.error, found.progress) == ("done", "", "third")
    store = open_store(url)
    held = store.get(Lease, "worker")
    store.close()
    assert held is not None
    assert held.token == 4, "each worker was a new holder"
    assert seconds < LEASE, "a holder that is dead on this host is not waited for"


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_on_postgresql_a_worker_resumes_without_any_file_of_the_first(database, tmp_path):
    enqueue(database)
    die(tmp_path, database, "second")
    finish(tmp_path, database)
    ran = [note for note in notes(tmp_path) if note.startswith("begin")]
    assert ran == ["begin first", "begin second", "begin second", "begin third"]
    assert not (tmp_path / "worker.db").exists()


@pytest.mark.slow
def test_a_worker_that_froze_for_longer_than_its_lease_writes_nothing_more(url, tmp_path):
    enqueue(url)
    (tmp_path / "hold").touch()
    frozen = start(tmp_path, url, lease=1.0)
    until(lambda: notes(tmp_path).count("holding") == 1)
    os.kill(frozen.pid, signal.SIGSTOP)
    time.sleep(1.2)
    second = start(tmp_path, url, lease=1.0)
    until(lambda: notes(tmp_path).count("holding") == 2)
    os.kill(frozen.pid, signal.SIGCONT)
    until(lambda: "lost" in notes(tmp_path))
    (tmp_path / "hold").unlink()
    assert [child.wait(90) for child in (frozen, second)] == [0, 0]
    for child in (frozen, second):
        assert child.stderr is not None
        child.stderr.close()
    # Both were inside the second step, which is why steps are idempotent; only one went on.
    assert [note for note in notes(tmp_path) if "third" in note] == ["begin third", "end third"]
    assert state_of(url).state == "done"


def test_the_engine_connects_to_nothing_and_listens_to_nothing(url, tmp_path):
    enqueue(url)
    finish(tmp_path, url)
    assert notes(tmp_path)[-1] == "idle"
    assert [note for note in notes(tmp_path) if note.startswith("network")] == []
