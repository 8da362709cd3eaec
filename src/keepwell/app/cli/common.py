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
from keepwell.core.errors import (
    KINDS,
    InvalidInput,
    KeepwellError,
    NotFound,
    Refused,
    Unavailable,
    near_miss,
)
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Lease, Work
from keepwell.lifecycle.tokens import needs_token, user_of


def project_state(given: argparse.Namespace) -> State:
    """Open the project that a command is about."""
    return open_state(find_project(given.project))


def actor(given: argparse.Namespace, state: State) -> str:
    """Name who acts: the user of KEEPWELL_TOKEN, else --as or KEEPWELL_USER, else the login name.

    Raises Refused if the token is another's, or if the user has tokens and none is given.
    """
    now = state.clock.now()
    if given.token:
        proved = user_of(given.token, store=state.store, now=now)
        if given.user and given.user != proved:
            raise Refused(
                f"The token in KEEPWELL_TOKEN is {proved}'s, not {given.user}'s.",
                todo=f"Act as {proved}, or set another token.",
            )
        return proved
    name = given.user or getpass.getuser()
    if needs_token(name, store=state.store):
        raise Refused(
            f"{name} must prove who they are.",
            todo="Set KEEPWELL_TOKEN to one of their tokens; an admin can make another"
            " with 'keepwell token create'.",
        )
    return name


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
        newest = state.store.find(ModelVersion, order=["-created"], limit=1)
        known = newest[0].label() if newest else "flight-delay/1"
        raise InvalidInput(
            f"{text!r} names no version.", todo=f"Write MODEL/NUMBER, for example {known}."
        )
    # No store counts further than 18 digits; such a version is as absent as any other.
    version = state.store.get(ModelVersion, model, int(number)) if len(number) <= 18 else None
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


WORKERS = 5
"""Workers that a command starts one after the other before it gives up: each ends when the queue is empty."""


def failed_work(work: Work) -> KeepwellError:
    """Give the error that work failed with, of its own kind."""
    return KINDS.get(work.result, KeepwellError)(work.error, where=work.id)


def wait_for(
    state: State, look: Callable[[], tuple[bool, str]], *, quiet: bool, seconds: float = 3600.0
) -> None:
    """Wait until ``look`` says it is over, telling each new line of progress on standard error."""
    worker = ensure_worker(state)
    begun = 1
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
            if begun == WORKERS:
                raise Unavailable(
                    f"The worker found nothing to do {begun} times, and it is not done.",
                    todo="'keepwell doctor' looks for what is wrong.",
                )
            begun += 1
            worker = ensure_worker(state)
        if time.monotonic() > deadline:
            raise Unavailable(
                "It did not end in time; it goes on in the background with 'keepwell up'."
            )
        time.sleep(0.1)
    if worker is not None:
        worker.wait()
