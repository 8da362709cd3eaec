"""The worker: runs durable work, watches the log, drives rollouts and turns the loop. One a project."""

from __future__ import annotations

import logging
import threading
import time

from keepwell.app.procedures import procedures
from keepwell.app.pulse import Pulse
from keepwell.app.wiring import State
from keepwell.core.errors import KeepwellError, as_error
from keepwell.core.records.watching import Watermark
from keepwell.core.records.work import Replay
from keepwell.lifecycle.loop import turn
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.stopping import StopSignal

LOOK_SECONDS = 0.05
COMPACT_SECONDS = 60.0


class Compaction:
    """Compacts the prediction log now and then, in a thread of its own: a round may take seconds."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._compactor = Compactor(state.state / "log")
        self._last = time.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin a round if it is time and the last one is done."""
        if time.monotonic() < self._last + COMPACT_SECONDS or self._is_busy():
            return
        cursors = [mark.cursor for mark in self._state.store.find(Watermark)]
        self._thread = threading.Thread(target=self._round, args=(cursors,), name="compaction")
        self._thread.start()
        self._last = time.monotonic()

    def stop(self) -> None:
        """Let a round that is under way end, soon."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _round(self, cursors: list[dict[str, int]]) -> None:
        try:
            self._compactor.run(cursors, stopping=self._stopping.is_set)
        except Exception as error:  # noqa: BLE001 - the thread's outermost door; the segments are as they were
            logging.getLogger("keepwell").error("compaction: %s", as_error(error))  # noqa: TRY400 - as below


def run_worker(state: State, *, drain: bool = False) -> None:
    """Work until SIGTERM or SIGINT; with ``drain``, until the queue is empty.

    Raises Refused if another worker holds the project.
    """
    stop = StopSignal()
    stop.listen()
    engine = state.engine()
    engine.start(procedures(state))
    watcher = state.watcher()
    pulse = Pulse(state.state)
    compaction = Compaction(state)
    settled = {replay.id for replay in state.store.find(Replay, {"state": "done"})}
    try:
        while not stop.is_set() and not getattr(engine, "lost", False):
            began = state.clock.now()
            idle = drain and engine.idle()
            try:
                busy = watcher.tick()
                for replay in state.store.find(Replay, {"state": "done"}):
                    if replay.id not in settled:
                        watcher.settle(replay.endpoint)
                        settled.add(replay.id)
                state.rollouts.look()
                turn(state.context)
                compaction.look()
            except KeepwellError as error:
                # A round that fails is said and tried again: the log and the store still hold everything.
                logging.getLogger("keepwell").error("worker: %s", error)  # noqa: TRY400 - the sentence says it all
                busy = False
                stop.wait(1.0)
            else:
                pulse.beat(began)
            # What work leaves behind is looked after in a round that begins when there is no more of it.
            if idle and engine.idle():
                return
            if not busy:
                stop.wait(LOOK_SECONDS)
    finally:
        compaction.stop()
        engine.stop(within=10.0)
