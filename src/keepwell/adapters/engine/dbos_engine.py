"""DBOS behind the engine port: the store's Work rows are the queue, DBOS remembers which steps are done."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from dbos import DBOS, DBOSConfig, SetWorkflowID

from keepwell.core.clock import SECOND, Clock
from keepwell.core.errors import Conflict, Corrupt, KeepwellError, NotFound, Refused, Unavailable
from keepwell.core.ports.engine import Procedure, Step
from keepwell.core.ports.store import Store
from keepwell.core.records.work import Lease, Work

LEASE = "worker"
LEASE_SECONDS = 10
LOOK_SECONDS = 0.05
ATTEMPTS = 3
ACTOR = "worker"


class DbosEngine:
    """Runs procedures as DBOS workflows, one a piece of work. Implements ``keepwell.core.ports.engine.Engine``.

    The lease makes this process the only one, so DBOS's executor id may be the same in every life of the
    worker, and what a killed one left is recovered at the next start. The application version is pinned:
    work that another version began is listed and refused, never half-resumed.
    """

    def __init__(
        self, *, store: Store, state: Path, version: str, clock: Clock, threads: int = 2
    ) -> None:
        self._store = store
        self._state = state
        self._version = version
        self._clock = clock
        self._threads = threads
        self._procedures: dict[str, Procedure] = {}
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"
        self._stop = threading.Event()
        self._loop: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[str] = set()
        self.lost = False
        """True once the lease went to another process: this one must end."""

    def start(self, procedures: Mapping[str, Procedure]) -> None:
        """See ``keepwell.core.ports.engine.Engine``."""
        self._procedures = dict(procedures)
        self._take_lease()
        logging.getLogger("dbos").setLevel(logging.ERROR)
        self._state.mkdir(parents=True, exist_ok=True)
        DBOS(
            config=DBOSConfig(
                name="keepwell",
                system_database_url=f"sqlite:///{self._state / 'worker.db'}",
                application_version=self._version,
                executor_id=LEASE,
                enable_otlp=False,
                log_level="ERROR",
            )
        )

        def run(
            work_id: str,
        ) -> str:  # DBOS marks the function that it is given; a bound method cannot be marked
            return self._run(work_id)

        self._workflow = DBOS.workflow(name="keepwell.work")(run)
        DBOS.launch()
        self._refuse_stranded()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="work")
        self._loop = threading.Thread(target=self._take_work, name="queue", daemon=True)
        self._loop.start()

    def _refuse_stranded(self) -> None:
        stranded = [
            status
            for status in DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
            if status.app_version != self._version
        ]
        unknown = [
            work
            for work in self._store.find(Work, {"state": ["queued", "running"]})
            if work.kind not in self._procedures
        ]
        if stranded or unknown:
            names = [f"{s.workflow_id} (version {s.app_version})" for s in stranded]
            names += [f"{work.id} (kind {work.kind!r})" for work in unknown]
            raise Corrupt(
                f"Work is stranded that this version cannot resume: {', '.join(names)}.",
                where="worker",
                todo="Finish it with the version that began it.",
            )

    def _take_lease(self) -> None:
        deadline = time.monotonic() + LEASE_SECONDS * 2
        while not self._try_lease():
            if time.monotonic() > deadline:
                held = self._store.get(Lease, LEASE)
                raise Refused(
                    f"Another worker holds this project: {held.holder if held else 'unknown'}.",
                    todo="End the other 'keepwell up', or wait until its lease runs out.",
                )
            time.sleep(0.2)

    def _try_lease(self) -> bool:
        now = self._clock.now()
        try:
            with self._store.transaction(actor=ACTOR) as transaction:
                held = transaction.get(Lease, LEASE)
                expires = now + LEASE_SECONDS * SECOND
                if held is None:
                    transaction.add(
                        Lease(name=LEASE, holder=self._holder, token=1, expires=expires)
                    )
                elif held.holder == self._holder or held.expires < now or _is_dead(held.holder):
                    token = held.token + (held.holder != self._holder)
                    transaction.replace(
                        msgspec.structs.replace(
                            held,
                            holder=self._holder,
                            token=token,
                            expires=expires,
                            revision=held.revision + 1,
                        )
                    )
                else:
                    return False
        except (Conflict, Unavailable):
            return False
        return True

    def _take_work(self) -> None:
        seen = -1
        renewed = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() - renewed > LEASE_SECONDS / 4:
                if not self._try_lease():
                    self.lost = True
                    return
                renewed = time.monotonic()
            try:
                version = self._store.version()
                if version != seen:
                    seen = version
                    for work in self._store.find(
                        Work, {"state": ["queued", "running"]}, order=["created"]
                    ):
                        self._submit(work)
            except Unavailable:
                seen = -1
            self._stop.wait(LOOK_SECONDS)

    def _submit(self, work: Work) -> None:
        if work.id in self._running or self._pool is None:
            return
        self._running.add(work.id)
        self._pool.submit(self._drive, work.id)

    def _drive(self, work_id: str) -> None:
        try:
            if self._stop.is_set():
                return
            self._mark(work_id, state="running", started=self._clock.now())
            with SetWorkflowID(work_id):
                handle = DBOS.start_workflow(self._workflow, work_id)
            result: str = handle.get_result()
            failed = result.startswith("!")
            self._mark(
                work_id,
                state="failed" if failed else "done",
                error=result[1:] if failed else "",
                ended=self._clock.now(),
            )
        except (
            Exception
        ) as error:  # the outermost door: whatever DBOS raises is written down, the worker lives on
            if not self._stop.is_set():
                self._mark(
                    work_id,
                    state="failed",
                    error=f"{type(error).__name__}: {error}",
                    ended=self._clock.now(),
                )
        finally:
            self._running.discard(work_id)

    def _run(self, work_id: str) -> str:
        """Run one procedure: the workflow. Gives an empty text, or an error's text after an exclamation mark."""
        work = self._store.get(Work, work_id)
        if work is None:
            return f"!There is no work {work_id!r}."
        for step in self._procedures[work.kind].steps:
            # DBOS keeps each step's answer, so after a crash finished steps are not run again.
            answer: str = DBOS.run_step({"name": step.name}, partial(self._step, work_id, step))
            if answer != "go on":
                return "" if answer == "end" else answer
        return ""

    def _step(self, work_id: str, step: Step) -> str:
        name = step.name
        self._mark(work_id, progress=name)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return "go on" if step.run(work_id) else "end"
            except Unavailable as error:
                if attempt == ATTEMPTS:
                    return f"!{name}: {error}"
                time.sleep(0.5 * attempt)
            except KeepwellError as error:
                return f"!{name}: {error}"
            except Exception as error:  # the user's functions run in here
                logging.getLogger("keepwell").exception("step %s of %s failed", name, work_id)
                return f"!{name}: {type(error).__name__}: {error}"
        raise AssertionError

    def _mark(self, work_id: str, **changes: Any) -> None:
        for _ in range(20):
            try:
                with self._store.transaction(actor=ACTOR) as transaction:
                    work = transaction.get(Work, work_id)
                    if work is None:
                        raise NotFound(f"There is no work {work_id!r}.")
                    transaction.replace(
                        msgspec.structs.replace(work, revision=work.revision + 1, **changes)
                    )
            except Unavailable:
                time.sleep(0.5)
            else:
                return

    def idle(self) -> bool:
        """See ``keepwell.core.ports.engine.Engine``."""
        return not self._running and not self._store.count(
            Work, {"state": ["queued", "running"], "kind": list(self._procedures)}
        )

    def stop(self, *, within: float) -> None:
        """See ``keepwell.core.ports.engine.Engine``."""
        self._stop.set()
        deadline = time.monotonic() + within
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        DBOS.destroy(workflow_completion_timeout_sec=0)
        try:
            with self._store.transaction(actor=ACTOR) as transaction:
                held = transaction.get(Lease, LEASE)
                if held is not None and held.holder == self._holder:
                    transaction.replace(
                        msgspec.structs.replace(held, expires=0, revision=held.revision + 1)
                    )
        except (Unavailable, Conflict):
            return


def _started(pid: int) -> str:
    """Give the start time of a process in clock ticks, so that a reused pid is not taken for the old one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_dead(holder: str) -> bool:
    host, _, rest = holder.partition(":")
    pid, _, started = rest.partition(":")
    return host == socket.gethostname() and _started(int(pid)) != started
