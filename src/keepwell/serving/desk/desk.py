"""The desk: loaded predictors by edition, and the hot path from decoded rows to logged answers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import Corrupt, KeepwellError, NotFound, Unavailable, near_miss
from keepwell.core.records.models import Package
from keepwell.core.records.predictions import Outcome
from keepwell.core.records.traffic import BUCKETS, Arm
from keepwell.serving.desk.assign import Assignment, Placed, Rows
from keepwell.serving.desk.codec import Codec, Decoded, encode, encode_error
from keepwell.serving.desk.intake import Intake
from keepwell.serving.editions import Edition, EndpointEdition, Shelf
from keepwell.serving.log.batches import ERROR, FALLBACK, STATUSES, Answerer, Answers, Batch, Places
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.protocols import JSON, WireProtocol
from keepwell.serving.telemetry.meters import Meters
from keepwell.serving.telemetry.notes import Part
from keepwell.training.artefacts import check_folder
from keepwell.training.predictors import (
    Predictor,
    golden_problem,
    load_predictor,
    read_package_file,
)

if TYPE_CHECKING:  # they know the desk; it needs their words for its types alone
    from keepwell.serving.desk.beside import Beside, Lane
    from keepwell.serving.runtimes.links import Links

ANOTHER_ROW = "another row of its request had no answer"
NOT_A_NUMBER = "its answer is not a finite number"
PROCESS = "process"
"""The kind of predictor whose calls are answered later: no tick waits for it."""
BUSY = "its runtime has more to do than may wait"

NAMED = (Unavailable,)
"""Exceptions that say all in their words; of others the name is told too."""
_replace = msgspec.structs.replace

_T = TypeVar("_T")
Steps = Generator[tuple["Loaded", npt.NDArray[Any]], npt.NDArray[np.float64], _T]
"""Asks for one model call after the other and is sent its answers, or thrown what it raised: whoever drives it computes
at once, or waits without holding up others."""


class Loaded(msgspec.Struct, frozen=True):
    """One arm with its predictor in memory."""

    arm: Arm
    predictor: Predictor
    beside: bool = False
    """It computes in a runtime, not in this process."""


class Serving(msgspec.Struct, frozen=True):
    """One endpoint, ready to answer."""

    edition: EndpointEdition
    codec: Codec | None
    arms: tuple[Loaded, ...]
    mirrors: tuple[Loaded, ...]
    names: tuple[str, ...]
    answerers: tuple[Answerer, ...]
    """The arms, and behind them each cohort's arm once more."""
    tails: tuple[bytes, ...]
    """What an answer's JSON ends with, by arm."""
    assignment: Assignment
    fallback: int | None = None
    """Place of the arm that answers where another fails."""
    left_out: tuple[str, ...] = ()
    """Mirrors that could not be loaded, and why: nobody waits for their answers."""
    beside: bool = False
    """An arm computes in a runtime."""
    lanes: dict[tuple[int, ...], Lane] = {}
    """What waits for runtimes, by the arms of its rows."""


