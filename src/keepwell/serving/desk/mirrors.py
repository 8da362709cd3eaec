"""Mirrors: what arms that see requests without answering them would have said, as columns for the log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.desk.calls import NOT_A_NUMBER, told, values_of
from keepwell.serving.desk.loading import Loaded, Serving
from keepwell.serving.log.batches import ERROR, Answerer, Batch


class Seen(msgspec.Struct, frozen=True):
    """The rows of a batch that a mirror sees."""

    matrix: npt.NDArray[Any]
    ids: Sequence[str]
    times: Sequence[int]
    units: Sequence[str]


def seen_by(
    serving: Serving, loaded: Loaded, batch: Batch, matrix: npt.NDArray[Any]
) -> Seen | None:
    """Give the rows that one mirror sees; None: it sees none."""
    ids, times, units = batch.ids, batch.times or [batch.arrived] * batch.rows, batch.units
    if 0 < loaded.arm.weight < BUCKETS:
        rows = serving.assignment.mirrored(loaded.arm, units, batch.identities).tolist()
        if not rows:
            return None
        matrix = matrix[rows]
        known = batch.identities()
        ids, times = [known[k] for k in rows], [times[k] for k in rows]
        units = [units[k] for k in rows] if units else units
    return Seen(matrix, ids, times, units)


def mirror(serving: Serving, loaded: Loaded, batch: Batch, seen: Seen) -> Batch:
    """Let one mirror answer the rows that it sees; what it raises is recorded, and harms nobody."""
    began = time.perf_counter()
    outcome: npt.NDArray[np.float64] | Exception
    try:
        outcome = values_of(loaded.predictor.predict(seen.matrix), len(seen.matrix))
    except Exception as error:  # noqa: BLE001
        # A challenger is the user's code too.
        outcome = error
    return mirrored(serving, loaded, batch, seen, outcome, began)


def mirrored(
    serving: Serving,
    loaded: Loaded,
    batch: Batch,
    seen: Seen,
    outcome: npt.NDArray[Any] | Exception,
    began: float,
) -> Batch:
    """Put what one mirror said to the rows that it saw, or raised, into columns for the log."""
    n = len(seen.matrix)
    errors: dict[int, str] = {}
    outputs: npt.NDArray[Any]
    if isinstance(outcome, Exception):
        outputs = np.full(n, np.nan)
        errors = dict.fromkeys(range(n), told(outcome))
    else:
        outputs = outcome
        if not np.isfinite(outputs).all():
            bad = ~np.isfinite(outputs.reshape(n, -1)).all(axis=1)
            errors = dict.fromkeys(np.flatnonzero(bad).tolist(), NOT_A_NUMBER)
    statuses = bytearray(n) if errors else bytearray()
    for k in errors:
        statuses[k] = ERROR
    arm = loaded.arm
    return Batch(
        endpoint=batch.endpoint,
        plan=batch.plan,
        arms=serving.names,
        answerers=(Answerer(arm.name, arm.version, arm.artefact, arm.weight or BUCKETS),),
        arrived=time.time_ns() // 1000,
        mirror=True,
        rows=n,
        prefix=batch.prefix,
        first=batch.first,
        ids=seen.ids,
        times=seen.times,
        units=seen.units,
        outputs=outputs.tobytes(),
        classes=outputs.shape[1] if outputs.ndim == 2 else 0,
        latencies=np.array([(time.perf_counter() - began) * 1e6], dtype="<u4").tobytes(),
        statuses=bytes(statuses),
        errors=errors,
        share=batch.share,
    )
