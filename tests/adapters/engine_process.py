"""A worker for the tests: runs one piece of work of three steps, and notes what it does and what it connects to."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from keepwell.adapters.engine.dbos_engine import DbosEngine
from keepwell.adapters.stores.sql import open_store
from keepwell.core.clock import SystemClock
from keepwell.core.ports.engine import Procedure, Step

STEPS = ("first", "second", "third")


def main(folder: Path, url: str, die_in: str, lease: float, seconds: float) -> None:
    """Work for some seconds, or until everything is done; ``die_in`` names the step to be killed in."""
    notes = folder / "notes"

    def note(text: str) -> None:
        with notes.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def watch(event: str, given: tuple[object, ...]) -> None:
        if event in {"socket.connect", "socket.bind", "socket.getaddrinfo"}:
            note(f"network {event} {given[1:]}")

    if url.startswith("sqlite"):
        sys.addaudithook(watch)

    def step(name: str) -> Step:
        def run(id: str) -> bool:
            note(f"begin {name}")
            if name == die_in:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "second" and (folder / "hold").exists():
                note("holding")
                while (folder / "hold").exists():
                    time.sleep(0.01)
            note(f"end {name}")
            return True

        return Step(name, run)

    store = open_store(url)
    database = url.replace("postgresql://", "postgresql+psycopg://") if url[0] == "p" else ""
    engine = DbosEngine(
        store=store, state=folder, version="1", clock=SystemClock(), lease=lease, database=database
    )
    engine.start({"job": Procedure(kind="job", steps=tuple(map(step, STEPS)))})
    note("started")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not engine.lost and not engine.idle():
        time.sleep(0.01)
    note("lost" if engine.lost else "idle" if engine.idle() else "late")
    engine.stop(within=60.0)
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
