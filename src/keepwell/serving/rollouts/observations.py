"""Observations: what the log holds of one endpoint since a rollout began, as columns in one order of their own.

Whatever order segments are read in, however often, and whether they were compacted meanwhile: the same records give
the same columns, bit for bit. So a verdict can be computed again from the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.clock import Time
from keepwell.core.records.predictions import Outcome
from keepwell.serving.desk.codec import text_of
from keepwell.serving.log.batches import ERROR, FALLBACK
from keepwell.serving.log.columns import AnswerLog, Columns, Wanted, columns_of_records

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


class Observations(msgspec.Struct, frozen=True, kw_only=True):
    """n logged answers, in the order of event time, then decision, then arrival.

    Decisions and units are named by 64 bits of their keyed hash: among a million, two fall together with a chance
    of 3e-8.
    """

    names: tuple[str, ...]
    """Arms; ``arm`` and ``by`` are places in here."""
    time: Ints
    arrived: Ints
    decision: Keys
    unit: Keys
    arm: Ints
    """The arm that was assigned (of a mirror: itself)."""
    by: Ints
    """The arm that answered."""
    plan: Ints
    status: Ints
    """Places in ``keepwell.serving.log.batches.STATUSES``."""
    mirror: Bools
    placed: Bools
    """A cohort sent it there; chance had no part in it."""
    propensity: Floats
    latency: Floats
    """Seconds."""
    output: Floats
    """NaN where there was no number."""
    counts: Bools
    """The one answer that counts for its decision: the first that was given; an error only if none was."""
    outcome: Floats
    """NaN while it is not known."""
    features: Floats
    """Shape (n, d): the fields that were asked for; NaN where missing."""
    groups: Keys
    """Shape (n, 1): the value of the field that parts decisions into groups, shape (n, 0) where none does."""
    watermark: Time
    """The newest event time."""

    def __len__(self) -> int:
        return len(self.time)

    @property
    def failed(self) -> Bools:
        """Tell whose arm failed, whether another one answered in its place or none."""
        rows: Bools = (self.status == ERROR) | (self.status == FALLBACK)
        return rows

    def place(self, name: str) -> int:
        """Give the place of an arm among ``names``; -1 if it has answered nothing."""
        return self.names.index(name) if name in self.names else -1

    def of(self, name: str) -> Bools:
        """Tell which rows were assigned to an arm."""
        rows: Bools = self.arm == self.place(name)
        return rows

    def pick(self, rows: Bools) -> Observations:
        """Give some of the rows."""
        fields = {
            name: value[rows]
            for name in self.__struct_fields__
            if isinstance(value := getattr(self, name), np.ndarray)
        }
        return msgspec.structs.replace(self, **fields)


class Gathering:
    """Collects the records of one endpoint, from a cursor on, under plans from ``since_plan`` on.

    ``fields`` are the places of the numeric features to keep, ``group`` the place and the type of the feature by
    which decisions are grouped. It holds about 110 bytes a record, 8 more for each field, and 32 an outcome; while it
    puts them in order twice that.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        cursor: Mapping[str, int],
        since_plan: int,
        fields: Sequence[int] = (),
        group: tuple[int, str] | None = None,
    ) -> None:
        self.cursor = dict(cursor)
        self._wanted = Wanted(
            endpoint=endpoint,
            since_plan=since_plan,
            fields=tuple(fields),
            group=group[0] if group else None,
        )
        self._group = group
        self._arms: dict[str, int] = {}
        self._parts: list[dict[str, npt.NDArray[np.generic]]] = []
        self._known: list[tuple[Keys, Ints, Ints, Floats]] = []
        self._made: Observations | None = None

    def read(self, log: AnswerLog, *, until: Mapping[str, int] | None = None) -> bool:
        """Take in what is new, up to ``until``; True if there was anything."""
        batch = log.read_columns(self.cursor, wanted=self._wanted, until=until)
        went_on = batch.cursor != self.cursor
        self.cursor = batch.cursor
        self._parts += [self._hashed(part) for part in batch.parts]
        outcomes = [o for o in batch.outcomes if o.value == o.value]  # NaN is no outcome
        if outcomes:
            self._known.append(_known(outcomes))
        if batch.parts or outcomes:
            self._made = None
        return went_on

    def _hashed(self, part: Columns) -> dict[str, npt.NDArray[np.generic]]:
        places = np.array(
            [self._arms.setdefault(name, len(self._arms)) for name in part.names], dtype=np.int64
        )
        decision = _keys(part.ids)
        groups = np.zeros((len(part), 0), dtype=np.uint64)
        if self._group is not None:
            groups = _keys([text_of(value, self._group[1]) for value in part.group])[:, None]
        return {
            "time": part.time,
            "arrived": part.arrived,
            "decision": decision,
            "unit": decision if part.units is part.ids else _keys(part.units),
            "arm": places[part.arm],
            "by": places[part.by],
            "plan": part.plan,
            "status": part.status,
            "mirror": part.mirror,
            "placed": part.placed,
            "propensity": part.propensity,
            "latency": part.latency / 1e6,
            "output": part.output,
            "features": part.features,
            "groups": groups,
        }

    def observations(self) -> Observations:
        """Give everything gathered so far."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Observations:
        parts = self._parts or [self._hashed(columns_of_records([], self._wanted))]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        names = tuple(sorted(self._arms))
        places = np.array([names.index(name) for name in self._arms] or [0], dtype=np.int64)
        for name in ("arm", "by"):
            joined[name] = places[joined[name].astype(np.int64)]
        order = np.lexsort(
            (
                joined["status"], joined["by"], joined["arrived"], joined["mirror"],
                joined["decision"], joined["time"],
            )
        )  # fmt: skip
        # One after the other, so that no third copy of them all is held meanwhile.
        columns = {name: joined.pop(name)[order] for name in list(joined)}
        # The sorted columns are kept, not a second copy; rows that are alike keep the order in which they came.
        self._parts = [columns] if self._parts else []
        if self._parts:  # the places in it are those of the sorted names from now on
            self._arms = {name: k for k, name in enumerate(names)}
        if len(self._known) > 1:
            keys, times, arrivals, values = zip(*self._known, strict=True)
            joint = tuple(np.concatenate(each) for each in (keys, times, arrivals, values))
            self._known = [cast("tuple[Keys, Ints, Ints, Floats]", joint)]
        given = columns["decision"].astype(np.uint64)
        mirror = columns["mirror"].astype(np.bool_)
        time = columns["time"].astype(np.int64)
        return Observations(
            names=names,
            counts=_counting(columns),
            outcome=_joined(given, self._known),
            watermark=int(time[~mirror].max()) if (~mirror).any() else 0,
            **cast("dict[str, Any]", columns),
        )


def _keys(texts: Sequence[str]) -> Keys:
    joined = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def _known(outcomes: Sequence[Outcome]) -> tuple[Keys, Ints, Ints, Floats]:
    return (
        _keys([o.id for o in outcomes]),
        np.array([o.time for o in outcomes], dtype=np.int64),
        np.array([o.arrived for o in outcomes], dtype=np.int64),
        np.array([o.value for o in outcomes], dtype=np.float64),
    )


def _counting(columns: Mapping[str, npt.NDArray[np.generic]]) -> Bools:
    """Mark, of each decision and mirror, the answer that counts."""
    n = len(columns["time"])
    failed = columns["status"].astype(np.int64) >= ERROR
    who = np.where(columns["mirror"].astype(np.bool_), columns["by"].astype(np.int64) + 1, 0)
    order = np.lexsort(
        (np.arange(n), columns["arrived"], failed, who, columns["decision"].astype(np.uint64))
    )
    decision = columns["decision"][order]
    whose = who[order]
    first = np.ones(n, dtype=np.bool_)
    first[1:] = (decision[1:] != decision[:-1]) | (whose[1:] != whose[:-1])
    counts = np.zeros(n, dtype=np.bool_)
    counts[order] = first
    return counts & ~failed


def _joined(decision: Keys, known: Sequence[tuple[Keys, Ints, Ints, Floats]]) -> Floats:
    """Give each decision its outcome: the earliest known one, of those the one that arrived first."""
    found = np.full(len(decision), np.nan)
    if not known or not len(decision):
        return found
    keys, time, arrived, value = known[0]
    order = np.lexsort((value, arrived, time, keys))
    keys, value = keys[order], value[order]
    place = np.minimum(np.searchsorted(keys, decision, side="left"), len(keys) - 1)
    hit = keys[place] == decision
    found[hit] = value[place[hit]]
    return found
