"""Data tests catch broken data and let seasons pass."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from keepwell.checks.data.expectations import check_frame, infer_expectations
from keepwell.core.records.evidence import joint_verdict
from keepwell.data.frames import describe_columns


def table(seed: int = 0, rows: int = 2000) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    temp = draw.normal(15, 8, rows)
    return pl.DataFrame(
        {
            "temp": np.where(draw.random(rows) < 0.03, np.nan, temp),
            "count": draw.integers(0, 50, rows),
            "open": draw.random(rows) < 0.5,
            "shop": draw.choice(["a", "b", "c"], rows),
        }
    )


def expected(frame: pl.DataFrame):
    return infer_expectations(describe_columns(frame), rows=frame)


def failed(now: pl.DataFrame) -> set[str]:
    return {
        result.check
        for result in check_frame(expected(now), expected(table()))
        if result.verdict == "fail"
    }


SMALL = [
    table(1),
    table(2, rows=300),
    table(3).with_columns(pl.col("temp") + 8),
    table(4).with_columns(
        pl.when(pl.int_range(pl.len()) % 20 == 0).then(None).otherwise("temp").alias("temp")
    ),
    table(5).with_columns(pl.lit(1.0).alias("new")),
    table(6).filter(pl.col("shop") != "c"),
]


@pytest.mark.parametrize("now", SMALL)
def test_small_shifts_pass(now):
    results = check_frame(expected(now), expected(table()))
    assert joint_verdict(results) == "pass", [r.message for r in results]


BROKEN = {
    "a column is gone": (lambda f: f.drop("temp"), "columns"),
    "a type changed": (lambda f: f.with_columns(pl.col("count").cast(pl.String)), "columns"),
    "a feed died": (lambda f: f.with_columns(pl.lit(None, dtype=pl.Float64).alias("temp")), "missing values"),
    "half is NaN": (
        lambda f: f.with_columns(pl.when(pl.int_range(pl.len()) % 2 == 0).then(float("nan")).otherwise("temp").alias("temp")),
        "missing values",
    ),
    "a value froze": (lambda f: f.with_columns(pl.lit(7.0).alias("temp")), "constant columns"),
    "a flag froze": (lambda f: f.with_columns(pl.lit(value=True).alias("open")), "constant columns"),
    "another unit": (lambda f: f.with_columns(pl.col("temp") * 1000), "values in place"),
    "kelvin": (lambda f: f.with_columns(pl.col("temp") + 273.15), "values in place"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_is_caught(name):
    breaks, check = BROKEN[name]
    assert check in failed(breaks(table(9))), name


@pytest.mark.parametrize(
    "column",
    [[None, None], [float("nan")] * 2, [float("inf"), 1.0], [1.0, 1.0], [2**62, 1]],
)
def test_awkward_columns_are_described(column):
    frame = pl.DataFrame({"a": column})
    made = expected(
        frame if frame.schema["a"] != pl.Null else frame.with_columns(pl.col("a").cast(pl.Float64))
    )
    assert joint_verdict(check_frame(made, made)) == "pass"
