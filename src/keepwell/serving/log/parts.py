"""Log records as Parquet and back: typed columns, from which the very records can be made again.

Beside its fields a row has its place in the log: the segment, the byte at which its frame ended there, and its number
in the frame. Features are columns ``f0``, ``f1``, ... in the order of the signature, ``width`` of them in a row. A
column has the type that all its values share (whole numbers among decimals become decimals); where they share none,
it is MessagePack.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from keepwell.core.errors import Corrupt
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log.manifest import Part

EXACT = 2**53
"""Whole numbers up to this are the same as float64."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_FIELDS: dict[str, Any] = {
    "id": pl.String, "time": pl.Int64, "arrived": pl.Int64, "unit": pl.String, "arms": pl.List(pl.String),
    "arm": pl.String, "propensity": pl.Float64, "mirror": pl.Boolean, "plan": pl.Int64, "version": pl.Int64,
    "artefact": pl.String, "latency": pl.Int64, "status": pl.String, "error": pl.String,
    "cohort": pl.String, "chosen": pl.String, "share": pl.Float64,
}  # fmt: skip
_OUTCOME: dict[str, Any] = {
    "id": pl.String,
    "time": pl.Int64,
    "value": pl.Float64,
    "arrived": pl.Int64,
}
PLACE: dict[str, Any] = {"segment": pl.String, "end": pl.Int64, "row": pl.Int64}


class Place(NamedTuple):
    """Where a record stood in the log."""

    segment: str
    end: int
    row: int


def prediction_table(places: Sequence[Place], records: Sequence[Prediction]) -> pl.DataFrame:
    """Make a table of predictions of one endpoint, a row each."""
    columns = _placed(places) + _fields(records, Prediction, _FIELDS)
    columns.append(column_of("output", [r.output for r in records]))
    widths = [len(r.features) for r in records]
    columns.append(pl.Series("width", widths, dtype=pl.Int32))
    most = max(widths, default=0)
    if all(width == most for width in widths):
        rows: Sequence[Sequence[Any]] = [r.features for r in records]
    else:
        rows = [(*r.features, *[None] * (most - len(r.features))) for r in records]
    columns += [
        column_of(f"f{i}", list(values)) for i, values in enumerate(zip(*rows, strict=True))
    ]
    return pl.DataFrame(columns)


def outcome_table(places: Sequence[Place], records: Sequence[Outcome]) -> pl.DataFrame:
    """Make a table of outcomes of one endpoint, a row each."""
    return pl.DataFrame(_placed(places) + _fields(records, Outcome, _OUTCOME))


def _placed(places: Sequence[Place]) -> list[pl.Series]:
    columns = zip(*places, strict=True) if places else ([] for _ in PLACE)
    return [
        pl.Series(name, values, dtype=dtype)
        for (name, dtype), values in zip(PLACE.items(), columns, strict=True)
    ]


def _fields(
    records: Sequence[msgspec.Struct], kind: type[msgspec.Struct], wanted: dict[str, Any]
) -> list[pl.Series]:
    names = kind.__struct_fields__
    rows = zip(*map(msgspec.structs.astuple, records), strict=True)
    values = dict(zip(names, rows, strict=True)) if records else dict.fromkeys(names, ())
    return [_field(name, values[name], dtype) for name, dtype in wanted.items()]


def _field(name: str, values: Sequence[Any], dtype: Any) -> pl.Series:
    if not isinstance(dtype, pl.List):
        return pl.Series(name, values, dtype=dtype)
    # Lists are slow to convert one by one, and there are few that differ.
    different = {value: place for place, value in enumerate(dict.fromkeys(values))}
    lists = pl.Series(name, [list(value) for value in different], dtype=dtype)
    return lists.gather([different[value] for value in values])


def column_of(name: str, values: Sequence[Any]) -> pl.Series:
    """Make a column of the narrowest type that keeps every value."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {float}:
        return pl.Series(name, values, dtype=pl.Float64)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds == {str}:
        return pl.Series(name, values, dtype=pl.String)
    if kinds == {int} and all(-(2**63) <= v < 2**63 for v in values if v is not None):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds == {int, float} and all(abs(v) <= EXACT for v in values if type(v) is int):
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    if kinds == {list} and all(set(map(type, v)) <= {float} for v in values if v is not None):
        return pl.Series(name, values, dtype=pl.List(pl.Float64))
    return _packed(name, values)


def _packed(name: str, values: Iterable[Any]) -> pl.Series:
    return pl.Series(name, [None if v is None else _encode(v) for v in values], dtype=pl.Binary)


def values_of(column: pl.Series) -> list[Any]:
    """Give the values of a column as they were."""
    if column.dtype == pl.Binary:
        return [None if v is None else _decode(v) for v in column.to_list()]
    return column.to_list()


def stack(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Put tables of one kind under one another; columns whose types differ become one that keeps both."""
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    dtypes = {name: _shared(name, tables) for name in names}
    return pl.concat(
        [table.select(_cast(table, name, dtypes[name]) for name in names) for table in tables]
    )


