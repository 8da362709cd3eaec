"""Decisions with what came of them: one row each, from segments and Parquet together, for analysis and training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from keepwell.core.clock import DAY, Time
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log.manifest import Kind, Manifest, ManifestFile, is_whole
from keepwell.serving.log.parts import (
    PLACE,
    Place,
    outcome_table,
    prediction_table,
    renewed,
    stack,
    values_of,
)
from keepwell.serving.log.segments import read_frames

REPEAT: Time = 7 * DAY
"""A repeated request is known as such up to this much event time after (or before) the first one."""
EARLY: Time = DAY
"""An outcome known longer than this before its decision has a broken clock behind it, and does not count."""
CHUNK = 50_000
_json = msgspec.json.Encoder().encode


def read_decisions(
    folder: Path,
    endpoint: str,
    since: Time,
    until: Time,
    *,
    expires: Time | None = None,
    default: float | None = None,
    now: Time | None = None,
) -> pl.DataFrame:
    """Give the decisions of an endpoint with ``since <= time < until``, a row each, in the order of time and id.

    Columns are the fields of a prediction, its features as ``f0``, ``f1``, ... and ``outcome``, ``outcome_time`` and
    ``defaulted``. Mirrored answers are left out. Of one id the first answer that came counts; a refusal or an error
    only if none did.

    Of several outcomes the earliest known counts, as it does for the watcher. (Within one window the watcher takes what
    was logged first; here it is the earlier time, then the earlier arrival.) NaN is no outcome. ``expires`` is the time
    after a decision from which outcomes do not count; a decision without one that is that old at ``now`` has the
    outcome ``default``.

    A feature whose type changes between versions is JSON text. What stands behind the torn place of a segment is left
    out, as ``SegmentLog`` does and tells. Raises Corrupt if a part is not as it was written.
    """
    if default is not None and (expires is None or now is None):
        raise InvalidInput(
            "A default outcome needs to know when outcomes expire, and the time.",
            where=f"decisions of {endpoint!r}",
            todo="Give 'expires' and 'now' too.",
        )
    last = until + expires if expires is not None else None
    # The folder first, then the manifest: what is removed in between is in the manifest.
    names = sorted(path.name for path in folder.glob("*.seg"))
    manifest = ManifestFile(folder).read()
    tables: dict[Kind, list[pl.DataFrame]] = {"predictions": [], "outcomes": []}
    ranges = {"predictions": (since - REPEAT, until + REPEAT), "outcomes": (since - EARLY, last)}
    read: list[str] = []
    for name in names:
        if name not in manifest.segments:
            try:
                for kind, table in _segment_tables(folder / name, endpoint):
                    tables[kind].append(_within(table, *ranges[kind]))
                read.append(name)
            except FileNotFoundError:
                manifest = ManifestFile(folder).read()
    for kind, table in _part_tables(folder, manifest, endpoint, ranges):
        # A manifest that was read again may name segments that were read as such before.
        tables[kind].append(table.filter(~pl.col("segment").is_in(read)))
    predictions = stack([prediction_table([], []), *tables["predictions"]])
    outcomes = stack([outcome_table([], []), *tables["outcomes"]])
    chosen = _first(predictions).filter(pl.col("time").is_between(since, until, closed="left"))
    joined = _join(chosen, outcomes, expires=expires, default=default, now=now)
    plain = [_plain(column) for column in joined.get_columns()]
    return pl.DataFrame(plain).sort("time", "id")


def _first(predictions: pl.DataFrame) -> pl.DataFrame:
    answered = pl.col("status").is_in(["ok", "fallback"])
    return (
        predictions.filter(~pl.col("mirror"))
        .sort(~answered, "arrived", *PLACE)
        .unique("id", keep="first", maintain_order=True)
        .drop("mirror", "width", *PLACE)
    )


def _join(
    chosen: pl.DataFrame,
    outcomes: pl.DataFrame,
    *,
    expires: Time | None,
    default: float | None,
    now: Time | None,
) -> pl.DataFrame:
    known = outcomes.filter(pl.col("value").is_not_nan()).select(
        "id",
        *PLACE,
        pl.col("time").alias("outcome_time"),
        pl.col("value").alias("outcome"),
        pl.col("arrived").alias("told"),
    )
    counts = pl.col("outcome_time") >= pl.col("time") - EARLY
    if expires is not None:
        counts &= pl.col("outcome_time") < pl.col("time") + expires
    first = (
        known.join(chosen.select("id", "time"), on="id", how="inner")
        .filter(counts)
        .sort("outcome_time", "told", *PLACE)
        .unique("id", keep="first", maintain_order=True)
        .select("id", "outcome", "outcome_time")
    )
    joined = chosen.join(first, on="id", how="left")
    if default is None or expires is None or now is None:
        return joined.with_columns(defaulted=pl.lit(value=False))
    expired = pl.col("outcome").is_null() & (pl.col("time") + expires <= now)
    return joined.with_columns(defaulted=expired).with_columns(
        outcome=pl.when("defaulted").then(pl.lit(float(default))).otherwise("outcome")
    )


def _segment_tables(path: Path, endpoint: str) -> Iterator[tuple[Kind, pl.DataFrame]]:
    predictions: tuple[list[Place], list[Prediction]] = ([], [])
    outcomes: tuple[list[Place], list[Outcome]] = ([], [])
    name = path.name  # asked for each row, it would be a tenth of the work
    for end, some, known in read_frames(path, 0, []):
        for row, prediction in enumerate(some):
            if prediction.endpoint == endpoint:
                predictions[0].append(Place(name, end, row))
                predictions[1].append(prediction)
        for row, outcome in enumerate(known):
            if outcome.endpoint == endpoint:
                outcomes[0].append(Place(name, end, row))
                outcomes[1].append(outcome)
        if len(predictions[0]) + len(outcomes[0]) >= CHUNK:
            yield "predictions", prediction_table(*predictions)
            yield "outcomes", outcome_table(*outcomes)
            predictions, outcomes = ([], []), ([], [])
    yield "predictions", prediction_table(*predictions)
    yield "outcomes", outcome_table(*outcomes)


def _part_tables(
    folder: Path, manifest: Manifest, endpoint: str, ranges: dict[str, tuple[Time, Time | None]]
) -> Iterator[tuple[Kind, pl.DataFrame]]:
    compacted = ManifestFile(folder).folder
    for part in manifest.parts:
        low, high = ranges[part.kind]
        if part.endpoint != endpoint or part.high < low or (high is not None and part.low >= high):
            continue
        if not is_whole(compacted / part.path, part):
            raise Corrupt(
                "A part of the compacted log is not as it was written.",
                where=str(compacted / part.path),
                todo="Restore it from a backup.",
            )
        table = pl.read_parquet(compacted / part.path, hive_partitioning=False)
        if part.kind == "predictions":
            table = renewed(table)
        yield part.kind, _within(table, low, high)


def _within(table: pl.DataFrame, low: Time, high: Time | None) -> pl.DataFrame:
    inside = pl.col("time") >= low
    return table.filter(inside if high is None else inside & (pl.col("time") < high))


def _plain(column: pl.Series) -> pl.Series:
    if column.dtype != pl.Binary:
        return column
    values: list[Any] = values_of(column)
    texts = [None if v is None else _json(v).decode() for v in values]
    return pl.Series(column.name, texts, dtype=pl.String)
