"""How processes end: on a signal, by a pipe (a signal handler may take no lock), and with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1


class StopSignal:
    """Says when the process was told to end.

    ``threading.Event`` is no substitute: its ``set`` takes a lock, and a handler that runs while the main thread
    holds that lock in ``wait`` never returns.
    """

    def __init__(self) -> None:
        self._told = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self, *_: object) -> None:
        """Tell it to end; may be a signal handler, and may be called from any thread, any number of times."""
        self._told = True
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well as a byte more
            os.write(self._write, b"!")

    def is_set(self) -> bool:
        """Tell whether it was told."""
        return self._told

    def wait(self, seconds: float) -> bool:
        """Wait until it is told, at most ``seconds``; say whether it was."""
        if not self._told and select.select([self._read], [], [], seconds)[0] and not self._told:
            os.read(self._read, 4096)  # it was only woken
        return self._told

    def wake(self, *_: object) -> None:
        """End the wait that is under way, and nothing else; may be a signal handler."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b".")

    def listen(self) -> dict[signal.Signals, Any]:
        """End on SIGTERM and SIGINT; give the handlers that stood before. Main thread only."""
        return {n: signal.signal(n, self.set) for n in (signal.SIGTERM, signal.SIGINT)}


def die_with_parent(parent: int, *, by: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel end this process when its parent dies, whatever ends the parent (Linux, prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        raise SystemExit(0)  # the parent died before the kernel was asked
