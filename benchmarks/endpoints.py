"""An endpoint of numbers that real controllers steer: units that return, labels that come late, arms that fail.

What happens is drawn beforehand, for every arm (`Traffic`); the plan in force decides which arm's part of it is logged.
Units are assigned, and turns drawn, by the gateway's own hash. So a controller is asked as its driver asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.records.traffic import BUCKETS, Arm, TrafficPlan
from keepwell.serving.desk.assign import buckets_of, in_turns, laid_out
from keepwell.serving.log.batches import ERROR, FALLBACK, OK
from keepwell.serving.rollouts.driver import content_said
from keepwell.serving.rollouts.history import Known, known_of
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.plans import next_plan
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, State, alone

START = 20_000 * DAY
NEVER = np.iinfo(np.int64).max


class Controller(Protocol):
    """A strategy, of which nothing is asked but what comes next."""

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See `keepwell.serving.rollouts.strategy.Strategy`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """n decisions and what each of K arms (the champion first) would make of them."""

    time: np.ndarray
    """Microseconds, growing; shape (n,)."""
    unit: np.ndarray
    """Number of the unit; shape (n,)."""
    output: np.ndarray
    """Shape (n, K)."""
    failed: np.ndarray
    """Shape (n, K)."""
    outcome: np.ndarray
    """Shape (n, K)."""
    labelled: np.ndarray
    """When the outcome becomes known, `NEVER` for those that are lost; shape (n,)."""


def arm(place: int) -> Arm:
    """Give an arm by its place, the champion first, named as rollouts name them."""
    name = CHAMPION if not place else "challenger" if place == 1 else f"challenger-{place}"
    return Arm(name=name, model="m", version=place + 1, artefact=f"sha256:{place}")


def state_of(rules: Any, *, arms: int = 2, **more: Any) -> State:
    """Give what a controller knows as its rollout begins."""
    given: dict[str, Any] = {
        "champion": arm(0),
        "challengers": tuple(arm(place) for place in range(1, arms)),
        "rules": rules,
        "unit": "user",
        "gain": lambda _, outcomes: outcomes,
    }
    return State(**(given | more))


@dataclass(frozen=True, kw_only=True)
class End:
    """How a rollout ended; `go on` if it had not by the last look."""

    verdict: str
    reason: str
    winner: int
    days: float
    """Of event time."""
    rows: int
    """Decisions, mirrored answers not counted."""


@dataclass(kw_only=True)
class Log:
    """Columns that grow look by look, as a controller gets to see them."""

    names: tuple[str, ...]
    room: int
    rows: int = 0
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make room."""
        whole = ("time", "arm", "by", "plan", "status", "labelled")
        self.columns = {name: np.zeros(self.room, dtype=np.int64) for name in whole}
        self.columns |= {
            name: np.zeros(self.room, dtype=np.uint64) for name in ("decision", "unit")
        }
        self.columns |= {name: np.zeros(self.room) for name in ("propensity", "output", "outcome")}
        self.columns["mirror"] = np.zeros(self.room, dtype=np.bool_)
        self._none = np.zeros(self.room, dtype=np.bool_)
        self._hashed: np.ndarray | None = None
        self._fast = np.full(self.room, 0.01)

    def add(self, traffic: Traffic, rows: slice, plan: TrafficPlan) -> None:
        """Log what the arms of a plan make of some decisions."""
        time = traffic.time[rows]
        if not time.size:
            return
        unit, at = traffic.unit[rows], np.arange(traffic.time.size)[rows]
        places = np.array([each.version - 1 for each in plan.arms])
        if plan.period is not None:
            drawn = in_turns(time.tolist(), (), plan.arms, plan.salt, plan.period)
        else:
            edges, laid = laid_out(plan.arms)
            drawn = laid[edges.searchsorted(self._buckets(traffic, plan.salt)[unit], side="right")]
        chosen = places[drawn]
        weight = np.array([each.weight for each in plan.arms]) / BUCKETS
        failed = traffic.failed[at, chosen]
        others = failed & (chosen != 0) & any(each.name == plan.fallback for each in plan.arms)
        by = np.where(others, 0, chosen)
        lost = np.where(others, traffic.failed[at, 0], failed)
        status = np.where(lost, ERROR, np.where(others, FALLBACK, OK))
        parts = [(chosen, by, status, weight[drawn], False)]
        for each in plan.mirrors:
            place = np.full(time.size, each.version - 1)
            missed = np.where(traffic.failed[at, place], ERROR, OK)
            parts.append((place, place, missed, np.ones(time.size), True))
        many = len(parts)
        for k, (assigned_to, answered, how, chance, mirror) in enumerate(parts):
            into = slice(self.rows + k, self.rows + many * time.size, many)
            named = (
                {"arm": assigned_to, "by": answered} if not mirror else self._mirrored(plan, k - 1)
            )
            given = {
                "time": time, "plan": plan.revision, "status": how, "labelled": traffic.labelled[rows],
                "decision": at, "unit": unit, "propensity": chance, "mirror": mirror,
                "output": np.where(how == ERROR, np.nan, traffic.output[at, answered]),
                "outcome": traffic.outcome[at, answered],
            }  # fmt: skip
            for name, column in (given | named).items():
                self.columns[name][into] = column
        self.rows += many * time.size

    def _buckets(self, traffic: Traffic, salt: str) -> np.ndarray:
        """Hash each unit once, as the gateway does."""
        if self._hashed is None:
            come = np.unique(traffic.unit)
            self._hashed = np.zeros(int(come[-1]) + 1, dtype=np.uint64)
            self._hashed[come] = buckets_of([str(unit) for unit in come.tolist()], salt.encode())
        return self._hashed

    def _mirrored(self, plan: TrafficPlan, k: int) -> dict[str, int]:
        place = self.names.index(plan.mirrors[k].name)
        return {"arm": place, "by": place}

    def seen(self, now: Time) -> Observations:
        """Give what is known by then."""
        n = self.rows
        of = {name: column[:n] for name, column in self.columns.items()}
        labelled = of.pop("labelled")
        own = of["time"][~of["mirror"]]
        return Observations(
            names=self.names,
            arrived=of["time"],
            placed=self._none[:n],
            latency=self._fast[:n],
            counts=of["status"] < ERROR,
            features=np.zeros((n, 0)),
            groups=np.zeros((n, 0), dtype=np.uint64),
            watermark=int(own[-1]) if own.size else 0,
            **(of | {"outcome": np.where(labelled <= now, of["outcome"], np.nan)}),
        )


