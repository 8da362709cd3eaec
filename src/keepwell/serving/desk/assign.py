"""Who answers whom: cohorts, then the holdout, then a keyed hash of the unit and the weights or a policy's draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import InvalidInput
from keepwell.core.records.models import Signature
from keepwell.core.records.traffic import BUCKETS, Arm, Cohort, LinearPolicyState, Period
from keepwell.serving.desk.codec import event_time, text_of
from keepwell.serving.desk.policies import Drawing, inputs_of, unpack_policy
from keepwell.serving.editions import EndpointEdition
from keepwell.serving.log.batches import Places

_BUCKETS = np.uint64(BUCKETS)


def bucket_of(unit: str, salt: str) -> int:
    """Give the unit's bucket, 0 to 9,999: the same on every worker and after every restart.

    >>> bucket_of("N14228", "spring") == bucket_of("N14228", "spring")
    True
    """
    return int(buckets_of([unit], _key(salt))[0])


def held_out(names: Sequence[str], holdout: Arm | None, salt: str) -> npt.NDArray[np.bool_]:
    """Tell which units are held out, shape (n,): the same ones for as long as the salt and the share stay.

    A larger share holds out the same units and more. Who is held out says nothing of the bucket that decides the arm.

    >>> arm = Arm(name="holdout", model="m", version=1, artefact="", weight=500)
    >>> held_out(["N14228", "N24211", "N619AA"], arm, "spring").tolist()
    [False, True, False]
    """
    if holdout is None:
        return np.zeros(len(names), dtype=np.bool_)
    return _inside(_hashes(names, _key(salt)), holdout.weight)


def mirror_bucket_of(unit: str, salt: str) -> int:
    """Give the unit's bucket for mirrors with a share.

    It is another one than decides the arm: else a mirror of 5% would see just the units of an arm of 5%.
    """
    return int(buckets_of([unit], _key(salt, b"mirror"))[0])


def draw_of(identity: str, salt: str) -> float:
    """Give the number in [0, 1) by which a policy's probabilities decide on a decision id."""
    return float(_uniform([identity], _key(salt, b"draw"))[0])


def log_draw_of(identity: str, salt: str) -> float:
    """Give the number in [0, 1) that is under the share of a sampled log where a decision is written down."""
    return float(_uniform([identity], _key(salt, b"log"))[0])


def _key(salt: str, purpose: bytes = b"") -> bytes:
    # A key has 64 bytes at most.
    return salt.encode()[: 64 - len(purpose)] + purpose


def _hashes(names: Sequence[str], key: bytes) -> npt.NDArray[np.uint64]:
    # 1 us a name, of which 0.7 are blake2b's own; caching units would only help where few of them come often.
    digests = [blake2b(name.encode(), digest_size=8, key=key).digest() for name in names]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def buckets_of(names: Sequence[str], key: bytes) -> npt.NDArray[np.uint64]:
    """Give the buckets of many units at once, shape (n,)."""
    return _hashes(names, key) % _BUCKETS


def _inside(hashes: npt.NDArray[np.uint64], weight: int) -> npt.NDArray[np.bool_]:
    # The arms' buckets are the remainder, and this is of what is left: of 64 bits that is a number of its own, and one
    # hash gives both.
    held: npt.NDArray[np.bool_] = hashes // _BUCKETS % _BUCKETS < weight
    return held


def assigned(names: Sequence[str], arms: Sequence[Arm], salt: str) -> Places:
    """Give the places of the arms that weights alone assign to units, shape (n,)."""
    edges, laid = laid_out(arms)
    return laid[edges.searchsorted(buckets_of(names, _key(salt)), side="right")]


def in_turns(
    times: Sequence[int], groups: Sequence[str], arms: Sequence[Arm], salt: str, period: Period
) -> Places:
    """Give the places of the arms whose turn it is at these times, shape (n,).

    A turn is drawn by the number of the period, and the group (``groups`` empty: there are none): so every worker
    turns at the same moment, and any arm can be computed again from the log.
    """
    # Rows of a tick share a period or two, so that hardly anything is hashed.
    turns, place = np.unique(
        np.asarray(times, dtype=np.int64) // (period.seconds * 1_000_000), return_inverse=True
    )
    names = [str(turn) for turn in turns.tolist()]
    if groups:
        whose = [f"{names[k]}/{group}" for k, group in zip(place.tolist(), groups, strict=True)]
        names = list(dict.fromkeys(whose))
        known = {name: k for k, name in enumerate(names)}
        place = np.array([known[name] for name in whose], dtype=np.intp)
    edges, laid = laid_out(arms)
    buckets = buckets_of(names, _key(salt, b"period"))
    drawn: Places = laid[edges.searchsorted(buckets, side="right")][place]
    return drawn


def drawn_by(
    state: LinearPolicyState,
    names: Sequence[str],
    features: Sequence[Sequence[Any]],
    signature: Signature,
    salt: str,
) -> Places:
    """Give the places, among the policy's arms, that it drew for decisions by their ids and features, shape (n,)."""
    matrix = np.array(features, dtype=object).reshape(len(features), len(signature.inputs))
    chances = unpack_policy(state).probabilities(inputs_of(state, signature, matrix))
    return _drawn(chances, _uniform(names, _key(salt, b"draw")))


