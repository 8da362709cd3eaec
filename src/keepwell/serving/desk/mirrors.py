"""Mirrors: what arms that see requests without answering them would have said, as columns for the log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.desk.calls import Said, ask_mirror, driven, values_of
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
    said = driven(ask_mirror(loaded, seen.matrix), _run)
    return mirrored(serving, loaded, batch, seen, said, began)


def _run(loaded: Loaded, part: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return values_of(loaded.predictor.predict(part), len(part))


def mirrored(
    serving: Serving,
    loaded: Loaded,
    batch: Batch,
    seen: Seen,
    said: Said,
    began: float,
) -> Batch:
    """Put what one mirror said to the rows that it saw, or raised, into columns for the log."""
    n, outputs, errors = len(seen.matrix), said.outputs, said.errors
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
