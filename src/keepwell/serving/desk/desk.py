"""The desk: answers the requests of a tick together, from their bytes to their answers, logged in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import KeepwellError, NotFound, Unavailable, near_miss
from keepwell.core.records.predictions import Outcome
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.calls import Tick, ask_models, driven, values_of
from keepwell.serving.desk.codec import Codec, Decoded
from keepwell.serving.desk.intake import Intake
from keepwell.serving.desk.loading import Loaded, Serving
from keepwell.serving.desk.mirrors import Seen, mirror, seen_by
from keepwell.serving.desk.replies import reply, reply_probe
from keepwell.serving.desk.rounds import Round, gather, matrix_of, packed, wide
from keepwell.serving.log.batches import STATUSES, Batch
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.telemetry.meters import Meters
from keepwell.serving.telemetry.notes import Part

BUSY = "its runtime has more to do than may wait"
_replace = msgspec.structs.replace


class Aside(Protocol):
    """Who computes what runtimes answer, while the desk goes on. All is called on the event loop's thread."""

    waiting: int
    """Requests that have no answer yet."""

    def lane(self, serving: Serving, places: tuple[int, ...]) -> Callable[[Any], None]:
        """Give what takes a request, with its caller, whose rows these arms answer."""
        ...

    def probe(
        self, serving: Serving, loaded: Loaded, matrix: npt.NDArray[Any]
    ) -> Callable[[Any], None]:
        """Give what takes a probe of one version."""
        ...

    def mirror(self, serving: Serving, loaded: Loaded, batch: Batch, seen: Seen) -> None:
        """Let a mirror answer what was answered, and log it."""
        ...


