"""Columns of logged answers, for readers who count: made of batches and tables as they are, without a record a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.ports.predictionlog import PredictionLog
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log.batches import ERROR, STATUSES, Batch

if TYPE_CHECKING:
    import polars as pl

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NAN = np.array([np.nan], dtype="<f8").tobytes()
_PLACES = {status: place for place, status in enumerate(STATUSES)}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which answers are read, and which of their features."""

    endpoint: str
    since_plan: int = 0
    """Revision of the first traffic plan whose answers count."""
    fields: tuple[int, ...] = ()
    """Places of features, as numbers."""
    group: int | None = None
    """Place of a feature whose values are kept as they were."""


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """n answers in the order in which they were logged."""

    ids: Sequence[str]
    units: Sequence[str]
    time: Ints
    arrived: Ints
    names: tuple[str, ...]
    """Arms; ``arm`` and ``by`` are places in here, and each of them is named by a row."""
    arm: Ints
    """The arm that was assigned."""
    by: Ints
    """The arm that answered."""
    plan: Ints
    status: Ints
    """Places in ``keepwell.serving.log.batches.STATUSES``."""
    mirror: Bools
    placed: Bools
    """A cohort sent it there."""
    propensity: Floats
    latency: Floats
    """Microseconds."""
    output: Floats
    """NaN where there was no number."""
    features: Floats
    """Shape (n, fields); NaN where missing or no number."""
    group: Sequence[Any]
    """Values of the feature that groups; empty where none was asked for."""

    def __len__(self) -> int:
        return len(self.time)


class ColumnBatch(msgspec.Struct, frozen=True):
    """What was appended since a cursor, whole frames only, and the cursor to go on from."""

    parts: tuple[Columns, ...]
    outcomes: tuple[Outcome, ...]
    cursor: dict[str, int]
    torn: tuple[str, ...] = ()


class AnswerLog(PredictionLog, Protocol):
    """A prediction log that gives the answers of one endpoint as columns too."""

    def read_columns(
        self,
        cursor: Mapping[str, int],
        *,
        wanted: Wanted,
        limit: int = 200_000,
        until: Mapping[str, int] | None = None,
    ) -> ColumnBatch:
        """Give what ``read`` would, of one endpoint: its answers as columns, and its outcomes."""
        ...


def columns_of_records(records: Sequence[Prediction], wanted: Wanted) -> Columns:
    """Make columns of records, those that are wanted."""
    kept = [r for r in records if r.endpoint == wanted.endpoint and r.plan >= wanted.since_plan]
    asked = [r.chosen or r.arm for r in kept]
    by = [r.arm for r in kept]
    names, arm, answered = _named(asked, by)
    return Columns(
        ids=[r.id for r in kept],
        units=[r.unit for r in kept],
        time=np.array([r.time for r in kept], dtype=np.int64),
        arrived=np.array([r.arrived for r in kept], dtype=np.int64),
        names=names,
        arm=arm,
        by=answered,
        plan=np.array([r.plan for r in kept], dtype=np.int64),
        status=np.array([_PLACES[r.status] for r in kept], dtype=np.int64),
        mirror=np.array([r.mirror for r in kept], dtype=np.bool_),
        placed=np.array([bool(r.cohort) for r in kept], dtype=np.bool_),
        propensity=np.array([r.propensity for r in kept], dtype=np.float64),
        latency=np.array([r.latency for r in kept], dtype=np.float64),
        output=_numbers([r.output for r in kept]),
        features=_of_rows([r.features for r in kept], wanted.fields),
        group=[_cell(r.features, wanted.group) for r in kept] if wanted.group is not None else [],
    )


def columns_of_batches(batches: Iterable[Batch], wanted: Wanted) -> Columns:
    """Make columns of batches, those that are wanted; the same as of their records."""
    kept = [b for b in batches if b.endpoint == wanted.endpoint and b.plan >= wanted.since_plan]
    rows = np.array([b.rows for b in kept], dtype=np.int64)
    ids: list[str] = []
    units: list[str] = []
    times: list[int] = []
    chosen, answered, statuses, outputs, latencies, chances = [], [], [], [], [], []
    for b in kept:
        n = b.rows
        own = b.identities()
        ids += own
        units += [u or i for u, i in zip(b.units, own, strict=True)] if b.units else own
        times += b.times or [b.arrived] * n
        chosen.append(b.chosen or bytes(2 * n))
        answered.append(b.answered or chosen[-1])
        statuses.append(b.statuses or bytes(n))
        outputs.append(b.outputs if b.outputs and not b.classes else _NAN * n)
        latencies.append(b.latencies if len(b.latencies) == 4 * n else b.latencies * n)
        # Marked where the weights tell it.
        chances.append(b.propensities or _NAN * n)
    # Places of answerers within a batch become places among those of all batches.
    offsets = np.cumsum([0, *[len(b.answerers) for b in kept]])[:-1]
    base = np.repeat(offsets, rows)
    everyone = [each for b in kept for each in b.answerers]
    asked = base + np.frombuffer(b"".join(chosen), dtype="<u2")
    by = base + np.frombuffer(b"".join(answered), dtype="<u2")
    weights = np.array([each.weight / each.out_of for each in everyone], dtype=np.float64)
    cohorts = np.array([bool(each.cohort) for each in everyone], dtype=np.bool_)
    propensity = np.frombuffer(b"".join(chances), dtype="<f8").astype(np.float64)
    by_weight = np.repeat(np.array([not b.propensities for b in kept], dtype=np.bool_), rows)
    propensity[by_weight] = weights[asked[by_weight]]
    status = np.frombuffer(b"".join(statuses), dtype=np.uint8).astype(np.int64)
    output = np.frombuffer(b"".join(outputs), dtype="<f8").astype(np.float64)
    output[status == ERROR] = np.nan
    used = np.union1d(asked, by)
    names, places = np.unique(
        np.array([everyone[place].arm for place in used.tolist()], dtype=object),
        return_inverse=True,
    )
    table = np.zeros(len(everyone), dtype=np.int64)
    table[used] = places
    return Columns(
        ids=ids,
        units=units,
        time=np.array(times, dtype=np.int64),
        arrived=np.repeat(np.array([b.arrived for b in kept], dtype=np.int64), rows),
        names=tuple(names.tolist()),
        arm=table[asked],
        by=table[by],
        plan=np.repeat(np.array([b.plan for b in kept], dtype=np.int64), rows),
        status=status,
        mirror=np.repeat(np.array([b.mirror for b in kept], dtype=np.bool_), rows),
        placed=cohorts[asked],
        propensity=propensity,
        latency=np.frombuffer(b"".join(latencies), dtype="<u4").astype(np.float64),
        output=output,
        features=np.concatenate(
            [np.zeros((0, len(wanted.fields))), *[_of_batch(b, wanted.fields) for b in kept]]
        ),
        group=[cell for b in kept for cell in _cells(b, wanted.group)]
        if wanted.group is not None
        else [],
    )


