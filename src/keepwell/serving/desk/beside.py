"""Beside the tick: requests whose arms compute in runtimes wait here, and are logged before their answers leave too.

A lane holds what one endpoint's same set of arms has to answer. While a runtime computes one batch, the next one
gathers, so batches grow with the load and no time is spent to form them. What a lane cannot take is answered as where
a runtime fails: by the fallback, and recorded; an endpoint with one arm refuses it before anything is decided.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from keepwell.core.errors import KeepwellError
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.calls import Steps, ask_mirror, ask_models, values_of
from keepwell.serving.desk.codec import MAX_ROWS
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.intake import Pace, refuse
from keepwell.serving.desk.loading import Loaded, Serving
from keepwell.serving.desk.mirrors import Seen, mirrored
from keepwell.serving.desk.replies import reply_probe
from keepwell.serving.log.batches import Batch

MAX_LANE_BYTES = 32 * 1024 * 1024
"""Bodies that may wait in one lane."""
MAX_SHADOWS = 32
"""Batches that may wait for one endpoint's mirrors; more are not measured, and counted as dropped."""
MAX_PROBES = 32

_T = TypeVar("_T")

Each = tuple[Any, ...]
"""As ``Work``: it begins with its ``Ask``."""


class WayOut(Protocol):
    """Where answers leave that were computed beside the tick. All is called on the event loop's thread."""

    @property
    def desk(self) -> Desk:
        """The desk whose requests they were."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which others wait meanwhile."""
        ...

    def send(self, work: list[Any]) -> None:
        """Let answers go that are there: at once, or when the log is on the disk."""
        ...

    def shed(self, each: Any) -> None:
        """Send a refusal, counted."""
        ...

    def sync_later(self) -> None:
        """Bring the log to the disk soon; nobody waits for it."""
        ...


class Lane:
    """What waits for the runtimes of one set of arms."""

    def __init__(self, out: WayOut, beside: Beside) -> None:
        # No lane knows its endpoint: what refers to itself would outlive its edition, and its runtimes with it.
        self._out = out
        self._beside = beside
        self._waiting: list[Each] = []
        self._over: list[Each] = []
        self._size = 0
        self._busy = False
        self._pace = Pace()
        self.shadows = 0

    def take(self, serving: Serving, each: Each) -> None:
        """Let a request wait for the next batch, or say at once that it cannot be."""
        ask: Ask = each[0]
        size = ask.size or len(ask.body)
        ahead = self._pace.fixed + self._pace.slope * self._size if self._busy else 0.0
        full = self._size + size > MAX_LANE_BYTES
        if full or ahead > self._out.desk.intake.limit:
            if len(serving.arms) == 1:
                refuse(
                    ask,
                    "full" if full else "busy",
                    ahead,
                    f"{_BUSY} About {ahead:.3g} s of work is ahead.",
                )
                self._out.shed(each)
                return
            self._over.append(each)
            if len(self._over) == 1:
                self._out.loop.call_soon(self._overflow, serving)
            return
        self._waiting.append(each)
        self._beside.waiting += 1
        self._size += size
        if not self._busy:
            self._busy = True
            # The requests of this tick that are not here yet belong to the same batch.
            self._beside.start(self._work(serving))

    def _overflow(self, serving: Serving) -> None:
        over, self._over = self._over, []
        _guarded(over, partial(self._out.desk.decide, serving, [each[0] for each in over]))
        self._out.send(over)

    async def _work(self, serving: Serving) -> None:
        await asyncio.sleep(0)
        while self._waiting:
            work = self._next(serving)
            size = sum([each[0].size or len(each[0].body) for each in work])
            began = time.perf_counter()
            try:
                await self._answer(serving, work, began)
            finally:
                self._size -= size
                self._beside.waiting -= len(work)
                now = time.perf_counter()
                self._pace.learn(size or 1, now - began, now)
        self._busy = False

    def _next(self, serving: Serving) -> list[Each]:
        """Take as many as one call may compute, by the pace learned: a quarter of its time-out, and at first one.

        The rest of it is for what other workers ask of the same runtime, and for a pace that was learned wrongly.
        """
        rows = 0
        pace = self._pace
        expected = pace.fixed
        allowed = min(_patience(loaded) for loaded in serving.arms) / 4
        for place, each in enumerate(self._waiting):
            ask: Ask = each[0]
            rows += len(ask.rows or ())
            expected += pace.slope * (ask.size or len(ask.body))
            if place and (rows > MAX_ROWS or expected > allowed or not pace.ticks):
                work, self._waiting = self._waiting[:place], self._waiting[place:]
                return work
        work, self._waiting = self._waiting, []
        return work

    async def _answer(self, serving: Serving, work: list[Each], now: float) -> None:
        desk = self._out.desk
        every: list[Ask] = [each[0] for each in work]
        asks = [ask for ask in every if not ask.deadline or desk.in_time(ask, now)]
        if asks:
            try:
                made = desk.prepare(serving, asks)
                desk.conclude(made, await _computed(desk, serving, ask_models(made)))
            except KeepwellError as error:
                _refused(work, 503, str(error))
            except Exception as error:  # noqa: BLE001
                # The outermost door of what is computed here: one bad batch must not end the worker.
                _refused(work, 500, f"{type(error).__name__}: {error}"[:500])
        self._out.send(work)


