"""The pool: one listening socket, bound once, and worker processes that inherit it and are replaced when they die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from keepwell.core.errors import Unavailable
from keepwell.serving.runtimes.tended import Runtimes
from keepwell.serving.telemetry.meters import fold, worker_name
from keepwell.serving.terms import TERMS_FILE, Terms

RESPAWN_SECONDS = 0.2
START_SECONDS = 30.0
LEAVE_SECONDS = 30.0
"""A replaced worker that has not ended by then is killed: it waits for nobody's answer any more."""


class _Worker:
    """One process, and what it says of itself."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], told: int) -> None:
        self.name = worker_name(number, process.pid)
        self.process = process
        self.began = time.monotonic()
        self.edition = 0
        """The number of what it has loaded."""
        self.problem: str | None = None
        """What it cannot load; empty: it serves; None: it has not said yet."""
        self._told = told
        self._said = b""

    def alive(self) -> bool:
        """Hear what it says, and tell whether it runs."""
        # What a process said before it ended still stands in the pipe.
        with suppress(BlockingIOError):
            while self._told >= 0 and (said := os.read(self._told, 4096)):
                self._said += said
        lines = self._said.split(b"\n")
        if len(lines) > 1:
            number, _, self.problem = lines[-2].decode().partition(" ")
            self.edition = int(number)
            self._said = lines[-1]
        if self.process.poll() is None:
            return True
        self.forget()
        return False

    def forget(self) -> None:
        """Close the pipe."""
        if self._told >= 0:
            os.close(self._told)
            self._told = -1


class Pool:
    """Worker processes on one socket."""

    def __init__(
        self,
        listening: socket.socket,
        *,
        editions: Path,
        log: Path,
        meters: Path,
        workers: int,
        grpc: str = "",
        terms: Terms | None = None,
    ) -> None:
        """``grpc`` is the address, ``host:port``, at which every worker listens for gRPC; empty: none."""
        self._terms = msgspec.json.encode(terms or Terms()).decode()
        editions.mkdir(parents=True, exist_ok=True)
        (editions / TERMS_FILE).write_text(self._terms)
        self.runtimes = Runtimes(editions, terms=terms or Terms())
        self._listening = listening
        self._editions = editions
        self._log = log
        self._meters = meters
        self._grpc = grpc
        self._wanted = workers
        self._workers: list[_Worker] = []
        self._coming: list[_Worker] = []
        """Those that will replace all others once each of them is ready."""
        self._leaving: list[_Worker] = []
        """Those that were replaced and finish what they have begun."""
        self._next = 0
        fold(meters, (), wanted=workers)
        self._spawned = 0.0
        self.swaps = 0
        """How often all workers were replaced."""
        self.problem = ""
        """Why the last replacement did not happen."""

    def tend(self) -> int:
        """Start workers where some are missing, and give the number of those that had died.

        A replacement that is under way goes on here too.
        """
        ended = [worker for worker in self._workers if not worker.alive()]
        self._workers = [worker for worker in self._workers if worker not in ended]
        dead = len(ended)
        if dead:
            self._fold(ended, deaths=dead)
        self._leave()
        if self._coming:
            self._go_on()
        if dead and time.monotonic() - self._spawned < RESPAWN_SECONDS:
            # A worker that dies at once must not turn the parent into a fork bomb.
            time.sleep(RESPAWN_SECONDS)
        while len(self._workers) < self._wanted:
            self._workers.append(self._spawn())
        self.runtimes.tend()
        return dead

    def pids(self) -> list[int]:
        """List the process ids of the workers that serve and stay."""
        return [worker.process.pid for worker in self._workers]

    def serving(self, edition: int = 0) -> int:
        """Count the workers that take connections and serve what they should: this edition, or a later one."""
        return sum(
            worker.alive() and worker.problem == "" and worker.edition >= edition
            for worker in self._workers
        )

    def _spawn(self) -> _Worker:
        self._next += 1
        self._spawned = time.monotonic()
        hears, tells = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        command = [
            sys.executable, "-m", "keepwell.serving.worker",
            "--socket", str(self._listening.fileno()), "--editions", str(self._editions),
            "--log", str(self._log), "--meters", str(self._meters),
            "--number", str(self._next), "--parent", str(os.getpid()),
            "--grpc", self._grpc, "--terms", self._terms, "--told", str(tells),
        ]  # fmt: skip
        if self.serving():
            command.append("--beside")
        # One thread each for the numeric libraries: parallelism is the number of workers.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(
                command, pass_fds=[self._listening.fileno(), tells], env=environment
            )
        except BaseException:
            os.close(hears)
            raise
        finally:
            os.close(tells)
        return _Worker(self._next, process, hears)

    def replace(self) -> None:
        """Begin to replace every worker; ``tend`` carries it on.

        New ones start beside the old ones, which leave only once each new one has loaded what it serves: new code
        that does not start or does not load changes nothing but ``problem``.
        """
        self._abandon()
        self.problem = ""
        for _ in range(self._wanted):
            self._coming.append(self._spawn())

    @property
    def replacing(self) -> bool:
        """Tell whether a replacement is under way; old workers may still be finishing behind it."""
        return bool(self._coming)

    def swap(self, *, seconds: float = START_SECONDS + LEAVE_SECONDS) -> None:
        """Replace every worker and wait until the old ones have left.

        Raises Unavailable if the new ones do not serve.
        """
        self.replace()
        deadline = time.monotonic() + seconds
        while (self._coming or self._leaving) and time.monotonic() < deadline:
            self.tend()
            time.sleep(0.01)
        if self.problem:
            raise Unavailable(f"The workers were not replaced: {self.problem}.")

    def _go_on(self) -> None:
        said = ""
        for worker in self._coming:
            if not worker.alive():
                said = f"a new one ended with status {worker.process.returncode}"
            elif worker.problem:
                said = worker.problem
            elif worker.problem is None and time.monotonic() - worker.began > START_SECONDS:
                said = f"a new one was not ready within {START_SECONDS:.0f} s"
        if said:
            self._abandon()
            self.problem = said.rstrip(".")
        elif all(worker.problem == "" for worker in self._coming):
            for worker in self._workers:
                worker.process.send_signal(signal.SIGHUP)
                worker.began = time.monotonic()
            self._leaving += self._workers
            self._workers, self._coming = self._coming, []
            self.swaps += 1

    def _leave(self) -> None:
        left = [worker for worker in self._leaving if not worker.alive()]
        self._leaving = [worker for worker in self._leaving if worker not in left]
        if left:
            self._fold(left)
        for worker in self._leaving:
            if time.monotonic() - worker.began > LEAVE_SECONDS:
                worker.process.kill()

    def _abandon(self) -> None:
        """End those that were to replace the others."""
        ended, self._coming = self._coming, []
        for worker in ended:
            if worker.alive():
                worker.process.kill()
                worker.process.wait()
            worker.forget()
        if ended:
            self._fold(ended)

    def _fold(self, ended: Sequence[_Worker], *, deaths: int = 0) -> None:
        names = [worker.name for worker in ended]
        fold(self._meters, names, wanted=self._wanted, deaths=deaths)

    def stop(self) -> None:
        """Let all workers drain and end."""
        every = [*self._workers, *self._coming, *self._leaving]
        for worker in every:
            worker.process.send_signal(signal.SIGTERM)
        for worker in every:
            try:
                worker.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.forget()
        self._workers, self._coming, self._leaving = [], [], []
        self.runtimes.stop()
