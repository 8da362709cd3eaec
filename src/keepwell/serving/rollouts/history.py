"""What an endpoint's log holds of the days before a rollout: how much traffic there is, and what units were worth.

It is read up to a cursor that the rollout remembers, so that any process, and a replay years later, comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.ports.rollouts import Gain
from keepwell.core.records.traffic import HOLDOUT
from keepwell.serving.log.columns import AnswerLog
from keepwell.serving.rollouts.evidence import by_unit, health
from keepwell.serving.rollouts.metrics import outcome_rows
from keepwell.serving.rollouts.observations import Bools, Floats, Gathering, Keys, Observations

LOOKED_BACK = "looked back"
"""What a rollout remembers: the part of the log that its covariates come from."""
DAYS = 14
"""As far back as is looked: two weeks hold each weekday twice."""
ROWS = 300_000
"""About as many records as are read; where more come in those days, fewer days are looked at."""
MOST_ROWS = 1_000_000
"""Nothing is read where more would have to be: a start must not take minutes."""
FAR: Time = 2**62
LEAST_ROWS = 100
LEAST_DAYS = 1.0
"""Below either, the traffic is not known well enough to refuse anything for it."""


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the log it is: event times from ``since``, records between two cursors."""

    since: Time
    begin: dict[str, int]
    until: dict[str, int]


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint's recent decisions show."""

    days: float
    """Event time from the first to the last of them."""
    decisions: int
    new_units: tuple[int, ...]
    """Units first seen on each of those days; the last may be a part of one."""
    errors: int
    """Decisions that failed, or that the fallback answered."""
    judged: int = 0
    """Units whose gain is known."""
    gain: float = 0.0
    """Mean of it."""
    spread: float = 0.0
    """Standard deviation of it."""
    zero_one: bool = False
    """Whether each unit's gain was 0 or 1, and both came."""
    decision_spread: float = 0.0
    """Standard deviation of the gain of one decision; 0: not known."""
    bunching: float = 1.0
    """Variance of what a unit's decisions add up to, of what it were if they were unrelated; 1 or more."""

    @property
    def sure(self) -> bool:
        """Tell whether it is enough to refuse a rollout for."""
        return self.decisions >= LEAST_ROWS and self.days >= LEAST_DAYS

    @property
    def per_day(self) -> float:
        """Decisions a day of event time."""
        return self.decisions / max(self.days, 1 / 24)

    @property
    def error_share(self) -> float:
        """Share of the decisions that failed."""
        return self.errors / self.decisions if self.decisions else 0.0

    def units_within(self, days: float) -> float:
        """Tell how many different units come within so many days: as came, then new ones as they came last."""
        come = np.concatenate([[0.0], np.cumsum(self.new_units)])
        reached = np.concatenate([np.arange(len(self.new_units)), [max(self.days, 1 / 24)]])
        if days <= reached[-1]:
            return float(np.interp(days, reached, come))
        return float(come[-1] + (days - reached[-1]) * self._new_a_day)

    def days_for_units(self, units: float) -> float:
        """Tell within how many days so many different units come; infinite if no new ones do."""
        low, high = 0.0, 1.0
        while self.units_within(high) < units:
            high *= 2
            if high > 1e6:
                return float("inf")
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.units_within(middle) < units else (low, middle)
        return high

    def bunching_within(self, days: float) -> float:
        """Tell the bunching over so many days: units that come oftener by then are more alike within."""
        units, known = self.units_within(days), self.units_within(self.days)
        if not units or not known:
            return self.bunching
        oftener = (self.per_day * days / units) / (self.decisions / known)
        return 1 + (self.bunching - 1) * max(oftener, 1.0)

    @property
    def _new_a_day(self) -> float:
        """New units a day, of the last half of the days that are known."""
        half = len(self.new_units) // 2
        last = max(self.days, 1 / 24) - half
        return sum(self.new_units[half:]) / max(last, 1 / 24)


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """The mean gain of each unit's decisions before a rollout, by the unit's key in growing order; shapes (k,)."""

    keys: Keys
    values: Floats

    def of(self, keys: Keys) -> Floats:
        """Give units' values; of those that were not there, the mean of all, which speaks for neither arm."""
        if not len(self.keys):
            return np.zeros(len(keys))
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.values[place], self.values.mean())


def reach_back(log: AnswerLog, endpoint: str, *, newest: Time) -> tuple[Reach, Observations] | None:
    """Read the last days of an endpoint's log; ``newest`` is the event time that is known of, 0 for none.

    None where too much would have to be read, because little of a great log has become Parquet yet.
    """
    days = float(DAYS)
    since = round(newest - days * DAY) if newest else 0
    # What is no Parquet yet is read whatever the days.
    unsorted = log.count_since(FAR)
    while newest and days > 1 / 24 and log.count_since(since) - unsorted > ROWS:
        days /= 2
        since = round(newest - days * DAY)
    if log.count_since(since) > MOST_ROWS:
        return None
    begin = log.past(since)
    gathering = Gathering(endpoint, cursor=begin, since_plan=0)
    while gathering.read(log):
        pass
    seen = gathering.observations()
    since = max(since, round(seen.watermark - days * DAY))
    reach = Reach(since=since, begin=begin, until=gathering.cursor)
    return reach, _within(seen, reach)


