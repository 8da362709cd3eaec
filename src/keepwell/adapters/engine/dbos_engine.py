"""DBOS behind the engine port: the store's Work rows are the queue, DBOS remembers which steps are done."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos import error as dbos_error

from keepwell.adapters.engine.lease import ACTOR, WorkerLease
from keepwell.core.clock import Clock
from keepwell.core.errors import Corrupt, KeepwellError, NotFound, Unavailable
from keepwell.core.ports.engine import Procedure, Step
from keepwell.core.ports.store import Store
from keepwell.core.records.work import Work

LEASE = "worker"
LEASE_SECONDS = 10.0
LOOK_SECONDS = 0.05
ATTEMPTS = 3
PAUSE_SECONDS = 0.5
"""Before the second attempt; twice that before the third."""

_OPEN = ["queued", "running"]
_UNFINISHED = {"PENDING", "ENQUEUED", "DELAYED"}
_GO_ON, _END = "go on", "end"
_FAILED = "failed: "
"""Before the code of an error, a space, and its sentence."""

_log = logging.getLogger("keepwell")


class _Parked(BaseException):
    """Leaves a workflow where it is: not an Exception, so DBOS writes down neither a result nor a failure."""


class DbosEngine:
    """Runs procedures as DBOS workflows, one a piece of work. Implements ``keepwell.core.ports.engine.Engine``.

    A workflow carries the work's id, and each step is one DBOS step, so what was finished before a crash is
    not run again. A lease makes this process the only one; whatever DBOS holds for earlier processes (its
    executor id is new in each) is resumed when its Work row is met again. The application version is
    pinned: work that another version began is listed and refused, never half-resumed.

    DBOS is one in a process, so at most one engine may be started at a time.
    """

    def __init__(
        self,
        *,
        store: Store,
        state: Path,
        version: str,
        clock: Clock,
        threads: int = 2,
        lease: float = LEASE_SECONDS,
        database: str = "",
    ) -> None:
        """Prepare an engine.

        Args:
            store: Where the Work rows are.
            state: The folder of DBOS's own database, ``worker.db``.
            version: Of the procedures; work begun under another one is stranded.
            clock: Gives the times in Work rows.
            threads: How many pieces of work may run side by side.
            lease: Seconds after which a worker that is silent, on another host, counts as dead.
            database: URL of a PostgreSQL database for DBOS instead of the file: needed where workers of one
                project run on several hosts.
        """
        self._store = store
        self._state = state
        self._version = version
        self._clock = clock
        self._threads = threads
        self._database = database
        self._procedures: dict[str, Procedure] = {}
        self._lease = WorkerLease(store=store, clock=clock, name=LEASE, seconds=lease)
        self._workflow: Callable[[str], str]
        self._stop = threading.Event()
        self._loop: threading.Thread | None = None
        self._running: set[str] = set()
        self._changed = threading.Event()
        """Set when a piece of work has left ``_running``."""
        self._started = False

    @property
    def lost(self) -> bool:
        """Tell whether the lease went to another process: this one must end."""
        return self._lease.lost.is_set()

    def start(self, procedures: Mapping[str, Procedure]) -> None:
        """See ``keepwell.core.ports.engine.Engine``."""
        self._procedures = dict(procedures)
        self._lease.take()
        try:
            self._started = True
            self._launch()
            self._refuse_stranded()
        except BaseException:
            self._end()
            raise
        self._loop = threading.Thread(target=self._take_work, name="queue", daemon=True)
        self._loop.start()

    def _launch(self) -> None:
        # No telemetry, no conductor: without their settings DBOS opens no connection but to its database.
        config = DBOSConfig(
            name="keepwell",
            system_database_url=self._database or self._file(),
            application_version=self._version,
            executor_id=self._lease.holder,
            enable_otlp=False,
            log_level="ERROR",
        )
        DBOS(config=config)

        def run(
            work_id: str,
        ) -> str:  # DBOS marks the function it is given; a method cannot be marked
            return self._run(work_id)

        self._workflow = DBOS.workflow(name="keepwell.work")(run)
        DBOS.launch()

    def _file(self) -> str:
        path = self._state / "worker.db"
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # the file remembers it
        except sqlite3.OperationalError as error:
            raise Unavailable(
                f"The worker's database did not answer: {error}.",
                where=str(path),
                todo="See that its disk is not full and that nobody holds it locked.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise Corrupt(
                f"The worker's database is damaged: {error}.",
                where=str(path),
                todo="Move it away: running work then begins again with its first step.",
            ) from error
        return f"sqlite:///{path}"

    def _refuse_stranded(self) -> None:
        work = {work.id: work for work in self._store.find(Work, {"state": _OPEN})}
        stranded = [
            f"{w.id} (kind {w.kind!r})" for w in work.values() if w.kind not in self._procedures
        ]
        for found in DBOS.list_workflows(
            status=sorted(_UNFINISHED), load_input=False, load_output=False
        ):
            if found.workflow_id not in work:
                DBOS.cancel_workflow(
                    found.workflow_id
                )  # its work was ended or taken away meanwhile
            elif found.app_version != self._version:
                stranded.append(f"{found.workflow_id} (version {found.app_version})")
        if stranded:
            raise Corrupt(
                f"Work is stranded that this version cannot resume: {', '.join(stranded)}.",
                where="worker",
                todo=f"This is version {self._version}; finish it with the version that began it.",
            )

    def _take_work(self) -> None:
        seen = -1
        while not self._stop.is_set() and not self.lost:
            try:
                version = self._store.version()
                # A workflow that ended leaves room, and one that was left unfinished shows: look again as well.
                if version != seen or self._changed.is_set():
                    self._changed.clear()
                    seen = version
                    for work in self._store.find(Work, {"state": _OPEN}, order=["created", "id"]):
                        if len(self._running) >= self._threads:
                            break
                        if work.id not in self._running and work.kind in self._procedures:
                            self._begin(work)
            except KeepwellError as error:
                _log.warning("worker: %s", error)
                seen = -1
                self._stop.wait(PAUSE_SECONDS)
            except _Parked:
                return
            self._stop.wait(LOOK_SECONDS)

    def _begin(self, work: Work) -> None:
        """Start the work's workflow, or resume the one that an earlier process left."""
        self._running.add(work.id)
        try:
            known = DBOS.get_workflow_status(work.id)
            if known is not None and known.status in _UNFINISHED:
                DBOS.resume_workflow(work.id)
                return
            if known is not None and work.state == "running" and known.status != "SUCCESS":
                self._mark(
                    work.id,
                    state="failed",
                    error=f"The workflow ended as {known.status}: {known.error}",
                    ended=self._clock.now(),
                )
                self._leave(work.id)
                return
            if known is not None:
                # Queued anew by somebody, or the store was restored to before its end: from the first step.
                DBOS.delete_workflow(work.id)
            self._mark(work.id, state="running", started=self._clock.now())
            with SetWorkflowID(work.id):
                DBOS.start_workflow(self._workflow, work.id)
        except BaseException:
            self._leave(work.id)
            raise

    def _leave(self, work_id: str) -> None:
        self._running.discard(work_id)
        self._changed.set()

    def _run(self, work_id: str) -> str:
        """Run one procedure: the workflow. Its own end is the last thing that it writes into the Work row."""
        self._running.add(work_id)
        try:
            outcome = self._walk(work_id)
            failed = outcome.startswith(_FAILED)
            code, _, error = (
                outcome.removeprefix(_FAILED).partition(" ") if failed else ("", "", "")
            )
            self._mark(
                work_id,
                state="failed" if failed else "done",
                result=code,
                error=error,
                ended=self._clock.now(),
            )
            return outcome
        finally:
            self._leave(work_id)

    def _walk(self, work_id: str) -> str:
        work = self._store.get(Work, work_id)
        if work is None:
            raise NotFound(f"There is no work {work_id!r}.")
        for step in self._procedures[work.kind].steps:
            try:
                # DBOS keeps each step's answer, and gives it back instead of running the step again.
                answer: str = DBOS.run_step({"name": step.name}, self._step, work_id, step)
            except dbos_error.DBOSUnexpectedStepError as error:
                return (
                    f"{_FAILED}error The steps are no longer those with which it was begun: {error}"
                )
            if answer != _GO_ON:
                return answer
        return _END

    def _step(self, work_id: str, step: Step) -> str:
        self._mark(work_id, progress=step.name)
        for attempt in range(1, ATTEMPTS + 1):
            if self._stop.is_set() or self.lost:
                raise _Parked
            try:
                return _GO_ON if step.run(work_id) else _END
            except Unavailable as error:
                if attempt == ATTEMPTS:
                    return f"{_FAILED}{error.code} {step.name}: {error}"
                self._stop.wait(PAUSE_SECONDS * attempt)
            except KeepwellError as error:
                return f"{_FAILED}{error.code} {step.name}: {error}"
            except Exception as error:  # noqa: BLE001 - the outermost door: the user's own functions run in here
                _log.exception("step %r of %s failed", step.name, work_id)
                return f"{_FAILED}error {step.name}: {type(error).__name__}: {error}"
        raise AssertionError

    def _mark(self, work_id: str, **changes: Any) -> None:
        """Write into the Work row, if the lease is still ours in the same transaction."""
        while True:
            try:
                with self._store.transaction(actor=ACTOR) as transaction:
                    if not self._lease.check(transaction):
                        raise _Parked
                    work = transaction.get(Work, work_id)
                    if work is None:
                        raise NotFound(f"There is no work {work_id!r}.")
                    transaction.replace(
                        msgspec.structs.replace(work, revision=work.revision + 1, **changes)
                    )
            except Unavailable as error:
                _log.warning("worker: %s", error)
                if self._stop.wait(PAUSE_SECONDS):
                    raise _Parked from error
            else:
                return

    def idle(self) -> bool:
        """See ``keepwell.core.ports.engine.Engine``."""
        return not self._running and not self._store.count(
            Work, {"state": _OPEN, "kind": list(self._procedures)}
        )

    def stop(self, *, within: float) -> None:
        """See ``keepwell.core.ports.engine.Engine``.

        Work is parked between two steps. A step that does not end in time is cut off with the process; until
        then the lease stays ours, so that nobody runs the same step beside it.
        """
        self._stop.set()
        deadline = time.monotonic() + within
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._loop is not None:
            self._loop.join(max(1.0, deadline - time.monotonic()))
        self._end()

    def _end(self) -> None:
        if self._started:
            self._started = False
            DBOS.destroy(destroy_registry=True)
        if not self._running:
            self._lease.give_back()
