"""The bridge between polars and the store: columns described, frames as Parquet blobs with stable bytes."""

from __future__ import annotations

import io

import polars as pl

from keepwell.core.digest import Digest
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.ports.blobs import Blobs
from keepwell.core.records.data import Column, Dtype

MAX_CATEGORIES = 200


def keep_frame(frame: pl.DataFrame, *, blobs: Blobs) -> Digest:
    """Keep a frame as a Parquet blob: the same rows and columns in the same order give the same digest."""
    buffer = io.BytesIO()
    frame.rechunk().write_parquet(
        buffer, compression="zstd", compression_level=3, statistics=False, row_group_size=100_000
    )
    return blobs.put(buffer.getvalue())


def read_frame(digest: Digest, *, blobs: Blobs) -> pl.DataFrame:
    """Read a Parquet blob. Raises NotFound, Corrupt."""
    try:
        return pl.read_parquet(io.BytesIO(blobs.get(digest)))
    except pl.exceptions.PolarsError as error:
        raise Corrupt(f"The blob is not a Parquet table: {error}.", where=digest) from error


def microseconds(column: pl.Expr) -> pl.Expr:
    """Turn a datetime column into whole microseconds since 1970; naive times are taken as UTC."""
    return column.dt.epoch("us").cast(pl.Int64)


def dtype_of(dtype: pl.DataType, *, column: str) -> Dtype:
    """Name a polars type by Keepwell's word for it. Raises InvalidInput for one that no table may hold."""
    if dtype.is_float():
        return "float64"
    if dtype.is_integer():
        return "int64"
    if dtype == pl.Boolean:
        return "bool"
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "string"
    if dtype.is_temporal():
        return "datetime"
    raise InvalidInput(
        f"The column {column!r} has the type {dtype}, which is not supported.",
        todo="Turn it into numbers, text, booleans or times.",
    )


def describe_columns(frame: pl.DataFrame) -> tuple[Column, ...]:
    """Describe each column: type, whether values are missing, range or categories."""
    described = []
    for name in frame.columns:
        series = frame.get_column(name)
        dtype = dtype_of(series.dtype, column=name)
        low: float | None = None
        high: float | None = None
        categories: tuple[str, ...] = ()
        nullable = series.null_count() > 0
        if dtype in {"float64", "int64"}:
            numbers = series.cast(pl.Float64).drop_nulls()
            nullable = nullable or bool(numbers.is_nan().any())
            numbers = numbers.filter(numbers.is_finite())
            if len(numbers):
                low, high = float(numbers.min()), float(numbers.max())  # type: ignore[arg-type]
        elif dtype == "string":
            values = series.cast(pl.String).drop_nulls().unique()
            if len(values) <= MAX_CATEGORIES:
                categories = tuple(sorted(values.to_list()))
        described.append(
            Column(
                name=name, dtype=dtype, nullable=nullable, low=low, high=high, categories=categories
            )
        )
    return tuple(described)