def laid_out(arms: Sequence[Arm]) -> tuple[npt.NDArray[np.uint64], Places]:
    """Give the buckets at which the arms' parts end, and the arm of each part."""
    # All arms but the first are laid out from bucket 0 upwards and the first (the champion) has the rest, so
    # while the second arm grows, the units it has keep it and it only gains more.
    edges = np.cumsum([arm.weight for arm in arms[1:]], dtype=np.uint64)
    return edges, np.array([*range(1, len(arms)), 0], dtype=np.intp)


def _uniform(names: Sequence[str], key: bytes) -> npt.NDArray[np.float64]:
    return (_hashes(names, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Rows(msgspec.Struct, gc=False):
    """What n rows of a tick bring that may decide on their arm."""

    names: Callable[[], Sequence[str]]
    """Gives the decision ids; where units decide, nobody asks, and those that the gateway makes need not be written."""
    units: Sequence[str]
    """Empty texts, or none at all, where the id stands for the unit."""
    times: Sequence[int]
    matrix: npt.NDArray[Any]
    edges: list[int]
    """Where each request's rows begin, and the end."""
    headers: Sequence[Mapping[bytes, bytes]]
    """By request; may be empty where the assignment looks at none."""
    arrived: int = 0
    """The time of rows that bring none."""


class Placed(msgspec.Struct, gc=False):
    """The arms of n rows. None in place of an array says: the first arm, by its weight, for all."""

    arms: Places | None = None
    logged: Places | None = None
    """Place among the answerers of a batch: arms first, cohorts behind them."""
    propensities: npt.NDArray[np.float64] | None = None
    """Where they differ from row to row."""


class Assignment:
    """How one endpoint's plan parts rows, prepared for ticks. The same rows get the same arms on every worker."""

    def __init__(self, edition: EndpointEdition, signature: Signature | None) -> None:
        arms = edition.arms
        self._count = len(edition.answering)
        self._held = edition.holdout.weight if edition.holdout is not None else 0
        names = [arm.name for arm in arms]
        self.cohorts = tuple(cohort for cohort in edition.cohorts if cohort.arm in names)
        """Those whose arm may answer."""
        self._rules = [_Rule(cohort, edition, signature) for cohort in self.cohorts]
        self._to = np.array([names.index(cohort.arm) for cohort in self.cohorts], dtype=np.intp)
        self.headers = frozenset(c.header.encode() for c in self.cohorts if c.header)
        """Names of the request headers that it looks at."""
        self._edges, self._laid = laid_out(arms)
        self._whole = next((k for k, arm in enumerate(arms) if arm.weight == BUCKETS), -1)
        self._key = _key(edition.salt)
        self._draw_key = _key(edition.salt, b"draw")
        self._mirror_key = _key(edition.salt, b"mirror")
        self._log_key = _key(edition.salt, b"log")
        self.log_share = edition.log_share
        heir = max(names.index(edition.fallback) if edition.fallback in names else 0, 0)
        self._drawing = (
            Drawing(edition.policy, names, heir, signature)
            if edition.policy is not None and signature is not None and len(arms) > 1
            else None
        )
        self.turning = (
            _Turning(edition, edition.period, signature)
            if edition.period is not None and self._whole < 0
            else None
        )
        """Says whose turn it is, where arms take turns."""
        alone = not self._rules and self._drawing is None and not self._held
        self.sole = self._whole if alone else -1
        """Place of the one arm that answers every row; below 0 if there is no such arm."""

    def place(self, rows: Rows) -> Placed:
        """Choose the arm of every row."""
        n = rows.edges[-1]
        if self.sole == 0:
            return Placed()
        cohorts = self._cohorts(rows) if self._rules else None
        propensities = None
        held: npt.NDArray[np.bool_] | None = None
        if self._held:
            hashes = _hashes(_keys(rows.units, rows.names), self._key)
            held = _inside(hashes, self._held)
        if self._drawing is not None:
            probabilities = self._drawing.probabilities(rows.matrix)
            uniform = _uniform(rows.names(), self._draw_key)
            arms = _drawn(probabilities, uniform)
            propensities = probabilities[np.arange(n), arms]
        elif self.turning is not None:
            arms = self.turning.place(rows)
        elif self._whole >= 0:
            if self._whole == 0 and cohorts is None and (held is None or not held.any()):
                return Placed()
            arms = np.full(n, self._whole)
        else:
            if held is None:
                hashes = _hashes(_keys(rows.units, rows.names), self._key)
            arms = self._laid[self._edges.searchsorted(hashes % _BUCKETS, side="right")]
        if held is not None:
            arms = np.where(held, self._count - 1, arms)
            if propensities is not None:
                share = self._held / BUCKETS
                propensities = np.where(held, share, propensities * (1 - share))
        if cohorts is None:
            return Placed(arms, arms, propensities)
        inside = cohorts >= 0
        arms = np.where(inside, self._to[cohorts], arms)
        if propensities is not None:
            propensities = np.where(inside, 1.0, propensities)
        return Placed(arms, np.where(inside, self._count + cohorts, arms), propensities)

    def mirrored(
        self, arm: Arm, units: Sequence[str], names: Callable[[], Sequence[str]]
    ) -> Places:
        """Give the places of the rows that a mirror with a share sees."""
        return np.flatnonzero(buckets_of(_keys(units, names), self._mirror_key) < arm.weight)

    def written(self, names: Sequence[str]) -> Places:
        """Give the places of the decisions that a sampled log writes down."""
        return np.flatnonzero(_uniform(names, self._log_key) < self.log_share)

    def _cohorts(self, rows: Rows) -> Places | None:
        """Give the place of the first cohort that each row meets, -1 for none; None where no row meets any."""
        found: Places | None = None
        for k, rule in enumerate(self._rules):
            met = rule.met(rows)
            if len(met):
                if found is None:
                    found = np.full(rows.edges[-1], -1)
                found[[place for place in met if found[place] < 0]] = k
        return found


def _keys(units: Sequence[str], names: Callable[[], Sequence[str]]) -> Sequence[str]:
    if units and "" not in units:
        return units
    ids = names()
    return [unit or name for unit, name in zip(units, ids, strict=True)] if units else ids


def _drawn(probabilities: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> Places:
    """Choose an arm a row where the uniform number falls among the probabilities, shape (n, k)."""
    upper = probabilities.cumsum(axis=1)
    drawn: Places = (uniform[:, None] * upper[:, -1:] >= upper[:, :-1]).sum(axis=1)
    return drawn


class _Turning:
    """Arms that take turns, with the groups as rows bring them."""

    def __init__(
        self, edition: EndpointEdition, period: Period, signature: Signature | None
    ) -> None:
        self._arms, self._salt, self._period = edition.arms, edition.salt, period
        names = signature.names if signature is not None else ()
        self._place = names.index(period.field) if period.field in names else -1
        self._dtype = signature.inputs[self._place].dtype if signature and self._place >= 0 else ""

    def place(self, rows: Rows) -> Places:
        """Choose the arm of every row."""
        n = rows.edges[-1]
        times = rows.times if len(rows.times) else [rows.arrived] * n
        groups: list[str] = []
        if self._place >= 0:
            dtype = self._dtype
            groups = [text_of(value, dtype) for value in rows.matrix[:, self._place].tolist()]
        return in_turns(times, groups, self._arms, self._salt, self._period)


class _Rule:
    """One cohort, with its values as rows bring them."""

    def __init__(
        self, cohort: Cohort, edition: EndpointEdition, signature: Signature | None
    ) -> None:
        self._header = cohort.header.encode()
        self._field = cohort.field
        self._unit = cohort.field == edition.unit
        self._time = cohort.field == edition.time
        self._words: frozenset[Any] = frozenset(cohort.values)
        self._place = -1
        self._dtype = ""
        self._numbers: npt.NDArray[np.float64] | None = None
        if cohort.header:
            self._words = frozenset(value.encode() for value in cohort.values)
        elif self._time:
            self._words = frozenset(_times(cohort.values))
        elif signature is not None and cohort.field in signature.names:
            self._place = signature.names.index(cohort.field)
            self._dtype = signature.inputs[self._place].dtype
            if signature.numeric:
                # NaN stands behind them for all that is greater, and is equal to nothing.
                self._numbers = np.append(np.sort(list(_numbers(cohort.values))), np.nan)

    def met(self, rows: Rows) -> list[int]:
        """List the places of the rows that meet it: mostly none, so that finding none must be quick."""
        words = self._words
        if self._header:
            header = self._header
            edges = rows.edges
            return [
                place
                for k, headers in enumerate(rows.headers)
                if headers and (sent := headers.get(header)) is not None and sent.strip() in words
                for place in range(edges[k], edges[k + 1])
            ]
        if self._unit or self._time:
            brought: Sequence[Any] = rows.units if self._unit else rows.times
            return [k for k, value in enumerate(brought) if value in words]
        if self._place < 0:
            return []
        column = rows.matrix[:, self._place]
        numbers = self._numbers
        if numbers is not None:
            met: list[int] = (
                (numbers[numbers[:-1].searchsorted(column)] == column).nonzero()[0].tolist()
            )
            return met
        dtype = self._dtype
        return [k for k, value in enumerate(column.tolist()) if text_of(value, dtype) in words]


def _times(values: Sequence[str]) -> Iterator[int]:
    for value in values:
        try:
            yield event_time(value)
        except InvalidInput:
            continue  # told when the plan was written; such a value is met by no row


def _numbers(values: Sequence[str]) -> Iterator[float]:
    for value in values:
        try:
            yield float({"true": "1", "false": "0"}.get(value, value))
        except ValueError:
            continue  # as above
