"""The far end of the executor: runs one heavy task in this process and says what went wrong, if anything."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from keepwell.app.procedures import work_of
from keepwell.app.wiring import State, open_state
from keepwell.core.errors import InvalidInput, as_error, near_miss
from keepwell.core.records.work import Work
from keepwell.lifecycle.training import fit, take_data
from keepwell.serving.stopping import die_with_parent


def _take_data(state: State, work: Work) -> None:
    take_data(work, project=state.project, store=state.store, blobs=state.blobs, clock=state.clock)


def _fit(state: State, work: Work) -> None:
    fit(
        work,
        project=state.project,
        settings=state.settings,
        store=state.store,
        blobs=state.blobs,
        clock=state.clock,
        tracker=state.tracker,
    )


TASKS = {"take_data": _take_data, "fit": _fit}


def _task(name: str) -> Callable[[State, Work], None]:
    if name not in TASKS:
        raise InvalidInput(f"There is no task {name!r}.", todo=near_miss(name, TASKS))
    return TASKS[name]


def main() -> int:
    """Run ``execute FOLDER TASK WORK PARENT``; an error goes to standard output as one line of JSON."""
    folder, task, work_id, parent = sys.argv[1:5]
    die_with_parent(int(parent))
    try:
        state = open_state(Path(folder))
        _task(task)(state, work_of(state, work_id))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the outermost door of this process
        known = as_error(error)
        if known is not error:
            traceback.print_exc()
        said = {
            "kind": type(known).__name__,
            "what": known.what,
            "where": known.where,
            "todo": known.todo,
        }
        sys.stdout.write(f"\n{msgspec.json.encode(said).decode()}\n")
        return known.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