def read_again(log: AnswerLog, endpoint: str, reach: Reach) -> Observations:
    """Read the same part of the log again, bit for bit."""
    gathering = Gathering(endpoint, cursor=reach.begin, since_plan=0)
    while gathering.read(log, until=reach.until):
        pass
    return _within(gathering.observations(), reach)


def _within(seen: Observations, reach: Reach) -> Observations:
    # Who was held out is so still, mostly: a rollout cannot count on those units.
    return seen.pick((seen.time >= reach.since) & ~seen.mirror & ~seen.of(HOLDOUT))


def known_of(
    seen: Observations,
    *,
    gain: Gain,
    label_delay: Time,
    default: float | None,
    attribution: Time,
) -> Known | None:
    """Sum up what was seen; nothing without decisions."""
    if not len(seen):
        return None
    first = int(seen.time[0])
    asked = [health(seen, name) for name in seen.names]
    _, place = np.unique(seen.unit, return_index=True)
    day = (seen.time[place] - first) // DAY
    days = (seen.watermark - first) // DAY + 1
    whole = by_unit(seen, label_delay=label_delay, attribution=attribution, default=default)
    # Whoever answered: the arms of earlier rollouts are not told apart.
    rows = _gains(whole.drawn, whole.outcome, gain)
    worth = whole.values(rows, seen.names)
    values = np.concatenate([each.values for each in worth.values()] or [np.zeros(0)])
    some = len(values) >= 2
    spread, bunching = _decisions(seen, gain=gain, label_delay=label_delay, default=default)
    return Known(
        days=(seen.watermark - first) / DAY,
        decisions=sum(each.requests for each in asked),
        new_units=tuple(np.bincount(day, minlength=days).tolist()),
        errors=sum(each.errors for each in asked),
        judged=len(values),
        gain=float(values.mean()) if len(values) else 0.0,
        spread=float(values.std(ddof=1)) if some else 0.0,
        zero_one=some and set(np.unique(values).tolist()) == {0.0, 1.0},
        decision_spread=spread,
        bunching=bunching,
    )


def _decisions(
    seen: Observations, *, gain: Gain, label_delay: Time, default: float | None
) -> tuple[float, float]:
    """Give how much the gains of decisions spread, and how much more a unit's decisions do together."""
    rows, known = _gains_known(seen, gain=gain, label_delay=label_delay, default=default)
    if known.sum() < 2:
        return 0.0, 1.0
    apart = rows[known] - rows[known].mean()
    squares = float((apart**2).sum())
    if not squares:
        return 0.0, 1.0
    _, place = np.unique(seen.unit[known], return_inverse=True)
    together = float((np.bincount(place, weights=apart) ** 2).sum())
    return math.sqrt(squares / (len(apart) - 1)), max(together / squares, 1.0)


def _gains(seen: Observations, outcome: Floats, gain: Gain) -> Floats:
    """Give what decisions were worth; nothing where the project's rule does not take what was logged in those days."""
    try:
        return outcome_rows(seen, outcome, gain)
    except ValueError:
        return np.full(len(seen), np.nan)


def before_of(
    seen: Observations, *, gain: Gain, label_delay: Time, default: float | None
) -> Before:
    """Average the gain of each unit's decisions."""
    rows, known = _gains_known(seen, gain=gain, label_delay=label_delay, default=default)
    keys, place = np.unique(seen.unit[known], return_inverse=True)
    total = np.bincount(place, weights=rows[known], minlength=len(keys))
    return Before(keys=keys, values=total / np.bincount(place, minlength=len(keys)))


def _gains_known(
    seen: Observations, *, gain: Gain, label_delay: Time, default: float | None
) -> tuple[Floats, Bools]:
    """Give what decisions were worth, and of which that is known."""
    outcome = seen.outcome
    if default is not None:
        outcome = np.where(np.isnan(outcome), default, outcome)
    rows = _gains(seen, outcome, gain)
    # Later ones would be those that are labelled soon.
    return rows, ~np.isnan(rows) & (seen.time + label_delay <= seen.watermark)


def reach_of(memory: Mapping[str, Any]) -> Reach | None:
    """Give the part of the log that a rollout remembers; none if it keeps no such thing."""
    found = memory.get(LOOKED_BACK)
    return None if found is None else msgspec.convert(found, Reach)
