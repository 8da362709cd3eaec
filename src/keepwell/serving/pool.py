"""The pool: one listening socket, bound once, and worker processes that inherit it and are replaced when they die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from keepwell.core.errors import Unavailable
from keepwell.serving.meters import fold
from keepwell.serving.runtimes.tended import Runtimes
from keepwell.serving.terms import TERMS_FILE, Terms

RESPAWN_SECONDS = 0.2
START_SECONDS = 30.0


def worker_name(number: int, pid: int) -> str:
    """Name a worker so that no two processes ever share a name."""
    return f"w{number}p{pid}"


def bind(host: str, port: int) -> socket.socket:
    """Bind and listen. Raises Unavailable naming what to do when the port is taken."""
    listening = _bound(host, port)
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port that workers listen at themselves, side by side. Raises Unavailable, as ``bind`` does.

    The socket never listens, so no connection ends in it; the port stays ours while workers come and go.
    """
    # A free port is seen without SO_REUSEPORT: with it, a second gateway would share the first one's port unnoticed.
    with _bound(host, port) as first:
        port = int(first.getsockname()[1])
    return _bound(host, port, shared=True)


def _bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise Unavailable(
            f"The address {host}:{port} cannot be bound: {error.strerror}.",
            todo="Another program holds the port, perhaps another 'keepwell up': end it, or set another port"
            " under [server] in keepwell.toml (0 takes a free one).",
        ) from error
    return made


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
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._next = 0
        fold(meters, (), wanted=workers)
        self._spawned = 0.0

    def tend(self) -> int:
        """Start workers where some are missing, and give the number of those that had died."""
        dead = [number for number, process in self._processes.items() if process.poll() is not None]
        if dead:
            names = [worker_name(number, self._processes[number].pid) for number in dead]
            fold(self._meters, names, wanted=self._wanted, deaths=len(dead))
        for number in dead:
            del self._processes[number]
        if dead and time.monotonic() - self._spawned < RESPAWN_SECONDS:
            # A worker that dies at once must not turn the parent into a fork bomb.
            time.sleep(RESPAWN_SECONDS)
        while len(self._processes) < self._wanted:
            self._spawn()
        self.runtimes.tend()
        return len(dead)

    def pids(self) -> list[int]:
        """List the workers' process ids."""
        return [process.pid for process in self._processes.values()]

    def _spawn(self) -> None:
        self._next += 1
        self._spawned = time.monotonic()
        command = [
            sys.executable, "-m", "keepwell.serving.worker",
            "--socket", str(self._listening.fileno()), "--editions", str(self._editions),
            "--log", str(self._log), "--meters", str(self._meters),
            "--number", str(self._next), "--parent", str(os.getpid()),
            "--grpc", self._grpc, "--terms", self._terms,
        ]  # fmt: skip
        # One thread each for the numeric libraries: parallelism is the number of workers.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._processes[self._next] = subprocess.Popen(
            command, pass_fds=[self._listening.fileno()], env=environment
        )

    def swap(self) -> None:
        """Replace every worker: new ones first, then the old ones drain."""
        old = dict(self._processes)
        self._processes = {}
        self.tend()
        self._wait_listening()
        for process in old.values():
            process.send_signal(signal.SIGTERM)
        for process in old.values():
            process.wait(timeout=15)
        names = [worker_name(number, process.pid) for number, process in old.items()]
        fold(self._meters, names, wanted=self._wanted)

    def _wait_listening(self) -> None:
        """Wait until every worker listens: at the gRPC port, nobody else holds connections for one that starts."""
        deadline = time.monotonic() + START_SECONDS
        waiting = {number: process.pid for number, process in self._processes.items()}
        while waiting and time.monotonic() < deadline:
            for number, pid in list(waiting.items()):
                # A worker shares its counters for the first time once it listens.
                shared = (self._meters / f"{worker_name(number, pid)}.json").exists()
                if shared or self._processes[number].poll() is not None:
                    del waiting[number]
            self.runtimes.tend()
            time.sleep(0.01)

    def stop(self) -> None:
        """Let all workers drain and end."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = {}
        self.runtimes.stop()
