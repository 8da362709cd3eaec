"""What strategies ask of the observations: health of an arm, paired days, values by unit, differences of answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.clock import DAY, Time
from keepwell.core.ports.rollouts import Gain
from keepwell.serving.log.batches import ERROR
from keepwell.serving.rollouts.observations import (
    Bools,
    Floats,
    Ints,
    Keys,
    Observations,
)
from keepwell.stats.rate_comparison import RateComparison


class Health(msgspec.Struct, frozen=True):
    """How an arm answered what it was assigned (a mirror: what it was shown)."""

    requests: int
    errors: int
    """Failed, or answered by the fallback in its place."""


def health(seen: Observations, name: str, *, plan: int | None = None) -> Health:
    """Count an arm's requests and errors, of all plans or of one."""
    rows = seen.of(name)
    if plan is not None:
        rows &= seen.plan == plan
    return Health(int(rows.sum()), int((rows & seen.failed).sum()))


class Errors(msgspec.Struct, frozen=True):
    """Errors of two arms under one share of the traffic."""

    plan: int
    share: float
    """Of the challenger, of the requests that both were assigned."""
    requests: int
    errors: int
    champion_requests: int
    champion_errors: int


def errors_by_plan(seen: Observations, champion: str, challenger: str) -> list[Errors]:
    """Count both arms' errors under each plan in which both answered, with the challenger's share of the requests.

    It is the share that came, not the plan's: units stay with their arm, and few busy ones can make a twentieth of the
    units a twelfth of the requests, whose errors would then look like too many.
    """
    drawn = ~seen.mirror & ~seen.placed
    mine, other = drawn & seen.of(challenger), drawn & seen.of(champion)
    failed = seen.failed
    found = []
    for plan in np.unique(seen.plan[mine]).tolist():
        here = seen.plan == plan
        ours, theirs = mine & here, other & here
        requests, beside = int(ours.sum()), int(theirs.sum())
        if not beside:
            continue
        found.append(
            Errors(
                plan,
                requests / (requests + beside),
                requests,
                int((ours & failed).sum()),
                beside,
                int((theirs & failed).sum()),
            )
        )
    return found


def error_comparison(
    seen: Observations, champion: str, challenger: str, *, alpha: float
) -> RateComparison:
    """Test whether a challenger makes more errors than the champion, valid at any look."""
    test = RateComparison(alpha=alpha, side="greater")
    for each in errors_by_plan(seen, champion, challenger):
        if each.errors or each.champion_errors:
            test = test.update(
                treatment_events=each.errors,
                control_events=each.champion_errors,
                treatment_share=each.share,
            )
    return test


class PairedDays(msgspec.Struct, frozen=True):
    """Challenger minus champion on the same decisions, by whole day."""

    sums: Floats
    """Of the difference in gain over each day, shape (days,)."""
    rows: Ints


