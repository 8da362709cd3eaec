"""Heavy tasks in a process of their own: their memory goes back when they end, and their crash is only theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from keepwell.core import errors
from keepwell.core.errors import KeepwellError, Unavailable


class ProcessExecutor:
    """Runs ``python -m keepwell.app.execute``. Implements ``keepwell.core.ports.executor.Executor``."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder

    def run(self, task: str, work_id: str) -> None:
        """See ``keepwell.core.ports.executor.Executor``."""
        # OpenMP threads that wait for a busy core spin, and a second's training takes minutes: leave one core
        # to those who serve, and let threads sleep while they wait.
        threads = str(max(1, (os.cpu_count() or 2) - 1))
        environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "keepwell.app.execute",
                str(self._folder),
                task,
                work_id,
                str(os.getpid()),
            ],
            stdout=subprocess.PIPE,
            env=environment,
            check=False,
        )
        if ended.returncode == 0:
            return
        try:
            said = msgspec.json.decode(ended.stdout.splitlines()[-1], type=dict[str, str])
            kind = getattr(errors, said["kind"])
        except (IndexError, KeyError, AttributeError, msgspec.DecodeError):
            raise Unavailable(
                f"The process of the task {task!r} died with status {ended.returncode}.",
                where=work_id,
            ) from None
        error: KeepwellError = kind(said["what"], where=said["where"], todo=said["todo"])
        raise error
