"""Shadow: the challenger sees live traffic and answers none; its answers are held against those that were sent."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import Time
from keepwell.core.records.rollouts import Expected
from keepwell.core.records.traffic import BUCKETS
from keepwell.core.settings import Limit, Share
from keepwell.serving.rollouts.evidence import differences, health
from keepwell.serving.rollouts.forecasts import expect_decisions, slow_decisions
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import (
    CHAMPION,
    Answer,
    Rules,
    State,
    alone,
    days_seen,
    promoted,
    returned,
)
from keepwell.stats.rate_limit import RateLimitTest


class ShadowRules(Rules, frozen=True, kw_only=True):
    """What is shown to the challenger, and how far its answers may differ."""

    share: Limit = 1.0
    """Share of the requests that are mirrored, by unit."""
    tolerance: Limit = 0.1
    """Answers further apart than this disagree; in the unit of the answers (of probabilities: 0.1 is ten points)."""
    max_disagreement: Share = 0.2
    """Share of decisions that may disagree."""
    max_errors: Share = 0.01
    """Share of requests in which the challenger may fail."""


class Shadow:
    """Passes after ``min_rows`` pairs without too much disagreement or too many errors. It needs no labels.

    Both shares are held against their limits by an anytime-valid test (``keepwell.stats.rate_limit``). The evidence
    holds the rate of disagreement, the shift of the answers, the slices of the features that disagree most and the
    decisions furthest apart. Implements ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = ShadowRules
    features = True

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: ShadowRules = state.rules
        found = []
        if state.champion is None:
            found.append("Nothing answers there yet: there is nothing to hold its answers against.")
        if not 0 < rules.share <= 1:
            found.append(f"The share {rules.share:g} is not above 0 and at most 1.")
        if len(state.challengers) > 1:
            found.append(
                "A shadow has one challenger; several are compared by 'champion-challenger'."
            )
        if not found:
            found += slow_decisions(
                state,
                rules.min_rows,
                share=rules.share,
                rule="share" if rules.share < 1 else "min_rows",
                what="pairs",
                way_out="Give a greater share, a lower min_rows or more days.",
            )
        return found

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: ShadowRules = state.rules
        return [
            expect_decisions(known, rules.min_rows, of="verdict", what="pairs", share=rules.share)
        ]

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del now, rng
        rules: ShadowRules = state.rules
        arm = state.challenger
        if state.champion is None:
            return promoted(arm, "there is nothing to hold its answers against")
        own = health(seen, arm.name)
        found = differences(
            seen, CHAMPION, arm.name, tolerance=rules.tolerance, fields=state.fields
        )
        apart = RateLimitTest(limit=rules.max_disagreement, alpha=rules.alpha)
        apart = apart.update(events=found.disagreed, trials=found.pairs)
        failing = RateLimitTest(limit=rules.max_errors, alpha=rules.alpha)
        failing = failing.update(events=own.errors, trials=own.requests)
        rate = found.disagreed / found.pairs if found.pairs else math.nan
        measured: dict[str, Any] = {
            "requests": own.requests,
            "errors": own.errors,
            "pairs": found.pairs,
            "disagreed": found.disagreed,
            "shift": found.shift,
            "largest": found.largest,
            "worst_slices": list(found.worst),
            "examples": list(found.examples),
        }
        if failing.exceeded:
            said = f"it failed in {own.errors:,} of {own.requests:,} requests"
            return returned(state, "refuse", said, measured)
        said = (
            f"{found.disagreed:,} of {found.pairs:,} answers ({rate:.2%}) differ by more than"
            f" {rules.tolerance:g}, shift {found.shift:+.3g}"
        )
        if apart.exceeded or (found.pairs >= rules.min_rows and rate > rules.max_disagreement):
            return returned(state, "refuse", said, measured)
        if found.pairs >= rules.min_rows:
            return promoted(arm, said, measured)
        if days_seen(seen) > rules.max_days:
            return returned(state, "refuse", "too little traffic to judge it", measured)
        weight = 0 if rules.share >= 1 else round(BUCKETS * rules.share)
        return Answer(
            arms=alone(state.champion),
            mirrors=(msgspec.structs.replace(arm, weight=weight),),
            reason=said if found.pairs else "its answers are computed beside those that are sent",
            next=f"it passes after {rules.min_rows - found.pairs:,} more pairs",
            measured=measured,
        )
