"""Endpoints, traffic plans and rollouts: where a decision is made, by whom, and how that changes."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value

BUCKETS = 10_000
"""Weights are whole numbers of this many buckets (a hundredth of a per cent each)."""

LogLevel = Literal["sync", "group", "sampled"]
RolloutState = Literal["running", "paused", "promoted", "refused", "rolled back"]


class Endpoint(Record, frozen=True, kw_only=True):
    """A decision point: the name that applications call."""

    TABLE = "endpoints"
    KEY = ("name",)

    name: str
    model: str
    unit: str = ""
    """The request field that assignment sticks to; empty: the decision id."""
    time: str = ""
    """The request field with the decision's event time; empty: the time of arrival."""
    log: LogLevel = "sync"
    label_delay: Time
    created: Time
    revision: int = 1


class Arm(Value, frozen=True, kw_only=True):
    """One version that may answer, with its share of the buckets."""

    name: str
    model: str
    version: int
    artefact: Digest
    weight: int = 0
    """Buckets out of 10,000."""


class TrafficPlan(Record, frozen=True, kw_only=True):
    """Who answers an endpoint. Immutable: a change is the next revision, and adding it is the compare-and-swap."""

    TABLE = "traffic_plans"
    KEY = ("endpoint", "revision")

    endpoint: str
    revision: int
    arms: tuple[Arm, ...]
    """Arms that answer; their weights add up to 10,000."""
    mirrors: tuple[Arm, ...] = ()
    """Arms that see every request after the reply and never answer."""
    fallback: str = ""
    """Arm that answers when the chosen one fails."""
    salt: str
    reason: str
    by: str
    created: Time


class Rollout(Record, frozen=True, kw_only=True):
    """A change of traffic under way: a strategy that reads evidence and writes the next plan."""

    TABLE = "rollouts"
    KEY = ("id",)
    INDEX: ClassVar = (("endpoint", "state"),)

    id: str
    endpoint: str
    model: str
    strategy: str
    champion: int | None = None
    challenger: int
    state: RolloutState
    settings: dict[str, str | int | float | bool] = {}
    memory: dict[str, str | int | float | bool | None] = {}
    """What the strategy carries from look to look, so that any process can go on."""
    reason: str = ""
    evidence: Digest = ""
    """Envelope of the verdict."""
    since: Time
    """Event time from which predictions count."""
    started: Time
    ended: Time | None = None
    revision: int = 1

    @property
    def change(self) -> str:
        """Say from which version to which, in short."""
        before = "" if self.champion is None else f"v{self.champion} -> "
        return f"{before}v{self.challenger}"
