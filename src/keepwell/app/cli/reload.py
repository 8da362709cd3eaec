"""``keepwell reload``: the gateway's workers begin again with the code that is there now."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from keepwell.app.cli.common import print_json, project_state
from keepwell.core.errors import Unavailable


def run(given: argparse.Namespace) -> int:
    """Ask the gateway, and wait until its new workers serve or it says why they do not."""
    state = project_state(given)
    run_folder = state.state / "run"
    gateway = _read(run_folder / "gateway.json")
    before = _stamp(run_folder / "workers.json")
    pid = int(gateway.get("pid", 0))
    if not _is_gateway(pid):
        raise Unavailable(
            "No gateway of this project runs on this machine.", todo="Start it with 'keepwell up'."
        )
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + given.wait
    while _stamp(run_folder / "workers.json") == before:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"The gateway has not said within {given.wait:g} s that its new workers serve.",
                todo="Its old ones do until then. 'keepwell doctor' looks for what is wrong.",
            )
        time.sleep(0.05)
    workers = _read(run_folder / "workers.json")
    if workers["problem"]:
        raise Unavailable(
            f"The workers were not replaced: {workers['problem']}.",
            todo="The old ones go on serving. Mend it and reload again.",
        )
    if given.json:
        print_json(workers)
    else:
        sys.stdout.write(f"replaced; workers: {', '.join(map(str, workers['pids']))}\n")
    return 0


def _is_gateway(pid: int) -> bool:
    """Tell whether a process is a gateway: the number of one that ended may be another's, whom SIGHUP would end."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"keepwell.app.processes" in words and b"gateway" in words


def _read(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return read


def _stamp(path: Path) -> tuple[int, int]:
    """Tell one writing of a file from the next: it is replaced whole each time."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
