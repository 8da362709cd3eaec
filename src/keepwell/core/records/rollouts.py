"""Rollouts: changes of traffic under way, and every look that led to one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value
from keepwell.core.records.traffic import Arm, TrafficPlan

RolloutState = Literal["running", "paused", "promoted", "refused", "rolled back"]
OPEN: tuple[RolloutState, ...] = ("running", "paused")
"""States in which a rollout has not ended."""


class Rollout(Record, frozen=True, kw_only=True):
    """A change of traffic under way: strategies, one after the other, that read evidence and write the next plan."""

    TABLE = "rollouts"
    KEY = ("id",)
    INDEX: ClassVar = (("endpoint", "state"),)
    ADDED: ClassVar = (
        "others",
        "stages",
        "stage",
        "since_plan",
        "winner",
        "looks",
        "makes_champion",
    )

    id: str
    endpoint: str
    model: str
    strategy: str
    """Of the stage under way."""
    champion: int | None = None
    challenger: int
    others: tuple[int, ...] = ()
    """Further challengers, where a strategy compares several."""
    stages: tuple[str, ...] = ()
    """Strategies that a version goes through, one after the other."""
    stage: int = 0
    """Place in ``stages``."""
    state: RolloutState
    settings: dict[str, Any] = {}
    """The rules of each stage, complete."""
    memory: dict[str, Any] = {}
    """What the strategy carries from look to look, and where reading began, so that any process can go on.

    ``known`` and ``forecast`` are what the days before it showed, and what was foretold from them, a stage each.
    """
    since_plan: int = 0
    """Revision of the plan with which the stage began: what was served under earlier ones is not its evidence."""
    looks: int = 0
    """Looks kept so far."""
    makes_champion: bool = False
    """Whether its end moves the alias; an activation does that itself, when all its steps have passed."""
    winner: int | None = None
    """Version that was promoted."""
    reason: str = ""
    """Why it ended; while it is under way, why it cannot go on, if it cannot."""
    evidence: Digest = ""
    """Envelope of the verdict."""
    since: Time
    """Event time from which predictions count."""
    started: Time
    ended: Time | None = None
    revision: int = 1

    @property
    def challengers(self) -> tuple[int, ...]:
        """List all challengers."""
        return (self.challenger, *self.others)

    @property
    def way(self) -> tuple[str, ...]:
        """List the strategies of all stages."""
        return self.stages or (self.strategy,)

    @property
    def forecast(self) -> tuple[Forecast, ...]:
        """Give what was foretold when it began, a stage each; nothing of one that an earlier version began."""
        return msgspec.convert(self.memory.get("forecast", ()), tuple[Forecast, ...])

    @property
    def change(self) -> str:
        """Say from which version to which, in short."""
        before = "" if self.champion is None else f"v{self.champion} -> "
        return before + ", ".join(f"v{version}" for version in self.challengers)


class Look(Record, frozen=True, kw_only=True):
    """What a strategy saw and said at one moment: enough to compute it again from the log."""

    TABLE = "rollout_looks"
    KEY = ("rollout", "number")
    AUDITED: ClassVar = False

    rollout: str
    number: int
    stage: int
    at: Time
    event_time: Time
    rows: int
    """Logged answers that it was about."""
    cursor: dict[str, int]
    """How far the log had been read."""
    memory: dict[str, Any]
    """What the strategy carried into it."""
    plan: int
    """Revision of the plan that was in force."""
    written: int
    """Revision of the plan in force afterwards."""
    arms: tuple[Arm, ...]
    verdict: str
    reason: str
    next: str
    measured: dict[str, Any]
    answer: Digest
    """Of the whole answer, so that it can be told whether it was computed again to the last bit."""


class Delay(Value, frozen=True, kw_only=True):
    """How soon an arm with so many errors would be found."""

    error_share: float
    median_seconds: float | None
    """None: in fewer than half of such rollouts."""
    p90_seconds: float | None = None


class Expected(Value, frozen=True, kw_only=True):
    """One step of a rollout, or its verdict: what it needs and how long that takes."""

    of: str
    """Which step or verdict."""
    rows: int
    what: str
    """What is counted: decisions, pairs, units."""
    days: float | None
    """Until so many have come; None: never."""
    effect: float | None = None
    """The difference that the verdict is about."""
    power: float | None = None
    """Chance to find it in time."""
    median_days: float | None = None
    """Days after which half of such rollouts have ended; None: fewer than half do."""
    delays: tuple[Delay, ...] = ()
    said: str
    """All that, in words."""


class Forecast(Value, frozen=True, kw_only=True):
    """What one stage of a rollout will need."""

    stage: str
    expected: tuple[Expected, ...] = ()
    notes: tuple[str, ...] = ()


class Preview(Value, frozen=True, kw_only=True):
    """How a rollout would begin, and what it would need; nothing was changed."""

    before: TrafficPlan | None
    """The traffic plan in force."""
    after: TrafficPlan
    """The one that the rollout would write."""
    forecast: tuple[Forecast, ...]
    """A stage each."""