def steer(
    controller: Controller, state: State, traffic: Traffic, looks: Iterable[Time], *, seed: str
) -> End:
    """Let a controller look at these times, until it has a verdict; its plans decide who answers."""
    arms = 1 + len(state.challengers)
    names = (*(arm(place).name for place in range(arms)), "challenger-mirror")
    log = Log(names=names, room=traffic.time.size * arms)
    rng = np.random.default_rng(0)
    assert state.champion is not None
    plan = TrafficPlan(
        endpoint="e", revision=1, arms=alone(state.champion), salt=seed, reason="", by="", created=0
    )
    answer = controller.plan(state, log.seen(START), START, rng)
    plans = {1: plan}
    done = 0
    for now in looks:
        plan = next_plan(plan, "e", reason="", actor="", now=0, **content_said(answer))
        plans[plan.revision] = plan
        upto = int(np.searchsorted(traffic.time, now, side="right"))
        log.add(traffic, slice(done, upto), plan)
        done = upto
        memory = dict(state.memory) | answer.memory
        state = msgspec.structs.replace(state, memory=memory, plan=plan.revision, plan_of=plans.get)
        answer = controller.plan(state, log.seen(now), now, rng)
        if answer.verdict != "go on":
            break
    return End(
        verdict=answer.verdict,
        reason=answer.reason,
        winner=answer.winner,
        days=(now - START) / DAY,
        rows=done,
    )


def known_from(traffic: Traffic, state: State, *, attribution: Time = 0) -> Known:
    """Sum up days in which the champion answered alone, as a rollout does before it begins."""
    assert state.champion is not None
    log = Log(names=(CHAMPION,), room=traffic.time.size)
    plan = TrafficPlan(
        endpoint="e", revision=1, arms=alone(state.champion), salt="", reason="", by="", created=0
    )
    log.add(traffic, slice(0, traffic.time.size), plan)
    known = known_of(
        log.seen(int(traffic.time[-1])),
        gain=state.gain,
        label_delay=state.label_delay,
        default=state.default,
        attribution=attribution,
    )
    assert known is not None
    return known


def times(rng: np.random.Generator, *, days: float, per_day: float) -> np.ndarray:
    """Draw when decisions come: as many as chance will have, fewer of them at night."""
    n = rng.poisson(days * per_day)
    at = rng.random(n) * days
    # What would fall into the night is moved to another hour with the chance that it is quiet then.
    night = rng.random(n) < 0.6 * (0.5 + 0.5 * np.cos(2 * np.pi * at))
    at[night] = np.floor(at[night]) + rng.beta(4, 4, int(night.sum()))
    return START + np.sort(np.minimum(at, days) * DAY).astype(np.int64)


def visits(rng: np.random.Generator, n: int, *, units: int, spread: float = 1.0) -> np.ndarray:
    """Draw who comes: units of which some come far oftener than others (log-normal, sigma `spread`)."""
    busy = rng.lognormal(0.0, spread, units).cumsum()
    come: np.ndarray = np.searchsorted(busy, rng.random(n) * busy[-1])
    return come


def every(*, days: float, times_a_day: float) -> list[Time]:
    """List the moments at which a controller looks."""
    steps = round(days * times_a_day)
    return [START + round(k * DAY / times_a_day) for k in range(1, steps + 1)]


def promoted(found: list[End]) -> float:
    """Give the share of the rollouts that promoted a challenger."""
    return float(np.mean([each.verdict == "promote" for each in found]))


def stopped(found: list[End], because: str = "") -> float:
    """Give the share of those that gave the traffic back or refused, for a reason that begins so."""
    return float(
        np.mean(
            [
                each.verdict in {"roll back", "refuse"} and each.reason.startswith(because)
                for each in found
            ]
        )
    )


def median_days(found: list[End], verdict: str) -> float:
    """Give the days after which half of the rollouts had this verdict; infinite if fewer have."""
    return float(np.median([each.days if each.verdict == verdict else np.inf for each in found]))


Draw = Callable[[np.random.Generator], Traffic]


def ends(
    controller: Controller, state: State, draw: Draw, looks: Iterable[Time], *, runs: int, seed: int
) -> list[End]:
    """Roll out so many times, each in traffic of its own."""
    rng = np.random.default_rng(seed)
    at = list(looks)
    return [steer(controller, state, draw(rng), at, seed=f"{seed}/{run}") for run in range(runs)]
