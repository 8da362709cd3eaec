"""Where heavy work runs: a process of its own by default, a cluster where one is named."""

from __future__ import annotations

from typing import Protocol


class Executor(Protocol):
    """Runs one named task to its end, away from the caller's memory and locks."""

    def run(self, task: str, work_id: str) -> None:
        """Run the task for this piece of work and wait for it.

        The task reads its input from the store by the work's id and writes its result there; it is
        idempotent. Raises what the task raised if that was one of Keepwell's own errors, and Unavailable
        if its process died.
        """
        ...