def columns_of_table(table: pl.DataFrame, wanted: Wanted) -> Columns:
    """Make columns of a table of the endpoint's predictions (``keepwell.serving.log.parts``), those that are wanted."""
    import polars as pl  # noqa: PLC0415 - a gateway never reads, and starts without polars

    from keepwell.serving.log.parts import values_of  # noqa: PLC0415 - it brings polars

    kept = table.filter(pl.col("plan") >= wanted.since_plan)
    n = len(kept)

    def ints(name: str) -> Ints:
        return kept.get_column(name).cast(pl.Int64).to_numpy().astype(np.int64)

    def numbers(name: str) -> Floats:
        if name not in kept.columns:
            return np.full(n, np.nan)
        column = kept.get_column(name)
        if column.dtype == pl.Boolean or column.dtype.is_numeric():
            return column.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64)
        return _numbers(values_of(column))

    by = kept.get_column("arm").to_list()
    asked = [chosen or arm for chosen, arm in zip(kept.get_column("chosen"), by, strict=True)]
    names, arm, answered = _named(asked, by)
    features = np.zeros((n, len(wanted.fields)))
    for k, place in enumerate(wanted.fields):
        features[:, k] = numbers(f"f{place}")
    group: Sequence[Any] = []
    if wanted.group is not None:
        named = f"f{wanted.group}"
        group = values_of(kept.get_column(named)) if named in kept.columns else [None] * n
    return Columns(
        ids=kept.get_column("id").to_list(),
        units=kept.get_column("unit").to_list(),
        time=ints("time"),
        arrived=ints("arrived"),
        names=names,
        arm=arm,
        by=answered,
        plan=ints("plan"),
        status=np.array([_PLACES[s] for s in kept.get_column("status")], dtype=np.int64),
        mirror=kept.get_column("mirror").to_numpy().astype(np.bool_),
        placed=(kept.get_column("cohort") != "").to_numpy().astype(np.bool_),
        propensity=numbers("propensity"),
        latency=numbers("latency"),
        output=numbers("output"),
        features=features,
        group=group,
    )


def _named(asked: Sequence[str], by: Sequence[str]) -> tuple[tuple[str, ...], Ints, Ints]:
    names = tuple(sorted({*asked, *by}))
    places = {name: k for k, name in enumerate(names)}
    return (
        names,
        np.array([places[name] for name in asked], dtype=np.int64),
        np.array([places[name] for name in by], dtype=np.int64),
    )


def _numbers(values: Iterable[Any]) -> Floats:
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)


def _cell(row: Sequence[Any], place: int) -> Any:
    return row[place] if place < len(row) else None


def _of_rows(rows: Sequence[Sequence[Any]], fields: Sequence[int]) -> Floats:
    made = [_numbers(_cell(row, place) for place in fields) for row in rows] if fields else []
    return np.array(made, dtype=np.float64).reshape(len(rows), len(fields))


def _of_batch(batch: Batch, fields: Sequence[int]) -> Floats:
    if batch.matrix:
        cells = np.frombuffer(batch.matrix, dtype=batch.kind).reshape(batch.rows, -1)
        if all(place < cells.shape[1] for place in fields):
            return cells[:, fields].astype(np.float64)
        return _of_rows(cells.tolist(), fields)
    return _of_rows(batch.features or [()] * batch.rows, fields)


def _cells(batch: Batch, place: int) -> list[Any]:
    if batch.matrix:
        cells = np.frombuffer(batch.matrix, dtype=batch.kind).reshape(batch.rows, -1)
        if place < cells.shape[1]:
            return [None if v != v else v for v in cells[:, place].tolist()]  # noqa: PLR0124 - NaN
        return [None] * batch.rows
    return [_cell(row, place) for row in batch.features or [()] * batch.rows]
