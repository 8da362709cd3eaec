"""Snapshots: a source's rows as they were known at a moment, immutable and named by content."""

from __future__ import annotations

from typing import Any

import polars as pl

from keepwell.checks.data.expectations import infer_expectations
from keepwell.core.clock import Time, iso
from keepwell.core.digest import canonical
from keepwell.core.errors import InvalidInput, near_miss, users_own
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.store import Store
from keepwell.core.project import Source
from keepwell.core.records.data import Snapshot
from keepwell.data.frames import describe_columns, keep_frame, microseconds, read_frame


def load_source(source: Source) -> pl.DataFrame:
    """Run the project's own loading function and check what it gave. Raises InvalidInput naming the user's line."""
    where = f"source {source.name!r}"
    todo = "Mend the loading function, or see that its file exists and can be read."
    with users_own(where, doing="Loading it", todo=todo):
        frame: Any = source.load()
        if isinstance(frame, pl.LazyFrame):
            frame = frame.collect()
    if not isinstance(frame, pl.DataFrame):
        raise InvalidInput(
            f"The loading function gave a {type(frame).__name__}.",
            where=where,
            todo="Return a polars DataFrame; pl.from_pandas(...) makes one of a pandas DataFrame.",
        )
    for role, column in (("timestamp", source.timestamp), ("known_at", source.known_at)):
        _need_time(frame, column, role=role, where=where)
    missing = [name for name in source.key if name not in frame.columns]
    if missing:
        raise InvalidInput(
            f"The key column {missing[0]!r} is not there.",
            where=where,
            todo=near_miss(missing[0], frame.columns),
        )
    return frame


def _need_time(frame: pl.DataFrame, column: str, *, role: str, where: str) -> None:
    if column not in frame.columns:
        raise InvalidInput(
            f"The {role} column {column!r} is not there.",
            where=where,
            todo=near_miss(column, frame.columns),
        )
    dtype = frame.schema[column]
    if not isinstance(dtype, pl.Datetime | pl.Date):
        raise InvalidInput(
            f"The {role} column {column!r} holds {dtype}, not times.",
            where=where,
            todo="Convert it with .str.to_datetime() or .cast(pl.Datetime).",
        )


def rows_known(
    frame: pl.DataFrame,
    source: Source,
    *,
    as_of: Time,
    since: Time | None = None,
    until: Time | None = None,
) -> pl.DataFrame:
    """Keep the rows that speak of [since, until) and were known at ``as_of``, in the source's order."""
    kept = microseconds(pl.col(source.known_at).cast(pl.Datetime("us"))) <= as_of
    at = microseconds(pl.col(source.timestamp).cast(pl.Datetime("us")))
    if since is not None:
        kept &= at >= since
    if until is not None:
        kept &= at < until
    return frame.filter(kept)


def take_snapshot(
    source: Source,
    *,
    as_of: Time,
    since: Time | None = None,
    until: Time | None = None,
    store: Store,
    blobs: Blobs,
    now: Time,
    actor: str,
    frame: pl.DataFrame | None = None,
) -> Snapshot:
    """Keep what a source knew at ``as_of`` of the window, with data tests inferred from it.

    ``frame`` spares loading the source again. The same content taken twice is one snapshot.
    Raises InvalidInput for a source that does not load, has no rows there, or repeats its key.
    """
    loaded = load_source(source) if frame is None else frame
    rows = rows_known(loaded, source, as_of=as_of, since=since, until=until)
    where = f"source {source.name!r}"
    if rows.is_empty():
        raise InvalidInput(
            f"No row is known at {iso(as_of)} in that window; the source has {loaded.height:,} rows.",
            where=where,
            todo="See the dates, and that known_at is not after them.",
        )
    if source.key:
        repeated = rows.height - rows.select(source.key).n_unique()
        if repeated:
            raise InvalidInput(
                f"{repeated:,} rows repeat the key {', '.join(source.key)}.",
                where=where,
                todo="Keep one row a key, or declare a key that tells them apart.",
            )
    content = keep_frame(rows, blobs=blobs)
    expectations = blobs.put(
        canonical(infer_expectations(describe_columns(rows), rows=rows, key=source.key))
    )
    snapshot = Snapshot(
        content=content,
        source=source.name,
        as_of=as_of,
        since=since,
        until=until,
        rows=rows.height,
        columns=describe_columns(rows),
        code=source.code(),
        expectations=expectations,
        created=now,
    )
    with store.transaction(actor=actor) as transaction:
        before = transaction.get(Snapshot, content)
        if before is not None:
            return before
        transaction.add(snapshot)
    return snapshot


def read_snapshot(snapshot: Snapshot, *, blobs: Blobs) -> pl.DataFrame:
    """Give the rows of a snapshot. Raises NotFound, Corrupt."""
    return read_frame(snapshot.content, blobs=blobs)
