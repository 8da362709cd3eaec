"""The kinds of durable work and their steps: what the engine is given."""

from __future__ import annotations

from collections.abc import Callable

from keepwell.app.wiring import State
from keepwell.core.errors import NotFound
from keepwell.core.ports.engine import Procedure, Step
from keepwell.core.records.lifecycle import ACTIVATION_STEPS, RELEASE_STEPS
from keepwell.core.records.work import Work
from keepwell.lifecycle.activation import run_activation_step
from keepwell.lifecycle.context import Context
from keepwell.lifecycle.release import run_release_step
from keepwell.lifecycle.training import request_release


def work_of(state: State, work_id: str) -> Work:
    """Give a piece of work. Raises NotFound."""
    work = state.store.get(Work, work_id)
    if work is None:
        raise NotFound(f"There is no work {work_id!r}.")
    return work


def procedures(state: State) -> dict[str, Procedure]:
    """Give all kinds of work with their steps bound to this project."""

    def heavy(task: str) -> Callable[[str], bool]:
        def run(work_id: str) -> bool:
            state.executor.run(task, work_id)
            return True

        return run

    def ask(run_step: Callable[[Context, str, int], bool], number: int) -> Callable[[str], bool]:
        def run(work_id: str) -> bool:
            return run_step(state.context, str(work_of(state, work_id).args["procedure"]), number)

        return run

    train = Procedure(
        kind="train",
        steps=(
            Step("take data", heavy("take_data")),
            Step("fit", heavy("fit")),
            Step(
                "request release",
                lambda work_id: request_release(state.context, work_of(state, work_id)),
            ),
        ),
    )
    release = Procedure(
        kind="release",
        steps=tuple(
            Step(name, ask(run_release_step, n)) for n, name in enumerate(RELEASE_STEPS, 1)
        ),
    )
    activate = Procedure(
        kind="activate",
        steps=tuple(
            Step(name, ask(run_activation_step, n)) for n, name in enumerate(ACTIVATION_STEPS, 1)
        ),
    )
    return {p.kind: p for p in (train, release, activate)}
