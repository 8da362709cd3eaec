"""Open windows of one endpoint: decisions joined with their outcomes, kept until each window is complete.

The watcher feeds what it reads from the log, in any order and at least once; monitors and the ledger take
complete windows out as arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from keepwell.core.clock import DAY, Time
from keepwell.core.records.models import Signature
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import HOLDOUT
from keepwell.watch.grid import Grid

Floats = npt.NDArray[np.float64]
ANSWERED = frozenset({"ok", "fallback"})
FUTURE: Time = DAY
"""An event further than this after its own arrival has a broken clock behind it; it would close every window."""


@dataclass(frozen=True, kw_only=True)
class WindowRows:
    """The rows of one version in one window, in the order of time and id; n rows, d features.

    ``outputs`` has shape (n,), or (n, k) for classes; ``features`` (n, d), float64 with NaN for missing where
    every input is a number, objects otherwise; ``labels`` (n,) with NaN where none is known (yet);
    ``answered`` (n,) is False for mirrored rows. ``errors`` counts requests that got no prediction.
    """

    start: Time
    end: Time
    times: npt.NDArray[np.int64]
    outputs: Floats
    features: npt.NDArray[Any]
    answered: npt.NDArray[np.bool_]
    labels: Floats
    errors: int = 0

    def __len__(self) -> int:
        return len(self.times)

    def where(self, keep: npt.NDArray[np.bool_]) -> WindowRows:
        """Give the rows for which ``keep``, shape (n,), holds."""
        return WindowRows(
            start=self.start,
            end=self.end,
            times=self.times[keep],
            outputs=self.outputs[keep],
            features=self.features[keep],
            answered=self.answered[keep],
            labels=self.labels[keep],
            errors=self.errors,
        )


@dataclass(kw_only=True)
class _Open:
    """One version's rows of one window, as they came, a chunk a batch."""

    ids: list[str] = field(default_factory=list)
    times: list[npt.NDArray[np.int64]] = field(default_factory=list)
    outputs: list[Floats] = field(default_factory=list)
    features: list[npt.NDArray[Any]] = field(default_factory=list)
    answered: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    errors: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class Counts:
    """What was not used, and why; for the health page and for people who ask where their rows went."""

    repeated: int = 0
    late: int = 0
    future: int = 0
    malformed: int = 0
    late_outcomes: int = 0


