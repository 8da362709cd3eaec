"""What commands share: opening the project, printing, waiting for durable work."""

from __future__ import annotations

import argparse
import getpass
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from keepwell.app.config import find_project
from keepwell.app.wiring import State, open_state
from keepwell.core.clock import SystemClock
from keepwell.core.errors import InvalidInput, NotFound, Unavailable, near_miss
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Lease


def project_state(given: argparse.Namespace) -> State:
    """Open the project that a command is about."""
    return open_state(find_project(given.project))


def actor(given: argparse.Namespace) -> str:
    """Name who acts."""
    return given.user or getpass.getuser()


def print_json(value: Any) -> None:
    """Print a value as JSON with sorted keys."""
    sys.stdout.write(
        msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2).decode() + "\n"
    )


def table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    """Lay out rows under heads, columns as wide as they need."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(len(head), *(len(row[i]) for row in texts)) if texts else len(head)
        for i, head in enumerate(heads)
    ]
    lines = [
        "  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip()
    ]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]
    return "\n".join(lines)


def version_named(state: State, text: str) -> ModelVersion:
    """Give the version that ``MODEL/NUMBER`` names. Raises InvalidInput, NotFound with what there is."""
    model, _, number = text.rpartition("/")
    if not model or not number.isdigit():
        raise InvalidInput(
            f"{text!r} names no version.", todo="Write MODEL/NUMBER, for example flight-delay/1."
        )
    version = state.store.get(ModelVersion, model, int(number))
    if version is None:
        labels = [v.label() for v in state.store.find(ModelVersion)]
        raise NotFound(
            f"There is no version {text}.",
            todo=near_miss(text, labels) or "Run 'keepwell train' first.",
        )
    return version


def ensure_worker(state: State) -> subprocess.Popen[bytes] | None:
    """Give a worker to durable work: the running one (None), or one that ends when the queue is empty."""
    lease = state.store.get(Lease, "worker")
    if lease is not None and lease.expires > SystemClock().now() and _alive(lease.holder):
        return None
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "keepwell.app.processes",
            "drain",
            str(state.folder),
            str(os.getpid()),
        ],
        stdin=subprocess.DEVNULL,
    )


def _alive(holder: str) -> bool:
    parts = holder.split(":")
    try:
        os.kill(int(parts[1]), 0)
    except (IndexError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def wait_for(
    state: State, look: Callable[[], tuple[bool, str]], *, quiet: bool, seconds: float = 3600.0
) -> None:
    """Wait until ``look`` says it is over, telling each new line of progress on standard error."""
    worker = ensure_worker(state)
    last = ""
    deadline = time.monotonic() + seconds
    while True:
        over, progress = look()
        if progress != last and not quiet:
            sys.stderr.write(progress + "\n")
            sys.stderr.flush()
            last = progress
        if over:
            break
        if worker is not None and worker.poll() not in {None, 0}:
            raise Unavailable(
                f"The worker ended with status {worker.returncode}.",
                todo="Its reason stands above.",
            )
        if worker is not None and worker.poll() == 0:
            worker = ensure_worker(state)
        if time.monotonic() > deadline:
            raise Unavailable(
                "It did not end in time; it goes on in the background with 'keepwell up'."
            )
        time.sleep(0.1)
    if worker is not None:
        worker.wait()
