"""A batch: the decisions of one tick and endpoint as columns, written once to the log and expanded by its readers.

What the rows share (endpoint, plan, arms, artefacts) stands once; what differs is packed. A record a row would
cost more time than the model: :func:`Batch.expand` makes the ``Prediction`` records where somebody reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.clock import Time
from keepwell.core.records.predictions import Prediction, Status
from keepwell.core.records.traffic import BUCKETS

Places = npt.NDArray[np.intp]
STATUSES: tuple[Status, ...] = ("ok", "fallback", "error", "refused")
OK, FALLBACK, ERROR, REFUSED = range(len(STATUSES))
"""Places in ``STATUSES``."""


class Answerer(msgspec.Struct, frozen=True, array_like=True):
    """One arm as the rows of a batch name it, by its place."""

    arm: str
    version: int
    artefact: str
    weight: int
    """Of an arm, how many buckets it has; of a mirror, how many it sees."""
    cohort: str = ""
    """Which cohort the arm answers here, whatever the buckets say."""
    out_of: int = BUCKETS
    """What ``weight`` is out of: more than 10,000 where the arms part only what a holdout leaves."""


class Batch(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Columns of n decisions. An empty column says that all rows have what stands behind its name."""

    endpoint: str
    plan: int
    arms: tuple[str, ...]
    answerers: tuple[Answerer, ...]
    arrived: Time
    mirror: bool
    rows: int
    prefix: str
    """Ids that the gateway made are this and a running number, hexadecimal, from ``first``."""
    first: int
    ids: Sequence[str] = ()
    """Empty: all were made by the gateway."""
    times: Sequence[Time] = ()
    """Empty: the time of arrival."""
    units: Sequence[str] = ()
    """Empty text, or no column: the id."""
    chosen: bytes = b""
    """Place of the arm that was chosen, little-endian uint16 a row; empty: the first."""
    answered: bytes = b""
    """Place of the arm that answered; empty: the one that was chosen."""
    features: Sequence[Sequence[Any]] = ()
    matrix: bytes = b""
    """Instead of ``features``: numbers only, row by row, NaN where a value was missing."""
    kind: str = "<f8"
    """Type of the numbers in ``matrix``."""
    outputs: bytes = b""
    """Little-endian float64, ``classes`` a row, or one a row where ``classes`` is 0."""
    classes: int = 0
    latencies: bytes = b""
    """Microseconds, little-endian uint32 a row, or one for all."""
    statuses: bytes = b""
    """Places in ``STATUSES``, a byte a row; empty: ok."""
    errors: dict[int, str] = {}
    """By row."""
    propensities: bytes = b""
    """Little-endian float64 a row; empty: the weight of the arm that was chosen."""
    share: float = 1.0
    """Probability with which a row was written down."""

    def take(self, places: Places, *, share: float = 1.0) -> Batch:
        """Give a batch of some of the rows, in this order."""
        kept = places.tolist()

        def some(column: Sequence[Any]) -> Sequence[Any]:
            return [column[k] for k in kept] if column else column

        def packed(column: bytes, kind: str, width: int = 1) -> bytes:
            rows = np.frombuffer(column, dtype=kind)
            return rows.reshape(-1, width)[places].tobytes() if len(rows) > 1 else column

        width = len(self.matrix) // (np.dtype(self.kind).itemsize * self.rows)
        return msgspec.structs.replace(
            self,
            rows=len(kept),
            ids=some(self.ids) or [f"{self.prefix}{self.first + k:x}" for k in kept],
            times=some(self.times),
            units=some(self.units),
            chosen=packed(self.chosen, "<u2"),
            answered=packed(self.answered, "<u2"),
            features=some(self.features),
            matrix=packed(self.matrix, self.kind, width),
            outputs=packed(self.outputs, "<f8", self.classes or 1),
            latencies=packed(self.latencies, "<u4"),
            statuses=bytes(some(self.statuses)),
            errors={k: self.errors[place] for k, place in enumerate(kept) if place in self.errors},
            propensities=packed(self.propensities, "<f8"),
            share=share,
        )

    def identities(self, start: int = 0, stop: int | None = None) -> list[str]:
        """List the decision ids of rows ``start`` to ``stop``."""
        stop = self.rows if stop is None else stop
        if self.ids:
            return list(self.ids[start:stop])
        return [f"{self.prefix}{self.first + i:x}" for i in range(start, stop)]

    def values(self) -> npt.NDArray[np.float64]:
        """Give the answers, shape (n,) or (n, classes); NaN where there was none."""
        flat = np.frombuffer(self.outputs, dtype="<f8")
        return flat.reshape(self.rows, self.classes) if self.classes else flat

    def expand(self, start: int = 0, stop: int | None = None) -> list[Prediction]:
        """Make the records of rows ``start`` to ``stop``."""
        stop = self.rows if stop is None else stop
        n = stop - start
        ids = self.identities(start, stop)
        times = self.times[start:stop] or [self.arrived] * n
        units = [unit or i for unit, i in zip(self.units[start:stop] or [""] * n, ids, strict=True)]
        chosen = _places(self.chosen, start, stop) or [0] * n
        answered = _places(self.answered, start, stop) or chosen
        latencies = np.frombuffer(self.latencies, dtype="<u4")
        spent = (
            latencies[start:stop] if len(latencies) == self.rows else latencies.repeat(n)
        ).tolist()
        statuses = self.statuses[start:stop] or bytes(n)
        outputs: list[Any] = self.values()[start:stop].tolist() if self.outputs else [None] * n
        features = self._features(start, stop)
        propensities = (
            np.frombuffer(self.propensities, dtype="<f8")[start:stop].tolist()
            if self.propensities
            else [self.answerers[k].weight / self.answerers[k].out_of for k in chosen]
        )
        made = []
        for k in range(n):
            by, asked = self.answerers[answered[k]], self.answerers[chosen[k]]
            made.append(
                Prediction(
                    id=ids[k],
                    time=times[k],
                    arrived=self.arrived,
                    endpoint=self.endpoint,
                    unit=units[k],
                    arms=self.arms,
                    arm=by.arm,
                    propensity=propensities[k],
                    mirror=self.mirror,
                    plan=self.plan,
                    version=by.version,
                    artefact=by.artefact,
                    features=features[k],
                    output=None if statuses[k] == ERROR else outputs[k],
                    latency=spent[k],
                    status=STATUSES[statuses[k]],
                    error=self.errors.get(start + k, ""),
                    cohort=asked.cohort,
                    chosen="" if asked.arm == by.arm else asked.arm,
                    share=self.share,
                )
            )
        return made

    def _features(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        if self.features:
            return [tuple(row) for row in self.features[start:stop]]
        if not self.matrix:
            return [()] * (stop - start)
        numbers = np.frombuffer(self.matrix, dtype=self.kind).reshape(self.rows, -1)[start:stop]
        missing = np.isnan(numbers)
        if not missing.any():
            return [tuple(row) for row in numbers.tolist()]
        with np.errstate(invalid="ignore"):  # NaN has bit patterns that set the processor's flag
            whole = numbers.astype(np.float64).astype(object)
        whole[missing] = None
        return [tuple(row) for row in whole.tolist()]


def _places(packed: bytes, start: int, stop: int) -> list[int]:
    places: list[int] = np.frombuffer(packed, dtype="<u2")[start:stop].tolist()
    return places


class Answers(Sequence[Prediction]):
    """The rows of one request in a batch: as columns for those in a hurry, as records for the others."""

    __slots__ = ("_made", "batch", "outputs", "start", "stop")

    def __init__(
        self, batch: Batch, outputs: npt.NDArray[np.float64], start: int, stop: int
    ) -> None:
        self.batch = batch
        self.outputs = outputs
        """This request's answers, shape (n,) or (n, classes)."""
        self.start = start
        self.stop = stop
        self._made: list[Prediction] | None = None

    @property
    def ids(self) -> list[str]:
        """List the decision ids."""
        return self.batch.identities(self.start, self.stop)

    @property
    def alone(self) -> Answerer | None:
        """Give the arm that answered all rows of the batch; None where that is not known at once."""
        batch = self.batch
        return None if batch.answered or batch.chosen else batch.answerers[0]

    @property
    def answerers(self) -> list[Answerer]:
        """List which arm answered each row."""
        batch = self.batch
        places = _places(batch.answered or batch.chosen, self.start, self.stop)
        return (
            [batch.answerers[place] for place in places]
            if places
            else [batch.answerers[0]] * len(self)
        )

    def _records(self) -> list[Prediction]:
        if self._made is None:
            self._made = self.batch.expand(self.start, self.stop)
        return self._made

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, place: int | slice) -> Prediction | Sequence[Prediction]:
        return self._records()[place]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._records())
