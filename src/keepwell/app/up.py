"""``keepwell up``: starts a project's processes with one command, keeps them alive, and stops them cleanly."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from keepwell.app.wiring import State
from keepwell.core.errors import Conflict, Unavailable
from keepwell.core.records.work import Replay
from keepwell.serving.stopping import StopSignal

START_SECONDS = 60.0
CALM_SECONDS = 5.0
"""A process that lived this long is started again at once; one that died sooner waits, longer each time."""
TRIES = 5
LONGEST_WAIT = 30.0
"""Seconds until what dies again and again is started once more."""


def wait_after(deaths: int) -> float:
    """Tell how long to wait, in seconds, before what died so many times in a row is started again."""
    return min(0.2 * 2.0 ** min(deaths - 1, 20), LONGEST_WAIT)


class Supervisor:
    """Holds a project's processes. Use as a context: leaving it stops everything that it started."""

    def __init__(self, state: State, *, say: Callable[[str], None], gives_up: bool = False) -> None:
        """With ``gives_up`` any process that does not stay up ends all, not the gateway alone."""
        self._state = state
        self._say = say
        self._gives_up = gives_up
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._again: dict[str, float] = {}
        self._lock: int = -1

    def __enter__(self) -> Self:
        """Take the project's lock and start. Raises Conflict if it is up already, Unavailable if it does not start."""
        run = self._state.state / "run"
        run.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(run / "up.lock", os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                "This project is up already.",
                where=str(self._state.folder),
                todo="Use the one that runs, or end it first.",
            ) from error
        try:
            self._need_ports()
        except BaseException:
            self.stop()
            raise
        for name in ("gateway", "server", "worker-process"):
            (run / f"{name}.json").unlink(missing_ok=True)
        self._state.store.version()  # migrates, and says what is wrong, before anything starts
        try:
            for name in ("gateway", "server", "worker"):
                self._start(name)
            self._wait_until_ready(run)
        except BaseException:
            self.stop()
            raise
        return self

    def _need_ports(self) -> None:
        """Say which port is taken before anything starts, rather than in the log of a process that ended."""
        from keepwell.serving.sockets import bind

        server = self._state.settings.server
        for port in (server.port, server.gateway_port if server.gateway_workers else 0):
            if port:
                bind(server.host, port).close()

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.stop()

    def _start(self, name: str) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._processes[name] = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "keepwell.app.processes",
                name,
                str(self._state.folder),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            env=environment,
            # A terminal's Ctrl-C goes to a whole group: only this process hears it, and ends the others in order.
            process_group=0,
        )
        self._started[name] = time.monotonic()

    def _wait_until_ready(self, run: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        waiting = {"gateway", "server", "worker-process"}
        while waiting:
            for name in sorted(waiting):
                process = self._processes["worker" if name == "worker-process" else name]
                if process.poll() is not None:
                    raise Unavailable(
                        f"The {name} ended with status {process.returncode} while starting.",
                        todo="Its reason stands above.",
                    )
                if (run / f"{name}.json").exists() and (
                    name == "worker-process" or self._answers(name)
                ):
                    waiting.discard(name)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Not ready within {START_SECONDS:.0f} s: {', '.join(sorted(waiting))}."
                )
            time.sleep(0.05)

    def url(self, name: str) -> str:
        """Give the address of the gateway or the server."""
        said = msgspec.json.decode((self._state.state / "run" / f"{name}.json").read_bytes())
        return str(said["url"])

    def _answers(self, name: str) -> bool:
        if name == "gateway" and not self._state.settings.server.gateway_workers:
            return True  # an ASGI server answers there, and may begin later
        path = "/live" if name == "gateway" else "/health"
        try:
            with urllib.request.urlopen(self.url(name) + path, timeout=2) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError, msgspec.DecodeError):
            return False

    def pids(self) -> dict[str, int]:
        """Give the process ids by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def tend(self) -> None:
        """Start again what died, and a replay where one is unfinished.

        Raises Unavailable for a gateway that does not stay up. It answers without the others, so what becomes of them
        does not end it: they are tried for ever.
        """
        now = time.monotonic()
        for name, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            if name == "replay":
                del self._processes[name]
                if process.returncode == 0:
                    continue
            if self._again.get(name, 0.0) == 0.0:
                calm = now - self._started[name] > CALM_SECONDS
                self._failures[name] = 1 if calm else self._failures.get(name, 0) + 1
                if self._failures[name] > TRIES and (self._gives_up or name == "gateway"):
                    raise Unavailable(
                        f"The {name} died {TRIES} times in a row.", todo="Its reason stands above."
                    )
                wait = wait_after(self._failures[name])
                self._say(
                    f"the {name} ended with status {process.returncode}; starting it again in {wait:.2g} s"
                )
                self._again[name] = now + wait
            if now >= self._again[name]:
                self._again[name] = 0.0
                self._start(name)
        if "replay" not in self._processes and self._state.store.count(
            Replay, {"state": "running"}
        ):
            self._start("replay")

    def stop(self) -> None:
        """End all processes, the ones that make work first, and wait for them."""
        for name in ("replay", "worker", "server", "gateway"):
            process = self._processes.pop(name, None)
            if process is None:
                continue
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def run_until_told(supervisor: Supervisor, *, until: Callable[[], bool] | None = None) -> None:
    """Tend the processes until Ctrl-C or SIGTERM, or until ``until`` says so."""
    stop = StopSignal()
    before = stop.listen()
    try:
        while not stop.is_set() and not (until is not None and until()):
            supervisor.tend()
            stop.wait(0.1)
        if stop.is_set() and until is not None:
            raise KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
