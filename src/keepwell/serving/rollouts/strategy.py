"""What a strategy is: a pure controller that looks at what was observed and says what the next traffic plan is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.ports.rollouts import Gain
from keepwell.core.records.traffic import (
    BUCKETS,
    Arm,
    Cohort,
    Gap,
    LinearPolicyState,
    Period,
    TrafficPlan,
)
from keepwell.core.settings import Count, Limit, Share, Values
from keepwell.serving.rollouts.history import Before, Known
from keepwell.serving.rollouts.observations import Observations

CHAMPION = "champion"
Conclusion = Literal["go on", "promote", "refuse", "roll back"]


class Rules(Values, frozen=True, kw_only=True):
    """What may be declared of every strategy; each has its own rules besides."""

    alpha: Share = 0.05
    """Chance of a wrong verdict, however often the rollout is looked at."""
    min_rows: Count = 500
    """Decisions of the challenger (with their labels, where it is compared by them) before any promotion."""
    max_days: Limit = 28.0
    """A challenger that has not won by then is refused; days of event time."""

    def looked_at(self) -> tuple[str, ...]:
        """Name the numeric features that these rules ask for, where the strategy does not look at all."""
        return ()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy knows of its rollout beside the observations."""

    champion: Arm | None
    challengers: tuple[Arm, ...]
    """Named ``challenger``, ``challenger-2``, ... """
    rules: Any
    """The strategy's own rules."""
    memory: Mapping[str, Any] = {}
    """What it carried over from its last look."""
    plan: int = 0
    """Revision of the plan in force; 0 before the first look."""
    unit: str = ""
    """The request's field that assignment sticks to; empty: each decision by itself."""
    fields: tuple[str, ...] = ()
    """The numeric features, in the order of ``Observations.features``."""
    label_delay: Time = 0
    default: float | None = None
    """What a decision without an outcome counts as once its label's delay is over."""
    gain: Gain
    plan_of: Callable[[int], TrafficPlan | None] = lambda _: None
    """Gives a plan of the endpoint by its revision: what chance gave each arm under it."""
    money: Gain | None = None
    """The project's KPI; none where the model has none."""
    task: str = ""
    """Of the challenger's model: binary, multiclass, regression; empty: not known."""
    numeric: tuple[str, ...] = ()
    """All its numeric features."""
    known: Known | None = None
    """What the log showed of the days before the rollout; none: nothing."""
    before: Before | None = None
    """What units were worth before, where the rules ask for it."""

    @property
    def challenger(self) -> Arm:
        """Give the first challenger: for most strategies the only one."""
        return self.challengers[0]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy concludes: who answers and who is mirrored now, and whether it is over."""

    arms: tuple[Arm, ...]
    mirrors: tuple[Arm, ...] = ()
    cohorts: tuple[Cohort, ...] = ()
    policy: LinearPolicyState | None = None
    period: Period | None = None
    gap: Gap = "refuse"
    gap_seconds: float = 0.0
    verdict: Conclusion = "go on"
    winner: int = 0
    """Version that is promoted."""
    reason: str = ""
    next: str = ""
    """What would happen next, and when."""
    measured: dict[str, Any] = {}
    memory: dict[str, Any] = {}


class Strategy(Protocol):
    """A controller. Pure: the same state, observations, time and random numbers give the same answer."""

    rules: type[Rules]
    features: bool
    """Whether it looks at the numeric features."""

    def problems(self, state: State) -> list[str]:
        """Tell what is wrong with a declaration, before anything changes."""
        ...

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """Look at what was seen, the first time at nothing; may be called as often as one likes."""
        ...


def alone(arm: Arm) -> tuple[Arm, ...]:
    """Let one arm answer everything."""
    return (msgspec.structs.replace(arm, name=CHAMPION, weight=BUCKETS),)


def promoted(arm: Arm, reason: str, measured: dict[str, Any] | None = None) -> Answer:
    """Make an arm the champion."""
    return Answer(
        arms=alone(arm),
        verdict="promote",
        winner=arm.version,
        reason=reason,
        measured=measured or {},
    )


def returned(
    state: State,
    verdict: Literal["refuse", "roll back"],
    reason: str,
    measured: dict[str, Any] | None = None,
) -> Answer:
    """Give all traffic back to the champion."""
    return Answer(
        arms=alone(state.champion) if state.champion else (),
        verdict=verdict,
        reason=reason,
        measured=measured or {},
    )


def split(state: State, shares: Mapping[str, float]) -> tuple[Arm, ...]:
    """Part the buckets: each challenger's share by its name, the champion has the rest."""
    challengers = tuple(
        msgspec.structs.replace(arm, weight=round(BUCKETS * shares.get(arm.name, 0.0)))
        for arm in state.challengers
    )
    rest = BUCKETS - sum(arm.weight for arm in challengers)
    champion = (
        () if state.champion is None else (msgspec.structs.replace(state.champion, weight=rest),)
    )
    return (*champion, *challengers)


def days_seen(seen: Observations) -> float:
    """Tell how many days of event time have been observed."""
    return (seen.watermark - int(seen.time[0])) / DAY if len(seen) else 0.0


def spell_bounds(low: float, high: float) -> str:
    """Say an interval that holds at whatever look; while too little was seen there is none.

    >>> spell_bounds(-0.25, 1.5), spell_bounds(-float("inf"), float("inf"))
    ('-0.25 to 1.5, valid at any time', 'no bounds yet')
    """
    both = np.isfinite(low) and np.isfinite(high)
    return f"{low:.4g} to {high:.4g}, valid at any time" if both else "no bounds yet"


def finite(value: float) -> float | None:
    """Give a bound for JSON: none while it is infinite."""
    return value if np.isfinite(value) else None
