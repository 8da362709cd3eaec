"""Waits for the disk: bounded, shared, told on the loop, and no thread outlives its disk."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable

import pytest

from keepwell.core.errors import Unavailable
from keepwell.serving.desk.desk import Desk
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.telemetry.meters import Meters
from keepwell.serving.transport.disk import MAX_SYNCS, Disk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    writer = SegmentWriter(folder / "log", name="w")
    return Desk(writer, worker="w", meters=Meters(folder / "meters", worker="w"))


class Held:
    """A disk that takes what it is asked when it is let."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.problem = ""
        self.turns = threading.Semaphore(0)
        monkeypatch.setattr(desk, "sync", self._sync)

    def _sync(self) -> None:
        self.asked += 1
        self.turns.acquire()
        if self.problem:
            raise Unavailable(self.problem)


async def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not come to it in time"
        await asyncio.sleep(0.001)


def test_waits_are_bounded_and_those_behind_them_share_one(desk, monkeypatch):
    held = Held(desk, monkeypatch)

    async def run() -> None:
        freed: list[int] = []
        told: list[str] = []
        disk = Disk(desk, asyncio.get_running_loop(), freed=lambda: freed.append(len(told)))

        def tell(name: str) -> Callable[[str], None]:
            return lambda problem: told.append(name + problem)

        for _ in range(MAX_SYNCS):
            assert not disk.full
            disk.when_durable(tell("first"))
        assert disk.full
        for name in "xyz":
            disk.when_durable(tell(name))
        await until(lambda: held.asked == MAX_SYNCS)
        held.turns.release()
        await until(lambda: len(told) == 1)
        await until(lambda: held.asked == MAX_SYNCS + 1)
        held.turns.release(MAX_SYNCS)
        await until(lambda: len(told) == MAX_SYNCS + 3)
        assert held.asked == MAX_SYNCS + 1, "those that came meanwhile share one wait"
        assert "xyz" in "".join(told), "and are told together, in their order"
        assert freed[0] == 0, "who was held goes on before the answers are sent"
        assert not disk.full

    asyncio.run(run())


def test_a_disk_that_refuses_is_told_and_its_problem_ends_with_it(desk, monkeypatch):
    held = Held(desk, monkeypatch)

    async def run() -> None:
        told: list[str] = []
        disk = Disk(desk, asyncio.get_running_loop(), freed=lambda: None)
        held.turns.release(2)
        held.problem = "full"
        disk.when_durable(told.append)
        await until(lambda: told == ["full"])
        assert desk.problem == "full"
        held.problem = ""
        disk.when_durable(told.append)
        await until(lambda: told == ["full", ""])
        assert desk.problem == ""

    asyncio.run(run())


def test_no_thread_outlives_its_disk(desk, monkeypatch):
    held = Held(desk, monkeypatch)
    before = set(threading.enumerate())

    async def run() -> list[threading.Thread]:
        told: list[str] = []
        disk = Disk(desk, asyncio.get_running_loop(), freed=lambda: None)
        held.turns.release(5)
        for _ in range(5):
            disk.when_durable(told.append)
        await until(lambda: len(told) == 5)
        return [one for one in threading.enumerate() if one not in before and one.name == "sync"]

    threads = asyncio.run(run())
    assert 1 <= len(threads) <= MAX_SYNCS + 1
    gc.collect()
    deadline = time.monotonic() + 60
    while any(one.is_alive() for one in threads) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not any(one.is_alive() for one in threads)
