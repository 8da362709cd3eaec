"""Strategies: pure controllers that look at evidence and say what the next traffic plan is. One file each."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from keepwell.core.catalog import Catalog
from keepwell.core.clock import Time
from keepwell.core.records.traffic import Arm, Rollout

STRATEGIES = Catalog(
    "strategy",
    {
        "basic": "keepwell.serving.strategies.basic:Basic",
        "canary": "keepwell.serving.strategies.canary:Canary",
        "champion-challenger": "keepwell.serving.strategies.champion_challenger:ChampionChallenger",
    },
)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence so far: challenger minus champion, per decision, clustered by day.

    ``day_sums`` are the sums of the gain's difference over each complete day and ``day_rows`` their rows;
    ``errors`` and ``requests`` count the challenger's.
    """

    day_sums: tuple[float, ...] = ()
    day_rows: tuple[int, ...] = ()
    rows: int = 0
    requests: int = 0
    errors: int = 0
    champion_requests: int = 0
    champion_errors: int = 0
    since: Time = 0
    """Event time of the challenger's first decision."""
    event_time: Time = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy concludes: who answers and who is mirrored now, and whether it is over."""

    arms: tuple[Arm, ...]
    mirrors: tuple[Arm, ...] = ()
    verdict: Literal["go on", "promote", "refuse", "roll back"] = "go on"
    reason: str = ""
    measured: dict[str, Any] = {}


class Strategy(Protocol):
    """A controller. Pure: the same state, evidence and time give the same answer."""

    def begin(self, rollout: Rollout, champion: Arm | None, challenger: Arm) -> Answer:
        """Say how traffic is parted at the start."""
        ...

    def look(
        self, rollout: Rollout, champion: Arm | None, challenger: Arm, evidence: Comparison
    ) -> Answer:
        """Look at the evidence; may be called as often as one likes."""
        ...
