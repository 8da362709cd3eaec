"""The parent's side of runtimes: started for what the edition names, begun again when they end, and retired.

Sockets are bound here and inherited, so a runtime that died comes back at the place where its workers look for it, and
what they say meanwhile is refused by nobody: they see that it is not ready, and their fallbacks answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

import msgspec

from keepwell.core.errors import KeepwellError
from keepwell.core.records.models import Package
from keepwell.serving.editions import Shelf
from keepwell.serving.terms import Terms
from keepwell.training.predictors.process import command, wire

KIND = "process"
FIRST_SECONDS, LONGEST_SECONDS = 0.2, 30.0
"""Waits before a runtime that ended is begun again: doubled each time, until it has lived for the longest one."""
MEMORY_SECONDS = 0.5
END_SECONDS = 3.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


def place_of(shelf: Path, artefact: str, number: int) -> Path:
    """Give where the socket of one runtime lies; its status and what it prints are beside it."""
    return shelf / "runtimes" / f"{artefact.removeprefix('sha256:')[:16]}-{number}.sock"


class Runtime:
    """One process, and the one that takes over from it."""

    def __init__(
        self, artefact: str, folder: Path, place: Path, environment: str, terms: Terms
    ) -> None:
        self._artefact = artefact
        self._folder = folder
        self._place = place
        self._status = place.with_suffix(".json")
        self._environment = environment
        self._terms = terms
        self._listening = _bound(place)
        self.process: subprocess.Popen[bytes] | None = None
        self._next: subprocess.Popen[bytes] | None = None
        """Started because the other holds too much memory; takes over once it is ready."""
        self._began = 0.0
        self._wait = FIRST_SECONDS
        self._due = 0.0
        self._looked = 0.0

    def tend(self, now: float) -> list[subprocess.Popen[bytes]]:
        """Begin it again where it ended, or let a fresh one take over; give processes that are on their way out."""
        if self.process is None:
            if now >= self._due:
                self.process = self._start(now)
            return []
        if self.process.poll() is not None:
            self._tell_end(self.process)
            if now - self._began > LONGEST_SECONDS:
                self._wait = FIRST_SECONDS
            self._due = now + self._wait
            self._wait = min(self._wait * 2, LONGEST_SECONDS)
            self.process, self._next = self._next, None
            return []
        if self._next is not None:
            return self._hand_over()
        if self._terms.runtime_memory and now - self._looked > MEMORY_SECONDS:
            self._looked = now
            if (
                now - self._began > self._wait
                and _resident(self.process.pid) > self._terms.runtime_memory * 1_000_000
            ):
                self._next = self._start(now)
        return []

    def _hand_over(self) -> list[subprocess.Popen[bytes]]:
        assert self._next is not None
        assert self.process is not None
        if self._next.poll() is not None:
            self._next = None  # it could not; the other goes on
        elif _code(self._status) == "ready":
            old, self.process, self._next = self.process, self._next, None
            old.send_signal(signal.SIGUSR1)
            return [old]
        return []

    def _start(self, now: float) -> subprocess.Popen[bytes] | None:
        self._began = now
        if _code(self._status) in {"ready", "ended"}:
            # It was proved once: editions that name it do not wait for it, their calls fail until it is back.
            self._write_status("ended", "It is begun again.")
        else:
            self._status.unlink(missing_ok=True)
        arguments = [
            "--artefact", self._artefact, "--listen", str(self._listening.fileno()), "--status", str(self._status),
            "--seconds", str(self._terms.runtime_seconds), "--parent", str(os.getpid()),
        ]  # fmt: skip
        try:
            called, variables = command(self._folder, self._environment, *arguments)
            with self._said("ab") as said:
                return subprocess.Popen(
                    called, env=variables, pass_fds=[self._listening.fileno()],
                    stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                )  # fmt: skip
        except (KeepwellError, OSError) as error:
            self._write_status("error", str(error))
            self._due = now + self._wait
            self._wait = min(self._wait * 2, LONGEST_SECONDS)
            return None

    def _said(self, mode: str) -> IO[bytes]:
        return self._place.with_suffix(".log").open(mode)

    def _tell_end(self, process: subprocess.Popen[bytes]) -> None:
        """Leave word why it ended, where it could not say so itself."""
        code = process.returncode
        before = _code(self._status)
        if before not in {"", "ready", "ended"}:
            return
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        last = ""
        with contextlib.suppress(OSError), self._said("rb") as said:
            said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
            last = " / ".join(said.read().decode(errors="replace").strip().splitlines()[-2:])
        # Workers wait for one that was ready before; one that never was lets the edition fail.
        self._write_status(
            "ended" if before else "error", f"The process ended {cause}. {last}"[:600].strip()
        )

    def _write_status(self, code: str, problem: str) -> None:
        with contextlib.suppress(OSError):
            self._status.write_bytes(msgspec.json.encode({"code": code, "problem": problem}))

    def retire(self) -> list[subprocess.Popen[bytes]]:
        """Take nobody in any more; the processes end when the last worker has gone."""
        self._listening.close()
        for path in (self._place, self._status):
            path.unlink(missing_ok=True)
        left = [process for process in (self.process, self._next) if process is not None]
        for process in left:
            process.send_signal(signal.SIGTERM)
        return left


class Runtimes:
    """All runtimes of a gateway."""

    def __init__(self, shelf: Path, *, terms: Terms) -> None:
        self._shelf = Shelf(shelf)
        self._terms = terms
        self._seen = -1
        self._running: dict[tuple[str, int], Runtime] = {}
        self._leaving: list[subprocess.Popen[bytes]] = []

    def tend(self) -> None:
        """Look at the newest edition and at every process."""
        generation = self._shelf.generation()
        if generation != self._seen:
            self._follow()
            self._seen = generation
        now = time.monotonic()
        for runtime in self._running.values():
            self._leaving += runtime.tend(now)
        self._leaving = [process for process in self._leaving if process.poll() is None]

    def _follow(self) -> None:
        wanted: dict[tuple[str, int], tuple[Path, str]] = {}
        for endpoint in self._shelf.read().endpoints:
            for arm in (*endpoint.answering, *endpoint.mirrors):
                folder = self._shelf.artefact_folder(arm.artefact)
                try:
                    package = msgspec.json.decode(
                        (folder / "package.json").read_bytes(), type=Package
                    )
                except (OSError, msgspec.DecodeError):
                    continue  # the workers say what is wrong with it
                if package.predictor == KIND:
                    for number in range(self._terms.runtime_processes):
                        wanted[arm.artefact, number] = (folder, package.environment)
        for key in [key for key in self._running if key not in wanted]:
            self._leaving += self._running.pop(key).retire()
        for key, (folder, environment) in wanted.items():
            if key not in self._running:
                place = place_of(self._shelf.folder, *key)
                self._running[key] = Runtime(key[0], folder, place, environment, self._terms)

    def pids(self) -> list[int]:
        """List the process ids of those that run."""
        return [one.process.pid for one in self._running.values() if one.process is not None]

    def stop(self) -> None:
        """End all of them; the workers have gone before."""
        for key in list(self._running):
            self._leaving += self._running.pop(key).retire()
        self._seen = -1
        for process in self._leaving:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        for process in self._leaving:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._leaving = []


def _bound(place: Path) -> socket.socket:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with wire.address(place) as name:
        made.bind(name)
    made.listen(64)
    return made


def _code(status: Path) -> str:
    try:
        return str(msgspec.json.decode(status.read_bytes())["code"])
    except (OSError, msgspec.DecodeError):
        return ""


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
