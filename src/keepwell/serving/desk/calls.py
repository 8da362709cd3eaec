"""Model calls: what a round asks of its arms, who answers where one fails, and what a model may say.

A round asks for one call after the other (``Steps``). Whoever drives it computes at once, or waits for a runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import Unavailable
from keepwell.serving.desk.loading import Loaded, Serving
from keepwell.serving.desk.rounds import Round
from keepwell.serving.log.batches import ERROR, FALLBACK, Places

ANOTHER_ROW = "another row of its request had no answer"
NOT_A_NUMBER = "its answer is not a finite number"

NAMED = (Unavailable,)
"""Exceptions that say all in their words; of others the name is told too."""

_T = TypeVar("_T")
Steps = Generator[tuple[Loaded, npt.NDArray[Any]], npt.NDArray[np.float64], _T]
"""Asks for one model call after the other and is sent its answers, or thrown what it raised: whoever drives it computes
at once, or waits without holding up others."""


class Tick(msgspec.Struct):
    """What one model call an arm gave for n rows of several requests."""

    outputs: npt.NDArray[np.float64]
    """Shape (n,) or (n, classes); NaN where no arm had an answer."""
    chosen: Places | None
    """Place of the chosen arm a row; None: the first."""
    answered: list[int] | None
    """Place of the arm that answered; None: the chosen one."""
    statuses: bytearray | None
    """None: ok."""
    errors: dict[int, str]

    @property
    def by(self) -> list[int] | None:
        """Place of the arm that answered a row; None: the first."""
        if self.answered is not None or self.chosen is None:
            return self.answered
        return self.chosen.tolist()  # type: ignore[no-any-return]


class Said(msgspec.Struct, frozen=True):
    """What a mirror gave for n rows."""

    outputs: npt.NDArray[np.float64]
    """Shape (n,) or (n, classes)."""
    errors: dict[int, str]
    """What was wrong, by row."""


def driven(
    steps: Steps[_T], run: Callable[[Loaded, npt.NDArray[Any]], npt.NDArray[np.float64]]
) -> _T:
    """Make the model calls that are asked for, here and now."""
    try:
        loaded, part = next(steps)
        while True:
            try:
                values = run(loaded, part)
            except Exception as error:  # noqa: BLE001
                # The model is the user's code; whatever it raises must not end the worker.
                loaded, part = steps.throw(error)
            else:
                loaded, part = steps.send(values)
    except StopIteration as end:
        found: _T = end.value
        return found


def ask_models(made: Round) -> Steps[Tick]:
    """Ask for one model call an arm; where it fails, see on whose rows, and let the fallback answer those."""
    serving, matrix, chosen, edges = made.serving, made.matrix, made.placed.arms, made.edges
    n = len(matrix)
    if chosen is None:
        alone = serving.arms[0]
        tried = yield from _tried(alone, matrix)
        if tried is not None and _finite(tried):
            return Tick(tried, None, None, None, {})
        found = [(alone, np.arange(n), tried)]
    else:
        # The rows of one arm lie together while the models run, so that they are moved once and not by each.
        order = chosen.argsort(kind="stable")
        counts = np.bincount(chosen)
        moved = matrix if counts[-1] == n else matrix[order]
        found = []
        start = 0
        for loaded, count in zip(serving.arms, counts.tolist(), strict=False):
            if count:
                stop = start + count
                tried = yield from _tried(loaded, moved[start:stop])
                found.append((loaded, order[start:stop], tried))
                start = stop
        good = [values for _, _, values in found if values is not None]
        if len(good) == len(found) and len({values.shape[1:] for values in good}) == 1:
            outputs = np.empty((n, *good[0].shape[1:]))
            outputs[order] = good[0] if len(good) == 1 else np.concatenate(good)
            if _finite(outputs):
                return Tick(outputs, chosen, None, None, {})
    return (yield from _rescue(serving, matrix, chosen, edges, found))


def ask_mirror(loaded: Loaded, matrix: npt.NDArray[Any]) -> Steps[Said]:
    """Ask a mirror for one call; where it raises, see on which rows: those beside them count as what they are."""
    n = len(matrix)
    troubled: dict[int, str] = {}
    try:
        values = yield loaded, matrix
    except Exception as error:  # noqa: BLE001
        # A challenger is the user's code too. A runtime that is not there is not there for any of the rows.
        if n > 1 and not isinstance(error, Unavailable):
            edges = list(range(n + 1))
            values = yield from _one_by_one(loaded, matrix, np.arange(n), edges, troubled)
        else:
            values = np.full(n, np.nan)
            troubled = dict.fromkeys(range(n), told(error))
    if not _finite(values):
        bad = ~np.isfinite(values.reshape(n, -1)).all(axis=1)
        for k in np.flatnonzero(bad).tolist():
            troubled.setdefault(k, NOT_A_NUMBER)
    return Said(values, troubled)


def _rescue(
    serving: Serving,
    matrix: npt.NDArray[Any],
    chosen: Places | None,
    edges: list[int],
    found: list[tuple[Loaded, Places, npt.NDArray[np.float64] | None]],
) -> Steps[Tick]:
    """Put together what the arms gave where one of them raised, or gave what is no answer."""
    n = len(matrix)
    outputs: npt.NDArray[np.float64] | None = None
    troubled: dict[int, str] = {}
    for loaded, rows, tried in found:
        values = tried
        if values is None:
            values = yield from _one_by_one(loaded, matrix, rows, edges, troubled)
        if not np.isfinite(values).all():
            bad = ~np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
            for k in rows[bad].tolist():
                troubled.setdefault(k, NOT_A_NUMBER)
        if outputs is None:
            outputs = np.full((n, *values.shape[1:]), np.nan)
        if outputs.shape[1:] == values.shape[1:]:
            outputs[rows] = values
        else:
            for k in rows.tolist():
                troubled.setdefault(k, "its answers have another shape than the other arm's")
    assert outputs is not None
    tick = Tick(outputs, chosen, None, None, {})
    if troubled:
        yield from _salvage(serving, matrix, tick, troubled, edges)
    return tick


def _salvage(
    serving: Serving,
    matrix: npt.NDArray[Any],
    tick: Tick,
    troubled: dict[int, str],
    edges: list[int],
) -> Steps[None]:
    """Let the fallback answer the rows that the chosen arm failed on; what is left has no answer."""
    n = len(matrix)
    tick.statuses = bytearray(n)
    chosen: list[int] = [0] * n if tick.chosen is None else tick.chosen.tolist()
    tick.answered = list(chosen)
    tick.outputs = np.array(tick.outputs)
    fallback = serving.fallback
    rows = np.array([k for k in sorted(troubled) if chosen[k] != fallback], dtype=np.intp)
    if fallback is not None and len(rows):
        second: dict[int, str] = {}
        values = yield from _one_by_one(serving.arms[fallback], matrix, rows, edges, second)
        if tick.outputs.shape[1:] != values.shape[1:] and len(rows) == n:
            tick.outputs = np.full((n, *values.shape[1:]), np.nan)
        fits = tick.outputs.shape[1:] == values.shape[1:]
        for k, value in zip(rows.tolist(), values, strict=True):
            if k in second or not fits or not np.isfinite(value).all():
                said = second.get(k, NOT_A_NUMBER)
                troubled[k] = f"{troubled[k]}; and so did the fallback: {said}"[:600]
                continue
            tick.outputs[k] = value
            tick.answered[k] = fallback
            tick.statuses[k] = FALLBACK
            tick.errors[k] = troubled.pop(k)
    for k, said in troubled.items():
        tick.outputs[k] = np.nan
        tick.statuses[k] = ERROR
        tick.errors[k] = said
    # A request is answered whole or not at all.
    for start, stop in pairwise(edges):
        if ERROR in tick.statuses[start:stop]:
            for k in range(start, stop):
                if tick.statuses[k] != ERROR:
                    tick.statuses[k] = ERROR
                    tick.outputs[k] = np.nan
                    tick.answered[k] = chosen[k]
                    tick.errors[k] = ANOTHER_ROW


def values_of(given: Any, rows: int) -> npt.NDArray[np.float64]:
    """See that a model gave one answer a row. Raises ValueError."""
    values = np.asarray(given, dtype=np.float64)
    if values.shape[:1] != (rows,) or values.ndim > 2:
        raise ValueError(f"it gave answers of shape {values.shape} for {rows} rows")
    return values


def _finite(values: npt.NDArray[np.float64]) -> bool:
    """Tell whether all values are finite, in a tenth of the time of ``isfinite`` for few of them."""
    # A sum of squares is finite only if all are; where it overflows, each is looked at.
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def _tried(loaded: Loaded, matrix: npt.NDArray[Any]) -> Steps[npt.NDArray[np.float64] | None]:
    try:
        return (yield loaded, matrix)
    except Exception:  # noqa: BLE001
        # The user's code. Whose rows it was comes out when each request's are tried alone.
        return None


def _one_by_one(
    loaded: Loaded,
    matrix: npt.NDArray[Any],
    rows: npt.NDArray[np.intp],
    edges: list[int],
    troubled: dict[int, str],
) -> Steps[npt.NDArray[np.float64]]:
    """Run a model on the rows of each request alone, so that one caller's rows fail nobody else's."""
    outputs: npt.NDArray[np.float64] | None = None
    for start, stop in pairwise(edges):
        inside = np.flatnonzero((rows >= start) & (rows < stop))
        if not len(inside):
            continue
        mine = rows[inside]
        try:
            values = yield loaded, matrix[mine]
            if outputs is None:
                outputs = np.full((len(rows), *values.shape[1:]), np.nan)
            outputs[inside] = values
        except Exception as error:  # noqa: BLE001
            # The user's code, as above.
            troubled.update(dict.fromkeys(mine.tolist(), told(error)))
    return np.full(len(rows), np.nan) if outputs is None else outputs


def told(error: Exception) -> str:
    """Say in a record what a model raised, or why its runtime did not answer."""
    return (
        str(error)[:300] if isinstance(error, NAMED) else f"{type(error).__name__}: {error}"[:300]
    )
