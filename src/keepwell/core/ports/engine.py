"""The engine: runs durable work step by step, through crash and restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keepwell.core.records.work import Work


class Step(msgspec.Struct, frozen=True):
    """One step of a procedure: idempotent, because it may run again after a crash.

    ``run`` gets the work's id and gives True to go on with the next step, or False to end the work here
    (a gate failed, or it waits for a person or a label: the event that ends the wait enqueues new work).
    State passes from step to step through the store, never through the return value.
    """

    name: str
    run: Callable[[str], bool]


class Procedure(msgspec.Struct, frozen=True):
    """A kind of work and its steps, in order."""

    kind: str
    steps: tuple[Step, ...]


class Engine(Protocol):
    """Takes queued Work rows and runs their procedures.

    At most one process runs a piece of work at a time (by lease); a step that was finished is not run
    again; one that was cut off is. An exception in a step is tried again ``attempts`` times if it is
    Unavailable, then fails the work with the error's text; any other exception fails it at once.
    """

    def start(self, procedures: Mapping[str, Procedure]) -> None:
        """Begin to take work of these kinds in background threads, and resume what a crash cut off.

        Raises Refused if another live worker holds the project, and Corrupt (listing them) if work is
        stranded that no procedure of this version can resume.
        """
        ...

    def idle(self) -> bool:
        """Tell whether no work of the known kinds is queued or running."""
        ...

    def stop(self, *, within: float) -> None:
        """Finish or park what runs, in at most ``within`` seconds, and give the lease back."""
        ...


def describe(work: Work) -> str:
    """Name a piece of work for people: ``release flight-delay/3``."""
    return f"{work.kind} {work.subject}"
