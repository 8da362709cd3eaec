"""The desk: loaded predictors by edition, and the hot path from decoded rows to logged answers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import Corrupt, KeepwellError, NotFound, Unavailable, near_miss
from keepwell.core.records.predictions import Outcome, Prediction, Status
from keepwell.core.records.traffic import BUCKETS, Arm
from keepwell.serving.assign import bucket_of, choose
from keepwell.serving.codec import Codec, Decoded, encode
from keepwell.serving.editions import Edition, EndpointEdition, Shelf
from keepwell.serving.meters import Meters
from keepwell.serving.segments import SegmentWriter
from keepwell.training.predictors import Predictor, load_predictor


class Loaded(msgspec.Struct, frozen=True):
    """One arm with its predictor in memory."""

    arm: Arm
    predictor: Predictor


class Serving(msgspec.Struct, frozen=True):
    """One endpoint, ready to answer."""

    edition: EndpointEdition
    codec: Codec | None
    arms: tuple[Loaded, ...]
    mirrors: tuple[Loaded, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Mirrors that could not be loaded, and why: nobody waits for their answers."""


def golden_problem(predictor: Predictor, folder: Path, *, numeric: bool) -> str:
    """Let a freshly loaded predictor answer its golden rows; say what is wrong, or nothing."""
    try:
        golden = msgspec.json.decode((folder / "golden.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        return f"golden.json cannot be read: {error}"
    rows = golden["rows"]
    if not rows:
        return ""
    matrix = np.array(rows, dtype=np.float64 if numeric else object)
    worst = float(np.max(np.abs(predictor.predict(matrix) - np.array(golden["predictions"]))))
    return "" if worst <= golden["tolerance"] else f"its golden rows differ by {worst:.3g}"


class Loader:
    """Loads what an edition names, keeping what is loaded already. Runs beside the event loop."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
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
            if arms:
                package = self._loaded[arms[0].arm.artefact][1]
                codec = Codec(package.signature, unit=endpoint.unit, time=endpoint.time)
            endpoints[endpoint.name] = Serving(
                edition=endpoint,
                codec=codec,
                arms=arms,
                mirrors=tuple(mirrors),
                names=tuple(arm.name for arm in endpoint.arms),
                left_out=tuple(left_out),
            )
        for digest in set(self._loaded) - needed:
            del self._loaded[digest]
        return endpoints

    def _arm(self, arm: Arm, needed: set[str]) -> Loaded:
        needed.add(arm.artefact)
        if arm.artefact not in self._loaded:
            folder = self._shelf.artefact_folder(arm.artefact)
            try:
                predictor, package = load_predictor(folder)
                problem = golden_problem(predictor, folder, numeric=package.signature.numeric)
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
        return Loaded(arm=arm, predictor=self._loaded[arm.artefact][0])


class Ask(msgspec.Struct):
    """One request at the desk, and the answer when it is there."""

    endpoint: str
    body: bytes
    began: float
    status: int = 0
    answer: bytes = b""
    rows: Decoded | None = None
    ids: list[str] = []


class Desk:
    """Answers batches of requests: assign, predict once an arm, log, commit, answer."""

    def __init__(self, writer: SegmentWriter, *, worker: str, meters: Meters) -> None:
        self.endpoints: dict[str, Serving] = {}
        self.edition = 0
        self.problem = ""
        self._writer = writer
        self._worker = worker
        self._counter = 0
        self.meters = meters
        self._shadows: list[tuple[Serving, list[Ask]]] = []

    def answer(self, asks: Sequence[Ask]) -> bool:
        """Answer the requests of one tick. Gives True if the log must be synced by the caller later (``group``)."""
        by_endpoint: dict[str, list[Ask]] = {}
        for ask in asks:
            by_endpoint.setdefault(ask.endpoint, []).append(ask)
        later = False
        for name, group in by_endpoint.items():
            try:
                later |= self._answer_endpoint(name, group)
            except KeepwellError as error:
                status = 404 if isinstance(error, NotFound) else 503
                for ask in group:
                    if not ask.status:
                        ask.status, ask.answer = status, encode({"error": str(error)})
        return later

    def _answer_endpoint(self, name: str, group: list[Ask]) -> bool:
        serving = self.endpoints.get(name)
        if serving is None and not self.edition:
            raise Unavailable(f"Nothing is loaded yet. {self.problem}".strip())
        if serving is None:
            raise NotFound(f"There is no endpoint {name!r}.", todo=near_miss(name, self.endpoints))
        if serving.codec is None or not serving.arms:
            raise Unavailable(
                f"The endpoint {name!r} has no version that may answer: "
                f"{serving.edition.refused or 'nothing is deployed'}."
            )
        good: list[Ask] = []
        for ask in group:
            try:
                ask.rows = serving.codec.decode(ask.body)
            except KeepwellError as error:
                ask.status, ask.answer = 422, encode({"error": str(error)})
                self.meters.refused(name)
                continue
            if ask.rows.probe:
                self._probe(serving, ask)
            else:
                good.append(ask)
        if not good:
            return False
        try:
            records = self._decide(serving, good)
        except Unavailable:
            if len(good) == 1:
                raise
            # What one caller sent must not fail the others of this tick: each is tried alone.
            return self._one_by_one(serving, good)
        return self._finish(serving, good, records)

    def _one_by_one(self, serving: Serving, asks: list[Ask]) -> bool:
        later = False
        for ask in asks:
            try:
                later |= self._finish(serving, [ask], self._decide(serving, [ask]))
            except Unavailable as error:
                ask.status, ask.answer = 503, encode({"error": str(error)})
        return later

    def _finish(self, serving: Serving, good: list[Ask], records: list[Prediction]) -> bool:
        """Log, commit, answer: in this order."""
        self._writer.append(predictions=records)
        if serving.edition.log == "sync":
            self._writer.sync()
        self._reply(serving, good, records)
        if serving.mirrors:
            self._shadows.append((serving, good))
        return serving.edition.log != "sync"

    def _probe(self, serving: Serving, ask: Ask) -> None:
        assert ask.rows is not None
        for loaded in (*serving.arms, *serving.mirrors):
            if loaded.arm.version == ask.rows.probe:
                try:
                    values = _outputs(loaded, ask.rows.matrix)
                except Exception as error:  # noqa: BLE001
                    # A probed challenger's failure is its own.
                    ask.status = 503
                    ask.answer = encode({"error": f"{type(error).__name__}: {error}"[:300]})
                    return
                ask.status = 200
                ask.answer = encode(
                    {
                        "predictions": [
                            {"prediction": v, "version": loaded.arm.version} for v in values
                        ]
                    }
                )
                return
        ask.status = 409
        ask.answer = encode({"error": f"Version {ask.rows.probe} is not loaded here."})

    def _decide(self, serving: Serving, asks: list[Ask]) -> list[Prediction]:
        arms = tuple(loaded.arm for loaded in serving.arms)
        arrived = time.time_ns() // 1000
        salt = serving.edition.salt
        owners: list[tuple[Ask, int, str, str, int]] = []
        for ask in asks:
            assert ask.rows is not None
            ask.ids = []
            for i in range(len(ask.rows.features)):
                identity = ask.rows.ids[i] if ask.rows.ids else self._new_id(arrived)
                ask.ids.append(identity)
                unit = (ask.rows.units[i] if ask.rows.units else "") or identity
                position = 0 if len(arms) == 1 else choose(bucket_of(unit, salt), arms)
                owners.append((ask, i, identity, unit, position))
        matrix = np.concatenate([ask.rows.matrix for ask in asks if ask.rows is not None])
        outputs, answered_by, statuses, errors = self._predict(serving, matrix, owners)
        records: list[Prediction] = []
        now = time.perf_counter()
        for k, (ask, i, identity, unit, position) in enumerate(owners):
            assert ask.rows is not None
            arm = arms[answered_by[k]]
            records.append(
                Prediction(
                    id=identity,
                    time=ask.rows.times[i] if ask.rows.times else arrived,
                    arrived=arrived,
                    endpoint=serving.edition.name,
                    unit=unit,
                    arms=serving.names,
                    arm=arm.name,
                    propensity=arms[position].weight / BUCKETS,
                    mirror=False,
                    plan=serving.edition.plan,
                    version=arm.version,
                    artefact=arm.artefact,
                    features=ask.rows.features[i],
                    output=outputs[k],
                    latency=int((now - ask.began) * 1e6),
                    status=statuses[k],
                    error=errors[k],
                )
            )
        return records

    def _predict(
        self,
        serving: Serving,
        matrix: npt.NDArray[Any],
        owners: list[tuple[Ask, int, str, str, int]],
    ) -> tuple[list[Any], list[int], list[Status], list[str]]:
        """Run one model call an arm; where an arm fails, the fallback answers and both facts are recorded."""
        n = len(owners)
        outputs: list[Any] = [None] * n
        answered_by = [owner[4] for owner in owners]
        statuses: list[Status] = ["ok"] * n
        errors = [""] * n
        fallback = self._fallback(serving)
        for position, loaded in enumerate(serving.arms):
            rows = [k for k in range(n) if owners[k][4] == position]
            if not rows:
                continue
            part = matrix if len(rows) == n else matrix[rows]
            try:
                values = _outputs(loaded, part)
            except Exception as error:
                # The model is the user's code; whatever it raises must not end the worker.
                said = f"{type(error).__name__}: {error}"[:300]
                if fallback is None or fallback == position:
                    raise Unavailable(
                        f"The model of {loaded.arm.model}/{loaded.arm.version} failed: {said}."
                    ) from error
                try:
                    values = _outputs(serving.arms[fallback], part)
                except Exception as second:
                    raise Unavailable(
                        f"The model failed ({said}), and so did the fallback: {second}."
                    ) from second
                for k in rows:
                    answered_by[k], statuses[k], errors[k] = fallback, "fallback", said
            for k, value in zip(rows, values, strict=True):
                outputs[k] = value
        return outputs, answered_by, statuses, errors

    @staticmethod
    def _fallback(serving: Serving) -> int | None:
        for position, loaded in enumerate(serving.arms):
            if loaded.arm.name == serving.edition.fallback:
                return position
        return None

    def _reply(self, serving: Serving, asks: list[Ask], records: list[Prediction]) -> None:
        plan = serving.edition.plan
        k = 0
        for ask in asks:
            n = len(ask.ids)
            ask.answer = encode(
                {
                    "predictions": [
                        {
                            "id": r.id,
                            "prediction": r.output,
                            "version": r.version,
                            "plan": plan,
                            "arm": r.arm,
                        }
                        for r in records[k : k + n]
                    ]
                }
            )
            ask.status = 200
            for r in records[k : k + n]:
                self.meters.answered(serving.edition.name, r.arm, r.version, r.latency, r.status)
            k += n

    def shadow(self) -> bool:
        """Compute and log what the mirrors would have said to requests that are answered; True if there was any."""
        work, self._shadows = self._shadows, []
        records: list[Prediction] = []
        for serving, asks in work:
            matrix = np.concatenate([ask.rows.matrix for ask in asks if ask.rows is not None])
            for loaded in serving.mirrors:
                records += self._shadow_one(serving, loaded, asks, matrix)
        if records:
            try:
                self._writer.append(predictions=records)
            except Unavailable:
                self.meters.dropped += len(
                    records
                )  # a shadow is a measurement: losing it loses no answer
        return bool(work)

    def _shadow_one(
        self, serving: Serving, loaded: Loaded, asks: list[Ask], matrix: npt.NDArray[Any]
    ) -> list[Prediction]:
        began = time.perf_counter()
        status: Status = "ok"
        said = ""
        try:
            outputs = _outputs(loaded, matrix)
        except Exception as error:  # noqa: BLE001
            # As above: a challenger's failure is recorded, and harms nobody.
            outputs = [None] * len(matrix)
            status, said = "error", f"{type(error).__name__}: {error}"[:300]
        latency = int((time.perf_counter() - began) * 1e6)
        arrived = time.time_ns() // 1000
        records = []
        k = 0
        for ask in asks:
            assert ask.rows is not None
            for i, identity in enumerate(ask.ids):
                records.append(
                    Prediction(
                        id=identity,
                        time=ask.rows.times[i] if ask.rows.times else arrived,
                        arrived=arrived,
                        endpoint=serving.edition.name,
                        unit=(ask.rows.units[i] if ask.rows.units else "") or identity,
                        arms=serving.names,
                        arm=loaded.arm.name,
                        propensity=0.0,
                        mirror=True,
                        plan=serving.edition.plan,
                        version=loaded.arm.version,
                        artefact=loaded.arm.artefact,
                        features=(),
                        output=outputs[k],
                        latency=latency,
                        status=status,
                        error=said,
                    )
                )
                k += 1
        return records

    def outcomes(self, given: Sequence[Outcome]) -> None:
        """Log outcomes, durable on return. Raises Unavailable."""
        self._writer.append(outcomes=given)

    def sync(self) -> None:
        """Bring the log to the disk. Raises Unavailable."""
        self._writer.sync()

    def _new_id(self, now: int) -> str:
        self._counter += 1
        return f"{now:x}-{self._worker}-{self._counter:x}"


def _outputs(loaded: Loaded, matrix: npt.NDArray[Any]) -> list[Any]:
    """Run a model and see that it gave one value a row."""
    values: list[Any] = loaded.predictor.predict(matrix).tolist()
    if len(values) != len(matrix):
        raise ValueError(f"it gave {len(values)} values for {len(matrix)} rows")
    return values


def worker_name(number: int) -> str:
    """Name a worker so that no two processes ever share a name."""
    return f"w{number}p{os.getpid()}"
