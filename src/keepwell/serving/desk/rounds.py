"""Rounds: the requests of one tick at one endpoint as one matrix, each row assigned to its arm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.assign import Placed, Rows
from keepwell.serving.desk.codec import Codec, Decoded
from keepwell.serving.desk.loading import Serving
from keepwell.serving.log.batches import Batch, Places


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
    called: float = 0.0
    """When it was ready for the models, where somebody listens."""


def gather(serving: Serving, asks: list[Ask], *, worker: str, first: int) -> Round:
    """Put the rows of requests together and assign them to arms; ids that nobody gave are counted from ``first``."""
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
        parts = [matrix_of(codec, ask.rows) for ask in asks]
        if len({part.dtype for part in parts}) > 1:
            parts = [wide(part) for part in parts]
        matrix = parts[0] if len(parts) == 1 else np.concatenate(parts)
        packs = packs and matrix.dtype != object
    prefix = f"{arrived:x}-{worker}-"
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
        chosen=packed(placed.logged),
        features=() if packs else features if alike else _features(asks, codec),
        matrix=rows_in,
        kind=kind,
        propensities=b"" if placed.propensities is None else placed.propensities.tobytes(),
    )
    return Round(serving, asks, edges, wide(matrix), placed, batch)


def matrix_of(codec: Codec, rows: Decoded | None) -> npt.NDArray[Any]:
    """Give the rows of one request as a matrix, shape (n, d)."""
    assert rows is not None
    return codec.matrix(rows.features or []) if rows.matrix is None else rows.matrix


def wide(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
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
            numbers = matrix_of(codec, ask.rows).tolist()
            found += [[None if v != v else v for v in row] for row in numbers]  # noqa: PLR0124 - NaN alone differs from itself
    return found


def _joined(asks: Sequence[Ask], edges: list[int], field: str, otherwise: Any) -> list[Any]:
    """Join a column over requests of which some may have none."""
    columns = [getattr(ask.rows, field) for ask in asks]
    joined: list[Any] = []
    for column, start, stop in zip(columns, edges, edges[1:], strict=False):
        joined += column or [otherwise] * (stop - start)
    return joined


def packed(places: Places | list[int] | None) -> bytes:
    """Give places as a batch has them; None: as nothing at all."""
    return b"" if places is None else np.array(places, dtype="<u2").tobytes()