class Desk:
    """Answers batches of requests: assign, predict once an arm, log, answer."""

    def __init__(
        self, writer: SegmentWriter, *, worker: str, meters: Meters, max_wait: float = 0.0
    ) -> None:
        self.intake = Intake(max_wait)
        self.endpoints: dict[str, Serving] = {}
        self.edition = 0
        self.problem = ""
        self.noting = False
        """Somebody wants to know what became of each request."""
        self.unsynced = False
        """Something was logged whose way to the disk is not under way yet."""
        self._writer = writer
        self._worker = worker
        self._counter = 0
        self.meters = meters
        self._shadows: list[tuple[Serving, Batch, npt.NDArray[Any]]] = []
        self.beside: Aside | None = None
        """Computes what runtimes answer; None: such requests are refused."""

    @property
    def ready(self) -> bool:
        """Tell whether everything of the newest edition answers."""
        return bool(self.endpoints) and not self.problem

    def answer(self, asks: Sequence[Ask]) -> None:
        """Answer the requests of one tick, in place; some answers must wait for the disk (``Ask.waits``)."""
        by_endpoint: dict[str, list[Ask]] = {}
        hurried = False
        for ask in asks:
            if ask.deadline:
                hurried = True
            group = by_endpoint.get(ask.endpoint)
            if group is None:
                by_endpoint[ask.endpoint] = [ask]
            else:
                group.append(ask)
        began = time.perf_counter()
        for name, group in by_endpoint.items():
            if hurried:
                group = [ask for ask in group if not ask.deadline or self.in_time(ask, began)]  # noqa: PLW2901 - what is left of it
                if not group:
                    continue
            try:
                self._answer_endpoint(name, group)
            except KeepwellError as error:
                status = 404 if isinstance(error, NotFound) else 503
                for ask in group:
                    if not ask.status:
                        ask.refuse(status, str(error))
            now = time.perf_counter()
            if self.intake.wants(name, now - began) and name in self.endpoints:
                size = sum([ask.size or len(ask.body) for ask in group])
                self.intake.learn(name, size, now - began, now)
            began = now

    def in_time(self, ask: Ask, now: float) -> bool:
        """Tell whether its caller still waits; if not, refuse it before any arm is assigned."""
        if now < ask.deadline:
            return True
        ask.refuse(
            504, f"Its deadline passed {(now - ask.deadline) * 1000:.3g} ms before its turn."
        )
        ask.shed = "late"
        self.meters.shed(ask.endpoint if ask.endpoint in self.endpoints else "", "late")
        return False

    def _answer_endpoint(self, name: str, group: list[Ask]) -> None:
        serving = self.endpoints.get(name)
        if serving is None and not self.edition:
            raise Unavailable(f"Nothing is loaded yet. {self.problem}".strip())
        if serving is None:
            raise NotFound(f"There is no endpoint {name!r}.", todo=near_miss(name, self.endpoints))
        codec = serving.codec
        if codec is None or not serving.arms:
            raise Unavailable(
                f"The endpoint {name!r} has no version that may answer: "
                f"{serving.edition.refused or 'nothing is deployed'}."
            )
        read = codec.read
        good: list[Ask] = []
        for ask in group:
            try:
                protocol = ask.protocol
                rows = (
                    read(ask.body)
                    if protocol is None
                    else protocol.decode(serving, ask.body, ask.headers)
                )
            except KeepwellError as error:
                bad = 422 if ask.protocol is None else ask.protocol.bad_input
                ask.refuse(404 if isinstance(error, NotFound) else bad, str(error))
                self.meters.refused(name)
                continue
            except Exception as error:  # noqa: BLE001
                # What nobody thought of: it must not fail the other requests of the tick.
                ask.refuse(500, f"{type(error).__name__}: {error}"[:500])
                continue
            ask.rows = rows
            if rows.probe:
                self._probe(serving, codec, ask, rows)
            else:
                good.append(ask)
        if serving.beside:
            good = self._set_aside(serving, good)
        if good:
            self.decide(serving, good)

    def _probe(self, serving: Serving, codec: Codec, ask: Ask, rows: Decoded) -> None:
        for loaded in (*serving.arms, *serving.mirrors):
            if loaded.arm.version == rows.probe:
                matrix = wide(matrix_of(codec, rows))
                if loaded.beside:
                    if self.beside is None:
                        raise Unavailable(BUSY)
                    ask.aside = self.beside.probe(serving, loaded, matrix)
                    return
                try:
                    values = values_of(loaded.predictor.predict(matrix), len(matrix))
                except Exception as error:  # noqa: BLE001
                    # A probed challenger's failure is its own.
                    ask.refuse(503, f"{type(error).__name__}: {error}"[:300])
                    return
                reply_probe(serving, loaded, ask, values)
                return
        ask.refuse(409, f"Version {rows.probe} is not loaded here.")

    def _set_aside(self, serving: Serving, asks: list[Ask]) -> list[Ask]:
        """Let those requests be computed beside whose arms need a runtime; give the others.

        Each set of arms has a lane of its own, so that a slow challenger holds up nobody whom the champion answers.
        """
        beside = self.beside
        if beside is None:
            raise Unavailable(BUSY)
        if len(serving.arms) == 1:
            for ask in asks:
                ask.aside = beside.lane(serving, (0,))
            return []
        # The same rows are placed alike again, when their lane computes them: by their ids and times, which they keep.
        made = self.prepare(serving, asks)
        arms = made.placed.arms
        left: list[Ask] = []
        for ask, (start, stop) in zip(asks, pairwise(made.edges), strict=True):
            places = (0,) if arms is None else tuple(np.unique(arms[start:stop]).tolist())
            assert ask.rows is not None
            ask.rows.ids = made.batch.identities(start, stop)
            if serving.assignment.turning is not None and not ask.rows.times:
                ask.rows.times = [made.batch.arrived] * (stop - start)
            if any(serving.arms[place].beside for place in places):
                ask.aside = beside.lane(serving, places)
            else:
                left.append(ask)
        return left

    def decide(self, serving: Serving, asks: list[Ask]) -> None:
        """Assign, predict, log, answer: in this order."""
        made = self.prepare(serving, asks)
        self.conclude(made, driven(ask_models(made), partial(self.run, serving)))

    def prepare(self, serving: Serving, asks: list[Ask]) -> Round:
        """Put the rows of requests together and assign them to arms."""
        made = gather(serving, asks, worker=self._worker, first=self._counter + 1)
        self._counter += made.batch.rows
        if self.noting:
            made.called = time.perf_counter()
        return made

    def conclude(self, made: Round, tick: Tick) -> None:
        """Log a round that is computed, and write its answers. Raises Unavailable if the log cannot be written."""
        serving, asks, edges = made.serving, made.asks, made.edges
        n = made.batch.rows
        now = time.perf_counter()
        latencies = [int((now - ask.began) * 1e6) for ask in asks]
        spent = np.array(latencies, dtype="<u4")
        if n != len(asks):
            spent = spent.repeat(np.diff(edges))
        batch = _replace(
            made.batch,
            answered=packed(tick.answered),
            outputs=tick.outputs.tobytes(),
            classes=tick.outputs.shape[1] if tick.outputs.ndim == 2 else 0,
            latencies=spent.tobytes(),
            statuses=bytes(tick.statuses) if tick.statuses else b"",
            errors=tick.errors,
        )
        kept, matrix, assignment = batch, made.matrix, serving.assignment
        if assignment.log_share < 1:
            # Mirrors compute what is written down of them, and nothing else.
            rows_kept = assignment.written(batch.identities())
            if len(rows_kept) < n:
                kept = batch.take(rows_kept, share=assignment.log_share)
            else:
                kept = msgspec.structs.replace(batch, share=assignment.log_share)
            if serving.mirrors:
                matrix = matrix[rows_kept]
        if kept.rows:
            self._writer.append(batches=(kept,))
        if self.noting:
            logged = time.perf_counter()
            for ask, (start, stop) in zip(asks, pairwise(edges), strict=True):
                ask.part = Part(batch, start, stop, made.called, now, logged)
        if serving.edition.log != "sync":
            self.unsynced = True
        reply(made, batch, tick)
        self._count(serving, tick, latencies, edges)
        if serving.mirrors and kept.rows:
            self._shadows.append((serving, kept, matrix))

    def run(
        self, serving: Serving, loaded: Loaded, part: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Make one model call, counted whether it succeeds or not; a runtime is not waited for."""
        if loaded.beside:
            raise Unavailable(BUSY)
        began = time.perf_counter_ns()
        failed = True
        try:
            values = values_of(loaded.predictor.predict(part), len(part))
            failed = False
        finally:
            self.ran(serving, loaded, rows=len(part), began=began, failed=failed)
        return values

    def ran(self, serving: Serving, loaded: Loaded, *, rows: int, began: int, failed: bool) -> None:
        """Count one model call that began at ``began`` (``time.perf_counter_ns``)."""
        spent = time.perf_counter_ns() - began
        self.meters.ran(
            serving.edition.name, loaded.arm.version, rows=rows, spent=spent, failed=failed
        )

    def _count(self, serving: Serving, tick: Tick, latencies: list[int], edges: list[int]) -> None:
        name = serving.edition.name
        self.meters.ticked(name, len(latencies), edges[-1])
        answered = tick.by
        if answered is None:
            arm = serving.arms[0].arm
            rows = None if edges[-1] == len(latencies) else [b - a for a, b in pairwise(edges)]
            self.meters.answered(name, arm.name, arm.version, "ok", latencies, rows)
            return
        groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        if tick.statuses is None and edges[-1] == len(latencies):
            own: list[list[int]] = [[] for _ in serving.arms]
            for place, latency in zip(answered, latencies, strict=True):
                own[place].append(latency)
            for loaded, of in zip(serving.arms, own, strict=True):
                if of:
                    self.meters.answered(name, loaded.arm.name, loaded.arm.version, "ok", of)
            return
        if edges[-1] == len(latencies):  # one row a request, mostly
            for key, latency in zip(
                zip(answered, tick.statuses or bytes(edges[-1]), strict=True),
                latencies,
                strict=True,
            ):
                groups.setdefault(key, ([], []))[0].append(latency)
            for (by, status), (of, _) in groups.items():
                arm = serving.arms[by].arm
                self.meters.answered(name, arm.name, arm.version, STATUSES[status], of)
            return
        for latency, (start, stop) in zip(latencies, pairwise(edges), strict=True):
            statuses = tick.statuses[start:stop] if tick.statuses else bytes(stop - start)
            for key, rows_of in Counter(zip(answered[start:stop], statuses, strict=True)).items():
                group = groups.setdefault(key, ([], []))
                group[0].append(latency)
                group[1].append(rows_of)
        for (by, status), (of, weights) in groups.items():
            arm = serving.arms[by].arm
            self.meters.answered(name, arm.name, arm.version, STATUSES[status], of, weights)

    def waits(self, endpoint: str) -> bool:
        """Tell whether the answers of an endpoint wait for the disk."""
        serving = self.endpoints.get(endpoint)
        return serving is not None and serving.edition.log == "sync"

    def shadow(self) -> None:
        """Compute and log what the mirrors would have said to requests that are answered."""
        work, self._shadows = self._shadows, []
        batches: list[Batch] = []
        for serving, batch, matrix in work:
            for loaded in serving.mirrors:
                seen = seen_by(serving, loaded, batch, matrix)
                if seen is None:
                    continue
                if not loaded.beside:
                    batches.append(mirror(serving, loaded, batch, seen))
                elif self.beside is not None:
                    self.beside.mirror(serving, loaded, batch, seen)
        if batches:
            self.log_shadows(batches)

    def log_shadows(self, batches: Sequence[Batch]) -> None:
        """Log what mirrors said."""
        try:
            self._writer.append(batches=batches)
        except Unavailable:
            # A shadow is a measurement: losing it loses no answer.
            self.meters.dropped += sum(batch.rows for batch in batches)
        self.unsynced = True

    @property
    def shadowing(self) -> bool:
        """Tell whether mirrors have something to compute."""
        return bool(self._shadows)

    def outcomes(self, given: Sequence[Outcome]) -> None:
        """Log outcomes. Raises Unavailable."""
        self._writer.append(outcomes=given)

    def sync(self) -> None:
        """Bring the log to the disk. Raises Unavailable."""
        self._writer.sync()