class EndpointWindows:
    """All open windows of one endpoint, of every version that answered or was mirrored there."""

    def __init__(
        self,
        grid: Grid,
        *,
        signature_of: Callable[[int], Signature | None],
        closed: Time = 0,
    ) -> None:
        self.grid = grid
        self.closed = closed
        """Everything that closes at or before this event time was dealt with."""
        self.newest: Time = 0
        self.counts = Counts()
        self._signature_of = signature_of
        self._open: dict[Time, dict[int, _Open]] = {}
        self._answered: dict[Time, set[str]] = {}
        self._mirrored: dict[Time, dict[int, set[str]]] = {}
        self._held_out: dict[Time, int] = {}
        self._outcomes: dict[Time, dict[str, float]] = {}
        """By the window in which an outcome became known, which is never before its decision's."""

    @property
    def watermark(self) -> Time:
        """Event time before which no decision is expected any more."""
        return max(self.closed, self.newest - self.grid.lateness)

    @property
    def rows_held(self) -> int:
        """Rows kept in memory now."""
        return sum(len(one.ids) for window in self._open.values() for one in window.values())

    @property
    def outcomes_held(self) -> int:
        """Outcomes kept in memory now."""
        return sum(len(known) for known in self._outcomes.values())

    def add_predictions(self, predictions: Iterable[Prediction]) -> Time:
        """Take decisions of this endpoint; the first of an id counts. Gives when the last of them is done with."""
        grid, counts = self.grid, self.counts
        groups: dict[tuple[Time, int], list[Prediction]] = {}
        needed: Time = 0
        for prediction in predictions:
            time, version = prediction.time, prediction.version
            if time > prediction.arrived + FUTURE:
                counts.future += 1
                continue
            start = time - time % grid.length
            done = start + grid.length + grid.label_delay
            if done <= self.closed:
                counts.late += 1
                continue
            needed = max(needed, done)
            if not prediction.mirror and time > self.newest:
                self.newest = time
            held_out = not prediction.mirror and (prediction.chosen or prediction.arm) == HOLDOUT
            if prediction.status not in ANSWERED:
                if held_out:
                    continue
                if not prediction.mirror:
                    self._one(start, version).errors.add(prediction.id)
                continue
            if self._is_repeated(prediction, start):
                counts.repeated += 1
                continue
            if held_out:
                # They are decisions of the endpoint, and tell nothing of the versions that rollouts put there.
                self._open.setdefault(start, {})
                self._held_out[start] = self._held_out.get(start, 0) + 1
                continue
            groups.setdefault((start, version), []).append(prediction)
        for (start, version), group in groups.items():
            self._append(start, version, group)
        return needed

    def add_outcomes(self, outcomes: Iterable[Outcome]) -> Time:
        """Take outcomes of this endpoint; the first of an id counts. Gives when the last of them is done with."""
        grid = self.grid
        needed: Time = 0
        for outcome in outcomes:
            start = outcome.time - outcome.time % grid.length
            done = start + grid.length + grid.label_delay
            if done <= self.closed:
                self.counts.late_outcomes += 1
                continue
            needed = max(needed, done)
            if outcome.value == outcome.value:  # false for NaN alone
                self._outcomes.setdefault(start, {}).setdefault(outcome.id, outcome.value)
        return needed

    def due(self, until: Time | None = None) -> list[Time]:
        """List the event times up to the watermark (or ``until``) at which a part of a window closes, in order."""
        limit = self.watermark if until is None else until
        found: set[Time] = set()
        for start in self._open:
            found.update((self.grid.data_closes(start), self.grid.labels_close(start)))
        return sorted(time for time in found if self.closed < time <= limit)

    def last_close(self) -> Time:
        """Give the event time at which every window that is open now will be complete."""
        return max((self.grid.labels_close(start) for start in self._open), default=self.closed)

    def versions(self, start: Time) -> list[int]:
        """List the versions with rows or errors in a window."""
        return sorted(self._open.get(start, {}))

    def held_out(self, start: Time) -> int:
        """Give how many decisions of a window were held out; they are no version's rows."""
        return self._held_out.get(start, 0)

    def rows(self, start: Time, version: int, *, labels: bool) -> WindowRows:
        """Give one version's rows of a window, with their outcomes if ``labels``."""
        one = self._one(start, version)
        end = start + self.grid.length
        if not one.ids:
            empty = np.empty(0)
            return WindowRows(
                start=start,
                end=end,
                times=empty.astype(np.int64),
                outputs=empty,
                features=np.empty((0, 0)),
                answered=empty.astype(bool),
                labels=empty,
                errors=len(one.errors),
            )
        times = np.concatenate(one.times)
        # The order of reading may differ after a restart; sums in one fixed order come out equal to the bit.
        order = np.array(
            sorted(
                range(len(times)), key=list(zip(times.tolist(), one.ids, strict=True)).__getitem__
            )
        )
        joined = self._join(one.ids, start) if labels else np.full(len(times), np.nan)
        answered = np.concatenate(one.answered)
        return WindowRows(
            start=start,
            end=end,
            times=times[order],
            outputs=np.concatenate(one.outputs)[order],
            features=np.concatenate(one.features)[order],
            answered=answered[order],
            labels=joined[order],
            errors=len(one.errors - set(one.ids)),
        )

    def close(self, time: Time) -> None:
        """Let go of what was complete at this event time."""
        self.closed = max(self.closed, time)
        for start in [s for s in self._open if self.grid.labels_close(s) <= self.closed]:
            del self._open[start]
            self._answered.pop(start, None)
            self._mirrored.pop(start, None)
            self._held_out.pop(start, None)
        for start in [s for s in self._outcomes if self.grid.labels_close(s) <= self.closed]:
            del self._outcomes[start]

    def _one(self, start: Time, version: int) -> _Open:
        return self._open.setdefault(start, {}).setdefault(version, _Open())

    def _is_repeated(self, prediction: Prediction, start: Time) -> bool:
        if prediction.mirror:
            seen = self._mirrored.setdefault(start, {}).setdefault(prediction.version, set())
            if prediction.id in seen:
                return True
            seen.add(prediction.id)
            return False
        # A retry may carry a later event time, in the next window: look in all that are open.
        if any(prediction.id in ids for ids in self._answered.values()):
            return True
        self._answered.setdefault(start, set()).add(prediction.id)
        return False

    def _append(self, start: Time, version: int, group: list[Prediction]) -> None:
        signature = self._signature_of(version)
        one = self._one(start, version)
        width = len(signature.inputs) if signature else len(group[0].features)
        shapes = [_shape_of(p.output) for p in group]
        # The first usable output of a window says what an output of this version looks like.
        shape = one.outputs[0].shape[1:] if one.outputs else next(filter(_is_shape, shapes), None)
        fitting = [
            p
            for p, own in zip(group, shapes, strict=True)
            if own is not None and own == shape and len(p.features) == width
        ]
        self.counts.malformed += len(group) - len(fitting)
        if not fitting:
            return
        one.ids.extend(p.id for p in fitting)
        one.times.append(np.array([p.time for p in fitting], dtype=np.int64))
        one.outputs.append(np.array([p.output for p in fitting], dtype=np.float64))
        one.features.append(_matrix([p.features for p in fitting], width, signature))
        one.answered.append(np.array([not p.mirror for p in fitting], dtype=bool))

    def _join(self, ids: Sequence[str], start: Time) -> Floats:
        found = np.full(len(ids), np.nan)
        for known in [
            self._outcomes[s] for s in sorted(self._outcomes, reverse=True) if s >= start
        ]:
            # Earliest known last, so that it is the one that stands.
            values = np.array([known.get(id, np.nan) for id in ids])
            found = np.where(np.isnan(values), found, values)
        return found


def _shape_of(output: Any) -> tuple[int, ...] | None:
    if isinstance(output, int | float):
        return ()
    if isinstance(output, list | tuple) and all(isinstance(v, int | float) for v in output):
        return (len(output),)
    return None


def _is_shape(shape: tuple[int, ...] | None) -> bool:
    return shape is not None


def _matrix(
    rows: list[tuple[Any, ...]], width: int, signature: Signature | None
) -> npt.NDArray[Any]:
    if signature is not None and signature.numeric:
        try:
            return np.array(rows, dtype=np.float64).reshape(len(rows), width)
        except (TypeError, ValueError):
            # One bad cell must not cost the batch: what is not a number counts as missing.
            return np.array([[_number(value) for value in row] for row in rows], dtype=np.float64)
    matrix = np.empty((len(rows), width), dtype=object)
    texts = [column.dtype == "string" for column in signature.inputs] if signature else []
    for i, row in enumerate(rows):
        matrix[i, :] = row
    for i, text in enumerate(texts):
        if not text:
            matrix[:, i] = [_number(value) for value in matrix[:, i]]
    return matrix


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