class Loader:
    """Loads what an edition names, keeping what is loaded already. Runs beside the event loop."""

    def __init__(self, shelf: Shelf, links: Links | None = None) -> None:
        self._shelf = shelf
        self._links = links
        self._loaded: dict[str, tuple[Predictor, Any]] = {}

    def load(self, edition: Edition) -> dict[str, Serving]:
        """Load, warm and self-test every arm. Raises Corrupt, Refused, naming the version."""
        needed: set[str] = set()
        endpoints: dict[str, Serving] = {}
        for endpoint in edition.endpoints:
            arms = tuple(self._arm(arm, needed) for arm in endpoint.arms)
            mirrors: list[Loaded] = []
            left_out: list[str] = []
            for arm in endpoint.mirrors:
                try:
                    mirrors.append(self._arm(arm, needed))
                except KeepwellError as error:
                    left_out.append(str(error))
            codec = None
            signature = None
            if arms:
                package = self._loaded[arms[0].arm.artefact][1]
                signature = package.signature
                codec = Codec(signature, unit=endpoint.unit, time=endpoint.time)
            assignment = Assignment(endpoint, signature)
            endpoints[endpoint.name] = Serving(
                edition=endpoint,
                codec=codec,
                arms=arms,
                mirrors=tuple(mirrors),
                names=tuple(arm.name for arm in endpoint.arms),
                answerers=(
                    *(
                        Answerer(arm.name, arm.version, arm.artefact, arm.weight)
                        for arm in endpoint.arms
                    ),
                    *(
                        Answerer(arm.name, arm.version, arm.artefact, BUCKETS, cohort.label)
                        for cohort in assignment.cohorts
                        for arm in endpoint.arms
                        if arm.name == cohort.arm
                    ),
                ),
                assignment=assignment,
                tails=tuple(
                    b","
                    + encode({"version": arm.version, "plan": endpoint.plan, "arm": arm.name})[1:]
                    for arm in endpoint.arms
                ),
                fallback=next(
                    (k for k, arm in enumerate(endpoint.arms) if arm.name == endpoint.fallback),
                    None,
                ),
                left_out=tuple(left_out),
                beside=any(loaded.beside for loaded in arms),
                lanes={},
            )
        for digest in set(self._loaded) - needed:
            del self._loaded[digest]
        return endpoints

    def _arm(self, arm: Arm, needed: set[str]) -> Loaded:
        needed.add(arm.artefact)
        if arm.artefact not in self._loaded:
            folder = self._shelf.artefact_folder(arm.artefact)
            try:
                check_folder(arm.artefact, folder)
                predictor, package = self._load(arm.artefact, folder)
                problem = _problem(predictor, package, folder)
            except KeepwellError:
                raise
            except Exception as error:
                # Unpickling and the golden rows run the user's classes.
                raise Corrupt(
                    f"{arm.model}/{arm.version} is not served: it raised"
                    f" {type(error).__name__}: {error}"[:400]
                ) from error
            if problem:
                raise Corrupt(f"{arm.model}/{arm.version} is not served: {problem}.")
            self._loaded[arm.artefact] = (predictor, package)
        predictor, package = self._loaded[arm.artefact]
        return Loaded(arm=arm, predictor=predictor, beside=package.predictor == PROCESS)

    def _load(self, artefact: str, folder: Path) -> tuple[Predictor, Package]:
        package = read_package_file(folder)
        if package.predictor != PROCESS:
            return load_predictor(folder)
        if self._links is None:
            raise Unavailable("A model with a process of its own is served by gateways only.")
        return self._links.open(artefact), package


def _problem(predictor: Predictor, package: Package, folder: Path) -> str:
    try:
        return golden_problem(predictor, folder, numeric=package.signature.numeric)
    except Unavailable:
        # A runtime answers its golden rows itself before it is ready, whenever it begins; that it ended since must
        # not keep a worker from serving everything else.
        if package.predictor != PROCESS:
            raise
        return ""


class Ask(msgspec.Struct):
    """One request at the desk, and the answer when it is there."""

    endpoint: str
    body: bytes
    began: float
    protocol: WireProtocol | None = None
    """How the body is written; None: rows as JSON, which has the shortest way."""
    headers: Mapping[bytes, bytes] = {}
    status: int = 0
    answer: bytes = b""
    content: bytes = JSON
    """Content type of the answer, and any further header lines."""
    rows: Decoded | None = None
    size: int = 0
    """Bytes of the request, where it is not those of ``body``."""
    deadline: float = 0.0
    """When its caller gives up, by the clock of ``began``; 0: never."""
    postponed: bool = False
    """Others went first, because they were in a hurry."""
    shed: str = ""
    """Why it was not computed although it could be: ``busy``, ``deadline``, ``full`` or ``late``."""
    part: Part | None = None
    """Its place in the tick, where somebody listens."""
    waits: bool = False
    """The answer may leave once the log is on the disk, and not before."""
    aside: Callable[[Any], None] | None = None
    """Takes the request, with its caller, where it is computed beside the tick."""

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, in the words of the request's protocol."""
        self.status = status
        self.content = JSON
        self.answer = (
            encode_error(message) if self.protocol is None else self.protocol.error(status, message)
        )


