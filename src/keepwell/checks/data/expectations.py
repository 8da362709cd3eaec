"""Data tests inferred from a table: what its columns were, so that the next one can be held against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from keepwell.core.records.base import Value
from keepwell.core.records.data import Column
from keepwell.core.records.evidence import CheckResult

NULL_SHARE_SLACK = 0.10
"""How much larger the share of missing values may become: seasons move it by a few points, a broken feed by all."""
ROW_RATE_FACTOR = 2.0
"""How many times fewer rows a day may come before it counts as loss."""
MEDIAN_SPREADS = 5.0
"""How many interquartile ranges a median may move. Weather changes by one or two over a year; units change by more."""


class ColumnExpectation(Value, frozen=True, kw_only=True):
    """What a column was: type, share of missing values, quartiles, categories."""

    name: str
    dtype: str
    null_share: float
    quartiles: tuple[float, float, float] | None = None
    constant: bool = False
    categories: tuple[str, ...] = ()


class Expectations(Value, frozen=True, kw_only=True):
    """What a table was."""

    rows: int
    key: tuple[str, ...]
    columns: tuple[ColumnExpectation, ...]


def infer_expectations(
    columns: Sequence[Column], *, rows: pl.DataFrame, key: Sequence[str] = ()
) -> Expectations:
    """Infer the tests from a table. ``columns`` describes ``rows``; see ``keepwell.data.frames``."""
    return Expectations(
        rows=rows.height,
        key=tuple(key),
        columns=tuple(_infer(column, rows.get_column(column.name)) for column in columns),
    )


def _numbers(series: pl.Series) -> np.ndarray:
    values = series.cast(pl.Float64).drop_nulls().to_numpy()
    return np.asarray(values[np.isfinite(values)])


def _null_share(series: pl.Series) -> float:
    if series.is_empty():
        return 0.0
    missing = series.null_count()
    if series.dtype.is_float():
        missing += int(series.drop_nulls().is_nan().sum())
    return missing / len(series)


def _infer(column: Column, series: pl.Series) -> ColumnExpectation:
    quartiles: tuple[float, float, float] | None = None
    if column.dtype in {"float64", "int64"}:
        values = _numbers(series)
        if len(values):
            low, middle, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
            quartiles = (low, middle, high)
    return ColumnExpectation(
        name=column.name,
        dtype=column.dtype,
        null_share=_null_share(series),
        quartiles=quartiles,
        constant=series.drop_nulls().n_unique() <= 1,
        categories=column.categories,
    )


def check_frame(found: Expectations, expected: Expectations) -> tuple[CheckResult, ...]:
    """Hold what a newer table is against what an older one was: columns, missing values, places of the values.

    Built to catch broken data (a column gone, another unit, a dead feed) and to let seasons pass.
    """
    have = {column.name: column for column in found.columns}
    gone = [column.name for column in expected.columns if column.name not in have]
    retyped = [
        f"{column.name} ({column.dtype} -> {have[column.name].dtype})"
        for column in expected.columns
        if column.name in have and have[column.name].dtype != column.dtype
    ]
    emptied, moved, frozen = [], [], []
    for before in expected.columns:
        now = have.get(before.name)
        if now is None or now.dtype != before.dtype:
            continue
        if now.null_share > before.null_share + NULL_SHARE_SLACK:
            emptied.append(f"{now.name} ({before.null_share:.0%} -> {now.null_share:.0%} missing)")
        if now.constant and not before.constant:
            frozen.append(now.name)
        if before.quartiles and now.quartiles:
            spread = max(before.quartiles[2] - before.quartiles[0], 1e-12)
            shift = abs(now.quartiles[1] - before.quartiles[1]) / spread
            if before.dtype == "float64" and shift > MEDIAN_SPREADS:
                moved.append(f"{now.name} (median {before.quartiles[1]:g} -> {now.quartiles[1]:g})")
    return (
        _result(
            "columns", [*(f"{name} is gone" for name in gone), *retyped], "all columns are there"
        ),
        _result("missing values", emptied, "no column lost its values"),
        _result("constant columns", frozen, "no column froze"),
        _result("values in place", moved, "no column changed its scale"),
    )


def _result(check: str, problems: list[str], good: str) -> CheckResult:
    return CheckResult(
        check=check,
        verdict="fail" if problems else "pass",
        message="; ".join(problems) if problems else good,
        measured={"problems": len(problems)},
        limits={"problems": 0},
    )