def _shared(name: str, tables: Sequence[pl.DataFrame]) -> Any:
    given = [table.get_column(name) for table in tables if name in table.columns]
    found = [column for column in given if column.null_count() < len(column)]
    dtypes = {column.dtype for column in found or given[:1]}
    if len(dtypes) == 1:
        return dtypes.pop()
    if dtypes == {pl.Int64, pl.Float64}:
        exact = all(
            column.is_between(-EXACT, EXACT).all() for column in found if column.dtype == pl.Int64
        )
        return pl.Float64 if exact else pl.Binary
    return pl.Binary


def _cast(table: pl.DataFrame, name: str, dtype: Any) -> pl.Series:
    if name not in table.columns:
        return pl.Series(name, [None] * len(table), dtype=dtype)
    column = table.get_column(name)
    if column.dtype == dtype:
        return column
    if column.null_count() == len(column):
        return pl.Series(name, [None] * len(table), dtype=dtype)
    return _packed(name, column.to_list()) if dtype == pl.Binary else column.cast(dtype)


def parquet_of(table: pl.DataFrame) -> bytes:
    """Write a table, and compare what is read back, because its segments will be removed. Raises Corrupt."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", compression_level=3, row_group_size=100_000)
    content = buffer.getvalue()
    if not pl.read_parquet(io.BytesIO(content)).equals(table):
        raise Corrupt(
            "A table came back from Parquet other than it went in.",
            todo="The segments stay as they are; report it, with one of them.",
        )
    return content


def read_places(folder: Path, parts: Iterable[Part], segment: str, start: int) -> list[int]:
    """List, in order, the ends of frames after ``start`` in a compacted segment, once for each of their records."""
    ends: list[int] = []
    for part in parts:
        found = _of(folder, part, segment).filter(pl.col("end") > start).select("end").collect()
        ends += found.get_column("end").to_list()
    return sorted(ends)


def read_records(
    folder: Path, parts: Iterable[Part], segment: str, start: int, end: int
) -> tuple[list[Prediction], list[Outcome]]:
    """Give the records of a compacted segment whose frames ended after ``start`` and not after ``end``, in order."""
    predictions: list[tuple[int, int, Prediction]] = []
    outcomes: list[tuple[int, int, Outcome]] = []
    between = (pl.col("end") > start) & (pl.col("end") <= end)
    for part in parts:
        table = _of(folder, part, segment).filter(between).collect()
        order = table.select("end", "row").rows()
        if part.kind == "predictions":
            for (at, row), made in zip(order, predictions_of(table, part.endpoint), strict=True):
                predictions.append((at, row, made))
        else:
            for (at, row), known in zip(order, outcomes_of(table, part.endpoint), strict=True):
                outcomes.append((at, row, known))
    predictions.sort(key=lambda found: found[:2])
    outcomes.sort(key=lambda found: found[:2])
    return [found[2] for found in predictions], [found[2] for found in outcomes]


def read_table(
    folder: Path, parts: Iterable[Part], segment: str, start: int, end: int
) -> pl.DataFrame | None:
    """Give the predictions of a compacted segment between two bytes as one table, in order; None without parts."""
    between = (pl.col("end") > start) & (pl.col("end") <= end)
    found = [
        renewed(_of(folder, part, segment).filter(between).collect())
        for part in parts
        if part.kind == "predictions"
    ]
    return stack(found).sort("end", "row") if found else None


def _of(folder: Path, part: Part, segment: str) -> pl.LazyFrame:
    found = pl.scan_parquet(folder / part.path, hive_partitioning=False)
    return found.filter(pl.col("segment") == segment)


def renewed(table: pl.DataFrame) -> pl.DataFrame:
    """Give a table of predictions that an earlier version may have written the columns that came since."""
    since = {"cohort": "", "chosen": "", "share": 1.0}
    return table.with_columns(
        pl.lit(value).alias(name) for name, value in since.items() if name not in table.columns
    )


def predictions_of(table: pl.DataFrame, endpoint: str) -> list[Prediction]:
    """Make the records of a table of predictions."""
    table = renewed(table)
    fields = {name: table.get_column(name).to_list() for name in _FIELDS}
    outputs = values_of(table.get_column("output"))
    widths = table.get_column("width").to_list()
    cells = [values_of(table.get_column(n)) for n in table.columns if is_feature(n)]
    rows = zip(*cells, strict=True) if cells else iter([()] * len(table))
    made = []
    for output, width, row, *values in zip(outputs, widths, rows, *fields.values(), strict=True):
        named = dict(zip(fields, values, strict=True))
        named["arms"] = tuple(named["arms"])
        made.append(Prediction(endpoint=endpoint, output=output, features=row[:width], **named))
    return made


def outcomes_of(table: pl.DataFrame, endpoint: str) -> list[Outcome]:
    """Make the records of a table of outcomes."""
    return [
        Outcome(endpoint=endpoint, **row) for row in table.select(*_OUTCOME).iter_rows(named=True)
    ]


def is_feature(name: str) -> bool:
    """Tell the columns of features from the others."""
    return name[0] == "f" and name[1:].isdigit()