class Tick(msgspec.Struct):
    """What one model call an arm gave for n rows of several requests."""

    outputs: npt.NDArray[np.float64]
    """Shape (n,) or (n, classes); NaN where no arm had an answer."""
    chosen: Places | None
    """Place of the chosen arm a row; None: the first."""
    answered: list[int] | None
    """Place of the arm that answered; None: the chosen one."""
    statuses: bytearray | None
    """None: ok."""
    errors: dict[int, str]

    @property
    def by(self) -> list[int] | None:
        """Place of the arm that answered a row; None: the first."""
        if self.answered is not None or self.chosen is None:
            return self.answered
        return self.chosen.tolist()  # type: ignore[no-any-return]


class Round(msgspec.Struct):
    """The requests of one tick at one endpoint: read and assigned, and to be computed."""

    serving: Serving
    asks: list[Ask]
    edges: list[int]
    """Where the rows of each request begin, and the end of the last."""
    matrix: npt.NDArray[Any]
    placed: Placed
    batch: Batch
    """All that is known before the models have answered."""
    called: float
    """When it was ready for the models, where somebody listens."""


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
        self.beside: Beside | None = None
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
                matrix = _wide(_matrix(codec, rows))
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
                self.probed(serving, loaded, ask, values)
                return
        ask.refuse(409, f"Version {rows.probe} is not loaded here.")

    @staticmethod
    def probed(serving: Serving, loaded: Loaded, ask: Ask, values: npt.NDArray[np.float64]) -> None:
        """Answer a probe."""
        if not np.isfinite(values).all():
            ask.refuse(503, f"ValueError: {NOT_A_NUMBER}")
            return
        ask.status = 200
        if ask.protocol is not None:
            records = _probed(serving, loaded.arm, values)
            ask.answer, ask.content = ask.protocol.encode(serving, ask, records)
            return
        ask.answer = encode(
            {
                "predictions": [
                    {"prediction": v, "version": loaded.arm.version} for v in values.tolist()
                ]
            }
        )

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
        self.conclude(made, self._compute(serving, self.steps(made)))

    def prepare(self, serving: Serving, asks: list[Ask]) -> Round:
        """Put the rows of requests together and assign them to arms."""
        codec = serving.codec
        assert codec is not None
        arrived = time.time_ns() // 1000
        edges = [0]
        n = 0
        named = timed = False
        units: list[str] = []
        alike = True
        packs = codec.packs
        features: list[tuple[Any, ...]] = []
        for ask in asks:
            rows = ask.rows
            assert rows is not None
            given = rows.features
            if given is not None and rows.matrix is None:
                features += given
                n += len(given)
            else:
                alike = False
                n += len(rows)
            edges.append(n)
            if rows.ids:
                named = True
            if rows.units:
                units += rows.units
            if rows.times:
                timed = True
        if alike:
            matrix = codec.matrix(features)
        else:
            packs = packs or all(ask.rows.features is None for ask in asks)  # type: ignore[union-attr]
            parts = [_matrix(codec, ask.rows) for ask in asks]
            if len({part.dtype for part in parts}) > 1:
                parts = [_wide(part) for part in parts]
            matrix = parts[0] if len(parts) == 1 else np.concatenate(parts)
            packs = packs and matrix.dtype != object
        prefix = f"{arrived:x}-{self._worker}-"
        first = self._counter + 1
        self._counter += n
        ids: list[str] = []
        if named:
            for ask, start in zip(asks, edges, strict=False):
                assert ask.rows is not None
                ids += ask.rows.ids or [
                    f"{prefix}{first + k:x}" for k in range(start, start + len(ask.rows))
                ]
        if units and len(units) < n:
            units = _joined(asks, edges, "units", "")
        times = _joined(asks, edges, "times", arrived) if timed else ()
        assignment = serving.assignment
        placed = Placed()
        if assignment.sole != 0:
            placed = assignment.place(
                Rows(
                    names=lambda: ids or [f"{prefix}{first + k:x}" for k in range(n)],
                    units=units,
                    times=times,
                    matrix=matrix,
                    edges=edges,
                    headers=[ask.headers for ask in asks] if assignment.headers else (),
                    arrived=arrived,
                )
            )
        rows_in = matrix.tobytes() if packs else b""
        kind = matrix.dtype.str if packs else "<f8"
        batch = Batch(
            endpoint=serving.edition.name,
            plan=serving.edition.plan,
            arms=serving.names,
            answerers=serving.answerers,
            arrived=arrived,
            mirror=False,
            rows=n,
            prefix=prefix,
            first=first,
            ids=ids,
            times=times,
            units=units,
            chosen=_packed(placed.logged),
            features=() if packs else features if alike else _features(asks, codec),
            matrix=rows_in,
            kind=kind,
            propensities=b"" if placed.propensities is None else placed.propensities.tobytes(),
        )
        called = time.perf_counter() if self.noting else 0.0
        return Round(serving, asks, edges, _wide(matrix), placed, batch, called)

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
            answered=_packed(tick.answered),
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
        self._reply(serving, asks, edges, batch, tick)
        self._count(serving, tick, latencies, edges)
        if serving.mirrors and kept.rows:
            self._shadows.append((serving, kept, matrix))

    def _compute(self, serving: Serving, steps: Steps[Tick]) -> Tick:
        """Make the model calls of a round here and now; a runtime is not waited for."""
        try:
            loaded, part = next(steps)
            while True:
                try:
                    values = self.run(serving, loaded, part)
                except Exception as error:  # noqa: BLE001
                    # The model is the user's code; whatever it raises must not end the worker.
                    loaded, part = steps.throw(error)
                else:
                    loaded, part = steps.send(values)
        except StopIteration as end:
            tick: Tick = end.value
            return tick

    def steps(self, made: Round) -> Steps[Tick]:
        """Ask for one model call an arm; where it fails, see on whose rows, and let the fallback answer those."""
        serving, matrix, chosen, edges = made.serving, made.matrix, made.placed.arms, made.edges
        n = len(matrix)
        if chosen is None:
            alone = serving.arms[0]
            tried = yield from _tried(alone, matrix)
            if tried is not None and _finite(tried):
                return Tick(tried, None, None, None, {})
            found = [(alone, np.arange(n), tried)]
        else:
            # The rows of one arm lie together while the models run, so that they are moved once and not by each.
            order = chosen.argsort(kind="stable")
            counts = np.bincount(chosen)
            moved = matrix if counts[-1] == n else matrix[order]
            found = []
            start = 0
            for loaded, count in zip(serving.arms, counts.tolist(), strict=False):
                if count:
                    stop = start + count
                    tried = yield from _tried(loaded, moved[start:stop])
                    found.append((loaded, order[start:stop], tried))
                    start = stop
            good = [values for _, _, values in found if values is not None]
            if len(good) == len(found) and len({values.shape[1:] for values in good}) == 1:
                outputs = np.empty((n, *good[0].shape[1:]))
                outputs[order] = good[0] if len(good) == 1 else np.concatenate(good)
                if _finite(outputs):
                    return Tick(outputs, chosen, None, None, {})
        return (yield from self._rescue(serving, matrix, chosen, edges, found))

    def _rescue(
        self,
        serving: Serving,
        matrix: npt.NDArray[Any],
        chosen: Places | None,
        edges: list[int],
        found: list[tuple[Loaded, Places, npt.NDArray[np.float64] | None]],
    ) -> Steps[Tick]:
        """Put together what the arms gave where one of them raised, or gave what is no answer."""
        n = len(matrix)
        outputs: npt.NDArray[np.float64] | None = None
        troubled: dict[int, str] = {}
        for loaded, rows, tried in found:
            values = tried
            if values is None:
                values = yield from _one_by_one(loaded, matrix, rows, edges, troubled)
            if not np.isfinite(values).all():
                bad = ~np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
                for k in rows[bad].tolist():
                    troubled.setdefault(k, NOT_A_NUMBER)
            if outputs is None:
                outputs = np.full((n, *values.shape[1:]), np.nan)
            if outputs.shape[1:] == values.shape[1:]:
                outputs[rows] = values
            else:
                for k in rows.tolist():
                    troubled.setdefault(k, "its answers have another shape than the other arm's")
        assert outputs is not None
        tick = Tick(outputs, chosen, None, None, {})
        if troubled:
            yield from self._salvage(serving, matrix, tick, troubled, edges)
        return tick

    def run(
        self, serving: Serving, loaded: Loaded, part: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Make one model call, counted whether it succeeds or not."""
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

    @staticmethod
    def _salvage(
        serving: Serving,
        matrix: npt.NDArray[Any],
        tick: Tick,
        troubled: dict[int, str],
        edges: list[int],
    ) -> Steps[None]:
        """Let the fallback answer the rows that the chosen arm failed on; what is left has no answer."""
        n = len(matrix)
        tick.statuses = bytearray(n)
        chosen: list[int] = [0] * n if tick.chosen is None else tick.chosen.tolist()
        tick.answered = list(chosen)
        tick.outputs = np.array(tick.outputs)
        fallback = serving.fallback
        rows = np.array([k for k in sorted(troubled) if chosen[k] != fallback], dtype=np.intp)
        if fallback is not None and len(rows):
            second: dict[int, str] = {}
            values = yield from _one_by_one(serving.arms[fallback], matrix, rows, edges, second)
            if tick.outputs.shape[1:] != values.shape[1:] and len(rows) == n:
                tick.outputs = np.full((n, *values.shape[1:]), np.nan)
            fits = tick.outputs.shape[1:] == values.shape[1:]
            for k, value in zip(rows.tolist(), values, strict=True):
                if k in second or not fits or not np.isfinite(value).all():
                    said = second.get(k, NOT_A_NUMBER)
                    troubled[k] = f"{troubled[k]}; and so did the fallback: {said}"[:600]
                    continue
                tick.outputs[k] = value
                tick.answered[k] = fallback
                tick.statuses[k] = FALLBACK
                tick.errors[k] = troubled.pop(k)
        for k, said in troubled.items():
            tick.outputs[k] = np.nan
            tick.statuses[k] = ERROR
            tick.errors[k] = said
        # A request is answered whole or not at all.
        for start, stop in pairwise(edges):
            if ERROR in tick.statuses[start:stop]:
                for k in range(start, stop):
                    if tick.statuses[k] != ERROR:
                        tick.statuses[k] = ERROR
                        tick.outputs[k] = np.nan
                        tick.answered[k] = chosen[k]
                        tick.errors[k] = ANOTHER_ROW

    def _reply(
        self, serving: Serving, asks: list[Ask], edges: list[int], batch: Batch, tick: Tick
    ) -> None:
        durable = serving.edition.log == "sync"
        if not durable:
            self.unsynced = True
        outputs = tick.outputs
        texts: list[bytes] | None = None
        answered = tick.by
        made = b'"%s' % batch.prefix.encode()
        tails = serving.tails
        for place, ask in enumerate(asks):
            start, stop = edges[place], edges[place + 1]
            if tick.statuses is not None and tick.statuses[start] == ERROR:
                _refuse(serving, ask, tick, start, stop)
            elif ask.protocol is not None:
                answers = Answers(batch, outputs[start:stop], start, stop)
                ask.answer, ask.content = ask.protocol.encode(serving, ask, answers)
                ask.status = 200
            else:
                if texts is None:
                    texts = _texts(outputs)
                parts = []
                for k in range(start, stop):
                    identity = (
                        encode(batch.ids[k]) if batch.ids else b'%s%x"' % (made, batch.first + k)
                    )
                    tail = tails[answered[k] if answered else 0]
                    parts.append(b'{"id":%s,"prediction":%s%s' % (identity, texts[k], tail))
                ask.answer = b'{"predictions":[%s]}' % b",".join(parts)
                ask.status = 200
            if durable:
                ask.waits = True

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
                seen = _seen(serving, loaded, batch, matrix)
                if seen is None:
                    continue
                if not loaded.beside:
                    batches.append(_mirrored(serving, loaded, batch, seen))
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


def _refuse(serving: Serving, ask: Ask, tick: Tick, start: int, stop: int) -> None:
    k = next(k for k in range(start, stop) if tick.errors[k] != ANOTHER_ROW)
    arm = serving.arms[0 if tick.chosen is None else tick.chosen[k]].arm
    ask.refuse(
        503,
        f"The model of {arm.model}/{arm.version} failed on row {k - start}: {tick.errors[k]}.",
    )


def _probed(serving: Serving, arm: Arm, values: npt.NDArray[np.float64]) -> Answers:
    """Put what a probe said into records, for protocols to write. They have no id and are never logged."""
    n = len(values)
    batch = Batch(
        endpoint=serving.edition.name,
        plan=serving.edition.plan,
        arms=serving.names,
        answerers=(Answerer(arm.name, arm.version, arm.artefact, 0),),
        arrived=0,
        mirror=True,
        rows=n,
        prefix="",
        first=0,
        ids=[""] * n,
        outputs=values.tobytes(),
        classes=values.shape[1] if values.ndim == 2 else 0,
        latencies=bytes(4),
    )
    return Answers(batch, values, 0, n)


def _matrix(codec: Codec, rows: Decoded | None) -> npt.NDArray[Any]:
    assert rows is not None
    return codec.matrix(rows.features or []) if rows.matrix is None else rows.matrix


def _wide(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give rows as predictors take them: single precision is for the wire and the log."""
    if matrix.dtype != np.float32:
        return matrix
    with np.errstate(invalid="ignore"):  # NaN has bit patterns that set the processor's flag
        return matrix.astype(np.float64)


def _features(asks: Sequence[Ask], codec: Codec) -> list[Sequence[Any]]:
    """Give every row as it was sent; where it came as numbers, those."""
    found: list[Sequence[Any]] = []
    for ask in asks:
        assert ask.rows is not None
        if ask.rows.features is not None:
            found += ask.rows.features
        else:
            numbers = _matrix(codec, ask.rows).tolist()
            found += [[None if v != v else v for v in row] for row in numbers]  # noqa: PLR0124 - NaN alone differs from itself
    return found


def _joined(asks: Sequence[Ask], edges: list[int], field: str, otherwise: Any) -> list[Any]:
    """Join a column over requests of which some may have none."""
    columns = [getattr(ask.rows, field) for ask in asks]
    joined: list[Any] = []
    for column, start, stop in zip(columns, edges, edges[1:], strict=False):
        joined += column or [otherwise] * (stop - start)
    return joined


def _packed(places: Places | list[int] | None) -> bytes:
    return b"" if places is None else np.array(places, dtype="<u2").tobytes()


def _texts(outputs: npt.NDArray[np.float64]) -> list[bytes]:
    """Write answers as JSON, all at once."""
    text = encode(outputs.tolist())
    if outputs.ndim == 1:
        return text[1:-1].split(b",")
    return [b"[%s]" % row for row in text[2:-2].split(b"],[")]


def values_of(given: Any, rows: int) -> npt.NDArray[np.float64]:
    """See that a model gave one answer a row. Raises ValueError."""
    values = np.asarray(given, dtype=np.float64)
    if values.shape[:1] != (rows,) or values.ndim > 2:
        raise ValueError(f"it gave answers of shape {values.shape} for {rows} rows")
    return values


def _finite(values: npt.NDArray[np.float64]) -> bool:
    """Tell whether all values are finite, in a tenth of the time of ``isfinite`` for few of them."""
    # A sum of squares is finite only if all are; where it overflows, each is looked at.
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def _tried(loaded: Loaded, matrix: npt.NDArray[Any]) -> Steps[npt.NDArray[np.float64] | None]:
    try:
        return (yield loaded, matrix)
    except Exception:  # noqa: BLE001
        # The user's code. Whose rows it was comes out when each request's are tried alone.
        return None


def _one_by_one(
    loaded: Loaded,
    matrix: npt.NDArray[Any],
    rows: npt.NDArray[np.intp],
    edges: list[int],
    troubled: dict[int, str],
) -> Steps[npt.NDArray[np.float64]]:
    """Run a model on the rows of each request alone, so that one caller's rows fail nobody else's."""
    outputs: npt.NDArray[np.float64] | None = None
    for start, stop in pairwise(edges):
        inside = np.flatnonzero((rows >= start) & (rows < stop))
        if not len(inside):
            continue
        mine = rows[inside]
        try:
            values = yield loaded, matrix[mine]
            if outputs is None:
                outputs = np.full((len(rows), *values.shape[1:]), np.nan)
            outputs[inside] = values
        except Exception as error:  # noqa: BLE001
            # The user's code, as above.
            troubled.update(dict.fromkeys(mine.tolist(), told(error)))
    return np.full(len(rows), np.nan) if outputs is None else outputs


def told(error: Exception) -> str:
    """Say in a record what a model raised, or why its runtime did not answer."""
    return (
        str(error)[:300] if isinstance(error, NAMED) else f"{type(error).__name__}: {error}"[:300]
    )


class Seen(msgspec.Struct, frozen=True):
    """The rows of a batch that a mirror sees."""

    matrix: npt.NDArray[Any]
    ids: Sequence[str]
    times: Sequence[int]
    units: Sequence[str]


def _seen(serving: Serving, loaded: Loaded, batch: Batch, matrix: npt.NDArray[Any]) -> Seen | None:
    """Give the rows that one mirror sees; None: it sees none."""
    ids, times, units = batch.ids, batch.times or [batch.arrived] * batch.rows, batch.units
    if 0 < loaded.arm.weight < BUCKETS:
        rows = serving.assignment.mirrored(loaded.arm, units, batch.identities).tolist()
        if not rows:
            return None
        matrix = matrix[rows]
        known = batch.identities()
        ids, times = [known[k] for k in rows], [times[k] for k in rows]
        units = [units[k] for k in rows] if units else units
    return Seen(matrix, ids, times, units)


def _mirrored(serving: Serving, loaded: Loaded, batch: Batch, seen: Seen) -> Batch:
    """Let one mirror answer the rows that it sees; what it raises is recorded, and harms nobody."""
    began = time.perf_counter()
    outcome: npt.NDArray[np.float64] | Exception
    try:
        outcome = values_of(loaded.predictor.predict(seen.matrix), len(seen.matrix))
    except Exception as error:  # noqa: BLE001
        # A challenger is the user's code too.
        outcome = error
    return mirrored(serving, loaded, batch, seen, outcome, began)


def mirrored(
    serving: Serving,
    loaded: Loaded,
    batch: Batch,
    seen: Seen,
    outcome: npt.NDArray[Any] | Exception,
    began: float,
) -> Batch:
    """Put what one mirror said to the rows that it saw, or raised, into columns for the log."""
    n = len(seen.matrix)
    errors: dict[int, str] = {}
    outputs: npt.NDArray[Any]
    if isinstance(outcome, Exception):
        outputs = np.full(n, np.nan)
        errors = dict.fromkeys(range(n), told(outcome))
    else:
        outputs = outcome
        if not np.isfinite(outputs).all():
            bad = ~np.isfinite(outputs.reshape(n, -1)).all(axis=1)
            errors = dict.fromkeys(np.flatnonzero(bad).tolist(), NOT_A_NUMBER)
    statuses = bytearray(n) if errors else bytearray()
    for k in errors:
        statuses[k] = ERROR
    arm = loaded.arm
    return Batch(
        endpoint=batch.endpoint,
        plan=batch.plan,
        arms=serving.names,
        answerers=(Answerer(arm.name, arm.version, arm.artefact, arm.weight or BUCKETS),),
        arrived=time.time_ns() // 1000,
        mirror=True,
        rows=n,
        prefix=batch.prefix,
        first=batch.first,
        ids=seen.ids,
        times=seen.times,
        units=seen.units,
        outputs=outputs.tobytes(),
        classes=outputs.shape[1] if outputs.ndim == 2 else 0,
        latencies=np.array([(time.perf_counter() - began) * 1e6], dtype="<u4").tobytes(),
        statuses=bytes(statuses),
        errors=errors,
        share=batch.share,
    )
