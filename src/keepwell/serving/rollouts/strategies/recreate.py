"""Recreate: the old version stops, then the new one starts. For models that must never answer side by side."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from keepwell.core.clock import Time, iso
from keepwell.core.records.rollouts import Expected
from keepwell.core.settings import Limit
from keepwell.serving.rollouts.forecasts import spell_days
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import Answer, Rules, State, promoted


class RecreateRules(Rules, frozen=True, kw_only=True):
    """What becomes of requests meanwhile."""

    gap: Literal["refuse", "hold"] = "hold"
    """``refuse``: 503 and Retry-After; ``hold``: they wait until the new version answers."""
    gap_seconds: Limit = 30.0
    """Longest wait of a request that is held."""
    down_seconds: Limit = 1.0
    """Nobody answers for this long, so that every worker has put the old version away."""


class Recreate:
    """Implements ``keepwell.serving.rollouts.strategy.Strategy``."""

    rules = RecreateRules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: RecreateRules = state.rules
        if rules.gap == "hold" and rules.gap_seconds <= rules.down_seconds:
            return [
                f"Requests would be held for {rules.gap_seconds:g} s, and nobody answers for {rules.down_seconds:g} s."
            ]
        return []

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: RecreateRules = state.rules
        days = rules.down_seconds / 86_400
        rows = known.per_day * days
        fate = (
            f"wait, {rules.gap_seconds:g} s at most"
            if rules.gap == "hold"
            else "are answered 503 with Retry-After"
        )
        said = (
            f"the gap: nobody answers for {spell_days(days)}, as declared, and until the look that follows."
            f" About {rows:,.3g} requests come meanwhile and {fate}; in a busy hour more."
        )
        return [
            Expected(
                of="gap", rows=math.ceil(rows), what="requests in the gap", days=days, said=said
            )
        ]

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del seen, rng
        rules: RecreateRules = state.rules
        up = int(state.memory.get("up", now + round(rules.down_seconds * 1_000_000)))
        if now >= up:
            return promoted(state.challenger, "the old version was stopped first, as declared")
        return Answer(
            arms=(),
            gap=rules.gap,
            gap_seconds=rules.gap_seconds if rules.gap == "hold" else 0.0,
            reason="the old version is stopped",
            next=f"the new version starts at {iso(up)}",
            memory={"up": up},
        )