def paired_days(
    seen: Observations, champion: str, challenger: str, *, gain: Gain, label_delay: Time
) -> PairedDays:
    """Compare two arms on the decisions that both answered, one of them beside the reply.

    Only whole days count, and only once their labels have had time to come: half a day would let the order of the
    labels decide.
    """
    at, outcome, ours, theirs, _ = _pairs(seen, champion, challenger)
    # A day is over once the newest decision is a label's delay past its end.
    whole = (at // DAY < (seen.watermark - label_delay) // DAY) & ~np.isnan(outcome)
    whole &= ~(np.isnan(ours) | np.isnan(theirs))
    if not whole.any():
        return PairedDays(np.zeros(0), np.zeros(0, dtype=np.int64))
    difference = np.asarray(gain(ours[whole], outcome[whole]), dtype=np.float64)
    difference = difference - np.asarray(gain(theirs[whole], outcome[whole]), dtype=np.float64)
    days, place = np.unique(at[whole] // DAY, return_inverse=True)
    return PairedDays(
        np.bincount(place, weights=difference, minlength=len(days)).astype(np.float64),
        np.bincount(place, minlength=len(days)),
    )


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """The units that chance gave to arms, each with its decisions: what a test by unit is made from.

    A unit enters once, when its time and a label's delay are over: so units are independent of one another, which is
    what the tests ask for. Arrays by row have shape (n,), those by unit (k,).
    """

    drawn: Observations
    """The rows that chance assigned."""
    outcome: Floats
    """By row, with the default where none came."""
    place: Ints
    """By row: its unit."""
    inside: Bools
    """By row: within its unit's time, which is over, the unit having stayed with one arm."""
    keys: Keys
    """By unit, growing."""
    first: Ints
    """By unit: its first row."""
    arm: Ints
    """By unit: place among ``drawn.names``."""
    strayed: Bools
    """By unit: more than one arm has answered it; it counts nowhere."""
    order: Ints
    """Units in the order in which they began."""

    def assigned(self, name: str) -> int:
        """Count the units that an arm was given, whether or not their outcomes are known."""
        return int((self._of(name) & ~self.strayed).sum())

    def values(
        self, rows: Floats, names: tuple[str, ...], *, mean: bool = False
    ) -> dict[str, Worths]:
        """Sum (or average) a number of the rows, NaN where it is not known, over each unit, by arm."""
        inside = self.inside & ~np.isnan(rows)
        place = self.place[inside]
        decisions = np.bincount(place, minlength=len(self.keys))
        summed = np.bincount(place, weights=rows[inside], minlength=len(self.keys))
        total: Floats = summed.astype(np.float64)
        if mean:
            total = total / np.maximum(decisions, 1)
        found = {}
        for name in names:
            whole = self.order[(self._of(name) & (decisions > 0))[self.order]]
            found[name] = Worths(total[whole], self.keys[whole])
        return found

    def _of(self, name: str) -> Bools:
        mine: Bools = self.arm == self.drawn.place(name)
        return mine


class Worths(msgspec.Struct, frozen=True):
    """Numbers of an arm's units, in the order in which they began; shapes (n,)."""

    values: Floats
    keys: Keys

    def __len__(self) -> int:
        return len(self.values)


def by_unit(
    seen: Observations,
    *,
    label_delay: Time,
    attribution: Time,
    default: float | None = None,
) -> Units:
    """Put rows to their units; each is judged by ``attribution`` (microseconds) from its first decision.

    A decision without an outcome counts as ``default``, or, if there is none, not at all.
    """
    drawn = seen.pick(~seen.mirror & ~seen.placed & (seen.status <= ERROR))
    keys, first, place = np.unique(drawn.unit, return_index=True, return_inverse=True)
    start = drawn.time[first]  # rows are in the order of time
    arm = drawn.arm[first]
    strayed = np.zeros(len(keys), dtype=np.bool_)
    strayed[place[drawn.arm != arm[place]]] = True
    over = start + attribution + label_delay <= seen.watermark
    outcome = drawn.outcome
    if default is not None:
        outcome = np.where(np.isnan(outcome), default, outcome)
    inside = drawn.time < start[place] + max(attribution, 1)
    return Units(
        drawn=drawn,
        outcome=outcome,
        place=place,
        inside=inside & over[place] & ~strayed[place],
        keys=keys,
        first=first,
        arm=arm,
        strayed=strayed,
        order=np.lexsort((keys, start)),
    )


class Rewards(msgspec.Struct, frozen=True):
    """What each decision earned, in the order of event time; columns of shape (n,)."""

    arm: Ints
    """Place among the names that were asked for."""
    reward: Floats
    propensity: Floats
    plan: Ints
    unit: Keys
    features: Floats
    """Shape (n, d)."""


def rewards(
    seen: Observations,
    names: tuple[str, ...],
    *,
    gain: Gain,
    label_delay: Time,
    default: float | None = None,
) -> Rewards:
    """List what decisions earned that chance assigned, once a label's delay is over.

    Before that, those that are labelled soon would stand for all. A decision without an outcome counts as
    ``default``, or, if there is none, not at all.
    """
    places = np.full(max(len(seen.names), 1), -1, dtype=np.int64)
    for k, name in enumerate(names):
        if name in seen.names:
            places[seen.place(name)] = k
    outcome = seen.outcome
    if default is not None:
        outcome = np.where(np.isnan(outcome), default, outcome)
    rows = seen.counts & ~seen.mirror & ~seen.placed & (places[seen.arm] >= 0)
    rows &= ~np.isnan(outcome) & ~np.isnan(seen.output)
    rows &= seen.time + label_delay <= seen.watermark
    known = seen.pick(rows)
    worth = np.zeros(0)
    if len(known):
        worth = np.asarray(gain(known.output, outcome[rows]), dtype=np.float64)
    return Rewards(
        places[known.arm], worth, known.propensity, known.plan, known.unit, known.features
    )


class Differences(msgspec.Struct, frozen=True):
    """How a mirror's answers differ from those that were sent."""

    pairs: int
    disagreed: int
    """Pairs further apart than the tolerance."""
    shift: float
    """Mean of the mirror's answers minus those sent."""
    largest: float
    worst: tuple[dict[str, Any], ...]
    """Slices of the features with the highest rates of disagreement."""
    examples: tuple[dict[str, Any], ...]
    """The decisions furthest apart."""


def differences(
    seen: Observations,
    champion: str,
    challenger: str,
    *,
    tolerance: float,
    fields: tuple[str, ...] = (),
    examples: int = 5,
) -> Differences:
    """Compare a mirror's answers with those that were sent, decision by decision."""
    at, _, ours, theirs, features = _pairs(seen, champion, challenger)
    known = ~(np.isnan(ours) | np.isnan(theirs))
    at, ours, theirs, features = at[known], ours[known], theirs[known], features[known]
    if not len(at):
        return Differences(0, 0, 0.0, 0.0, (), ())
    apart = np.abs(ours - theirs)
    disagreed = apart > tolerance
    furthest = np.lexsort((at, -apart))[:examples]
    return Differences(
        pairs=len(at),
        disagreed=int(disagreed.sum()),
        shift=float((ours - theirs).mean()),
        largest=float(apart.max()),
        worst=tuple(_worst(features, fields, disagreed)),
        examples=tuple(
            {
                "time": int(at[k]),
                "sent": float(theirs[k]),
                "mirrored": float(ours[k]),
                "features": {
                    name: None if np.isnan(features[k, j]) else float(features[k, j])
                    for j, name in enumerate(fields)
                },
            }
            for k in furthest.tolist()
        ),
    )


def _worst(
    features: Floats, fields: tuple[str, ...], disagreed: Bools, *, least: int = 30, most: int = 5
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for j, name in enumerate(fields):
        column = features[:, j]
        known = ~np.isnan(column)
        edges: list[float] = []
        if known.any():
            edges = np.unique(np.quantile(column[known], np.linspace(0, 1, 5))).tolist()
        slices: list[tuple[str, npt.NDArray[np.bool_]]] = [
            (
                f"{low:g} to {high:g}",
                known & (column >= low) & ((column < high) | (high == edges[-1])),
            )
            for low, high in pairwise(edges)
        ]
        slices.append(("missing", ~known))
        for values, rows in slices:
            if rows.sum() >= least:
                rate = float(disagreed[rows].mean())
                found.append(
                    {"field": name, "values": values, "rows": int(rows.sum()), "disagreed": rate}
                )
    return sorted(found, key=lambda each: -each["disagreed"])[:most]


def _pairs(
    seen: Observations, champion: str, challenger: str
) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """Give, of decisions that both answered: time, outcome, the mirror's answer, the one sent, the features."""
    sent = np.flatnonzero(seen.counts & ~seen.mirror & (seen.by == seen.place(champion)))
    shown = np.flatnonzero(seen.counts & seen.mirror & (seen.by == seen.place(challenger)))
    _, ours, theirs = np.intersect1d(
        seen.decision[shown], seen.decision[sent], return_indices=True, assume_unique=True
    )
    order = np.argsort(sent[theirs], kind="stable")
    mine, other = shown[ours[order]], sent[theirs[order]]
    return (
        seen.time[other],
        seen.outcome[other],
        seen.output[mine],
        seen.output[other],
        seen.features[other],
    )