def _patience(loaded: Loaded) -> float:
    seconds: float = getattr(loaded.predictor, "seconds", 0.0)
    return seconds or math.inf


_BUSY = "The runtime of its model is busy."


async def _computed(desk: Desk, serving: Serving, steps: Steps[_T]) -> _T:
    """Make the model calls that are asked for, waiting for runtimes while the loop goes on."""
    try:
        loaded, part = next(steps)
        while True:
            try:
                if loaded.beside:
                    values = await called(desk, serving, loaded, part)
                else:
                    values = desk.run(serving, loaded, part)
            except Exception as error:  # noqa: BLE001
                # What the model raised, or that its runtime is not there.
                loaded, part = steps.throw(error)
            else:
                loaded, part = steps.send(values)
    except StopIteration as end:
        found: _T = end.value
        return found


async def called(
    desk: Desk, serving: Serving, loaded: Loaded, part: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Make one call of a runtime, counted whether it succeeds or not."""
    began = time.perf_counter_ns()
    failed = True
    try:
        values = values_of(await loaded.predictor.call(part), len(part))  # type: ignore[attr-defined]
        failed = False
    finally:
        desk.ran(serving, loaded, rows=len(part), began=began, failed=failed)
    return values


class Beside:
    """What the desk hands over to, for one worker."""

    def __init__(self, out: WayOut) -> None:
        self._out = out
        self._probes = 0
        self.waiting = 0
        """Requests in lanes that have no answer yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes: WeakKeyDictionary[Serving, dict[tuple[int, ...], Lane]] = WeakKeyDictionary()
        """What waits for runtimes, by the arms of its rows; a mirror's lane has a place below 0."""

    def lane(self, serving: Serving, places: tuple[int, ...]) -> Callable[[Each], None]:
        """Give what takes a request whose rows these arms answer."""
        return partial(self._lane(serving, places).take, serving)

    def _lane(self, serving: Serving, places: tuple[int, ...]) -> Lane:
        lanes = self._lanes.get(serving)
        if lanes is None:
            lanes = self._lanes[serving] = {}
        lane = lanes.get(places)
        if lane is None:
            lane = lanes[places] = Lane(self._out, self)
        return lane

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the loop's other work."""
        task = self._out.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def probe(
        self, serving: Serving, loaded: Loaded, matrix: npt.NDArray[Any]
    ) -> Callable[[Each], None]:
        """Give what takes a probe of one version."""
        return lambda each: self._probe(serving, loaded, matrix, each)

    def _probe(
        self, serving: Serving, loaded: Loaded, matrix: npt.NDArray[Any], each: Each
    ) -> None:
        if self._probes >= MAX_PROBES:
            refuse(each[0], "busy", 1.0, f"{MAX_PROBES} probes are under way.")
            self._out.shed(each)
            return
        self._probes += 1
        self.start(self._probed(serving, loaded, matrix, each))

    async def _probed(
        self, serving: Serving, loaded: Loaded, matrix: npt.NDArray[Any], each: Each
    ) -> None:
        ask: Ask = each[0]
        desk = self._out.desk
        try:
            reply_probe(serving, loaded, ask, await called(desk, serving, loaded, matrix))
        except Exception as error:  # noqa: BLE001
            # A probed challenger's failure is its own.
            ask.refuse(503, f"{type(error).__name__}: {error}"[:300])
        finally:
            self._probes -= 1
        self._out.send([each])

    def mirror(self, serving: Serving, loaded: Loaded, batch: Batch, seen: Seen) -> None:
        """Let a mirror's runtime answer what was answered, unless too much waits for it."""
        lane = self._lane(serving, (-1 - serving.mirrors.index(loaded),))
        if lane.shadows >= MAX_SHADOWS:
            self._out.desk.meters.dropped += len(seen.matrix)
            return
        lane.shadows += 1
        self.start(self._mirrored(lane, serving, loaded, batch, seen))

    async def _mirrored(
        self, lane: Lane, serving: Serving, loaded: Loaded, batch: Batch, seen: Seen
    ) -> None:
        began = time.perf_counter()
        try:
            said = await _computed(self._out.desk, serving, ask_mirror(loaded, seen.matrix))
        finally:
            lane.shadows -= 1
        self._out.desk.log_shadows([mirrored(serving, loaded, batch, seen, said, began)])
        self._out.sync_later()


def _guarded(work: list[Each], act: Callable[[], None]) -> None:
    try:
        act()
    except KeepwellError as error:
        _refused(work, 503, str(error))
    except Exception as error:  # noqa: BLE001 - as in the lanes
        _refused(work, 500, f"{type(error).__name__}: {error}"[:500])


def _refused(work: list[Each], status: int, said: str) -> None:
    for each in work:
        ask: Ask = each[0]
        if not ask.status:
            ask.refuse(status, said)
