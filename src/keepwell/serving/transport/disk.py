"""The disk, beside the event loop: threads bring the log to it, and whoever waits for that is told on the loop."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

from keepwell.core.errors import KeepwellError
from keepwell.serving.desk.desk import Desk

MAX_SYNCS = 2
"""Waits for the disk side by side. One more makes smaller ticks, which cost more than a busy disk gives back."""
GROUP_SECONDS = 0.01
"""With the log level ``group`` the disk is brought up to date this often."""

Told = Callable[[str], None]
"""Is told nothing, or what is wrong."""


class Disk:
    """Brings the log of one desk to the disk. All its methods are called on the loop's thread."""

    def __init__(
        self, desk: Desk, loop: asyncio.AbstractEventLoop, *, freed: Callable[[], None]
    ) -> None:
        """``freed`` is called when one wait fewer is under way, before those who waited are told."""
        self._desk = desk
        self._loop = loop
        self._freed = freed
        self._syncs = 0
        self._waiting: list[Told] = []
        self._later: asyncio.TimerHandle | None = None
        self._problem = ""
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0

    @property
    def full(self) -> bool:
        """Tell whether who waits now would have to wait for another wait first."""
        return self._syncs >= MAX_SYNCS

    def sync_later(self) -> None:
        """Bring the log to the disk within ``GROUP_SECONDS``; nobody waits for it."""
        if self._later is None:
            self._later = self._loop.call_later(GROUP_SECONDS, self._sync_now)

    def _sync_now(self) -> None:
        self._later = None
        self._desk.unsynced = False
        self._submit([])

    def when_durable(self, told: Told) -> None:
        """Call back with nothing, or with what is wrong, once everything logged until now is on the disk.

        The disk is waited for in threads, so that the loop goes on reading, computing and logging meanwhile.
        What comes while ``MAX_SYNCS`` are under way is made durable by the next one, together.
        """
        self._waiting.append(told)
        if self._syncs < MAX_SYNCS:
            self._start()

    def _start(self) -> None:
        told, self._waiting = self._waiting, []
        self._syncs += 1
        self._submit(told)

    def _submit(self, told: list[Told]) -> None:
        # No executor: the futures that it makes, and nobody waits for, were a sixth of all that requests with the log
        # level ``sync`` cost the processor.
        if self._threads <= MAX_SYNCS:
            if not self._threads:
                weakref.finalize(self, _end, self._work).atexit = False
            self._threads += 1
            threading.Thread(target=_serve, args=(self._work,), name="sync", daemon=True).start()
        self._work.put(partial(self._sync, told))

    def _sync(self, told: list[Told]) -> None:
        """Wait for the disk: in one of the threads."""
        problem = ""
        began = time.perf_counter()
        try:
            self._desk.sync()
        except KeepwellError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001
            # Whoever waits must be told, whatever it was.
            problem = f"{type(error).__name__}: {error}"
        # A worker that has drained is gone without waiting for the disk's last word.
        with suppress(RuntimeError):
            seconds = time.perf_counter() - began
            self._loop.call_soon_threadsafe(self._synced, told, problem, seconds)

    def _synced(self, told: list[Told], problem: str, seconds: float) -> None:
        self._desk.meters.synced(seconds, failed=bool(problem))
        if problem or self._desk.problem == self._problem:
            self._desk.problem = problem  # and a disk that takes it again ends the problem
        self._problem = problem
        if not told:
            return
        self._syncs -= 1
        if self._waiting:
            self._start()  # first, so that the disk works while the answers are sent
        self._freed()
        for each in told:
            each(problem)


def _serve(work: SimpleQueue[Callable[[], None] | None]) -> None:
    while (each := work.get()) is not None:
        each()
        del each  # it holds the disk, which must be able to go while nothing is to be done


def _end(work: SimpleQueue[Callable[[], None] | None]) -> None:
    for _ in range(MAX_SYNCS + 1):
        work.put(None)
