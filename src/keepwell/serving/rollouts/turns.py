"""What turns of the arms were worth: where all traffic goes to one arm for a period, periods are what is compared."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.ports.rollouts import Gain
from keepwell.core.records.traffic import HOLDOUT
from keepwell.serving.log.batches import ERROR
from keepwell.serving.rollouts.observations import (
    Bools,
    Floats,
    Ints,
    Observations,
)
from keepwell.stats.switchback import SwitchbackSequence, switchback_sequence


class Turns(msgspec.Struct, frozen=True):
    """One mean a turn (a period, of one group), in the order of time; columns of shape (n,)."""

    start: Ints
    group: Ints
    season: Ints
    """Which period of its day it is."""
    arm: Ints
    """Place among the names that were asked for."""
    mean: Floats
    rows: Ints
    mixed: int
    """Turns in which more than one arm has answered; they are left out."""


class Turning(msgspec.Struct, frozen=True, kw_only=True):
    """How long turns are and what counts of them, in microseconds."""

    period: Time
    washout: Time
    """From a turn's start: what the one before left behind has gone by then."""


def worth_of_turns(
    seen: Observations,
    names: tuple[str, ...],
    turning: Turning,
    *,
    gain: Gain,
    label_delay: Time,
    default: float | None = None,
) -> Turns:
    """Average the gain of decisions by turn, once the turn and a label's delay are over."""
    outcome = seen.outcome
    if default is not None:
        outcome = np.where(np.isnan(outcome), default, outcome)
    rows = seen.counts & ~np.isnan(outcome) & ~np.isnan(seen.output)
    worth = np.zeros(len(seen))
    if rows.any():
        worth[rows] = gain(seen.output[rows], outcome[rows])
    return _turns(seen, names, turning, rows, worth, wait=label_delay)


def errors_of_turns(seen: Observations, names: tuple[str, ...], turning: Turning) -> Turns:
    """Give the share of errors by turn, once the turn is over."""
    failed = seen.failed
    rows = (seen.status <= ERROR) & (seen.counts | failed)
    return _turns(seen, names, turning, rows, failed.astype(np.float64), wait=0)


def compared(
    turns: Turns,
    arm: int,
    *,
    share: float,
    alpha: float,
    tuned_for: float,
    side: Literal["both", "lower"] = "both",
) -> SwitchbackSequence:
    """Compare an arm's turns with those of the first, of which it has the ``share`` by chance."""
    own = (turns.arm == arm) | (turns.arm == 0)
    return switchback_sequence(
        turns.mean[own],
        turns.start[own],
        turns.arm[own] > 0,
        share=share,
        rows=turns.rows[own],
        group=turns.group[own],
        season=turns.season[own],
        alpha=alpha,
        tuned_for=tuned_for,
        side=side,
    )


def _turns(
    seen: Observations,
    names: tuple[str, ...],
    turning: Turning,
    rows: Bools,
    value: Floats,
    *,
    wait: Time,
) -> Turns:
    # Whoever is held out takes part in nobody's turn.
    drawn = ~seen.mirror & ~seen.placed & ~seen.of(HOLDOUT)
    begin = seen.time // turning.period * turning.period
    first = int(seen.time[drawn].min()) if drawn.any() else 0
    # The turn in which the rollout began belongs to it in part only.
    inside = drawn & rows & (begin >= first)
    inside &= (seen.time - begin >= turning.washout) & (
        begin + turning.period + wait <= seen.watermark
    )
    places = np.full(max(len(seen.names), 1), -1, dtype=np.int64)
    for k, name in enumerate(names):
        if name in seen.names:
            places[seen.place(name)] = k
    inside &= places[seen.arm] >= 0  # whoever is held out has no turns
    group = np.zeros(len(seen), dtype=np.int64)
    if seen.groups.shape[1]:
        group = np.unique(seen.groups[:, 0], return_inverse=True)[1].astype(np.int64)
    arm = places[seen.arm[inside]]
    cells, place = np.unique(
        np.column_stack([begin[inside], group[inside]]), axis=0, return_inverse=True
    )
    n = len(cells)
    place = place.reshape(-1)
    count = np.bincount(place, minlength=n)
    mean = np.bincount(place, weights=value[inside], minlength=n) / np.maximum(count, 1)
    low, high = np.full(n, len(names)), np.full(n, -1)
    np.minimum.at(low, place, arm)
    np.maximum.at(high, place, arm)
    whole = low == high
    start = cells[:, 0]
    return Turns(
        start[whole],
        cells[whole, 1],
        (start % DAY // turning.period)[whole],
        low[whole],
        mean[whole],
        count[whole],
        int((~whole).sum()),
    )
