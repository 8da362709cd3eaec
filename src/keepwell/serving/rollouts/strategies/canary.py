"""Canary: the challenger answers a growing share; errors roll it back at once, and each step waits until it holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from keepwell.core.clock import Time
from keepwell.core.records.rollouts import Expected
from keepwell.core.settings import Limit, Share
from keepwell.serving.rollouts.evidence import error_comparison, health
from keepwell.serving.rollouts.forecasts import (
    delays_beside,
    expect_decisions,
    share_problems,
    slow_decisions,
)
from keepwell.serving.rollouts.guardrails import GuardrailRule, guard, guardrail_problems
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import (
    CHAMPION,
    Answer,
    Rules,
    State,
    days_seen,
    promoted,
    returned,
    split,
)


class CanaryRules(Rules, frozen=True, kw_only=True):
    """How the share grows."""

    steps: tuple[Share, ...] = (0.05,)
    """Shares of the traffic that the challenger answers, one after the other."""
    error_alpha: Share = 0.01
    """Chance of ever rolling back a challenger that makes no more errors than the champion."""
    step_seconds: Limit = 0.0
    """Each step takes at least this much event time."""
    guardrails: tuple[GuardrailRule, ...] = ()
    """Metrics that must not get worse, judged in each step by itself."""


class Canary:
    """Rolls back when an anytime-valid test finds more errors than the champion has; promotes after the last step.

    The test is the sequential comparison of two rates (``keepwell.stats.rate_comparison``, Lindon and Malek 2020). A
    clean step is ``min_rows`` of the challenger's own decisions under that share. It judges errors, and what its
    guardrails name, such as latency; whether the KPI is better is for champion-challenger and A/B. Implements
    ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = CanaryRules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        steps: tuple[float, ...] = state.rules.steps
        found = []
        if not steps:
            found.append("There are no steps: give at least one share, as in steps = [0.05].")
        if list(steps) != sorted(set(steps)):
            found.append(f"The steps {list(steps)} do not grow.")
        if len(state.challengers) > 1:
            found.append("A canary has one challenger; several are compared by 'ab'.")
        found += share_problems({f"steps: step {k}": share for k, share in enumerate(steps, 1)})
        found += guardrail_problems(state.rules.guardrails, state)
        if not found:
            found += self._slow(state)
        return found

    @staticmethod
    def _slow(state: State) -> list[str]:
        """Tell of the first step that comes too late."""
        rules: CanaryRules = state.rules
        gone = 0.0
        for place, share in enumerate(rules.steps, 1):
            found = slow_decisions(
                state,
                rules.min_rows,
                share=share,
                rule=f"steps: step {place} of {len(rules.steps)}",
                what="decisions",
                way_out="Give greater shares, fewer steps, a lower min_rows or more days.",
                after=gone,
            )
            if found or state.known is None:
                return found
            gone += max(rules.min_rows / (state.known.per_day * share), rules.step_seconds / 86_400)
        return []

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: CanaryRules = state.rules
        return [
            expect_decisions(
                known,
                rules.min_rows,
                of=f"step {place} of {len(rules.steps)}, {share:.4g} of the traffic",
                what="decisions of the challenger",
                share=share,
                least_days=rules.step_seconds / 86_400,
                delays=delays_beside(known, share=share, alpha=rules.error_alpha),
            )
            for place, share in enumerate(rules.steps, 1)
        ]

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del now, rng
        rules: CanaryRules = state.rules
        name = state.challenger.name
        if state.champion is None:
            return promoted(state.challenger, "there is no champion to fall back to")
        test = error_comparison(seen, CHAMPION, name, alpha=rules.error_alpha)
        step = int(state.memory.get("step", 0))
        whole, other = health(seen, name), health(seen, CHAMPION)
        here = health(seen, name, plan=state.plan)
        measured: dict[str, Any] = {
            "step": step + 1,
            "requests": whole.requests,
            "errors": whole.errors,
            "champion_requests": other.requests,
            "champion_errors": other.errors,
            "p_value": test.p_value,
        }
        if test.rejected:
            said = f"more errors than the champion: {whole.errors:,} in {whole.requests:,} requests"
            return returned(state, "roll back", said, measured)
        guarded = guard(
            rules.guardrails,
            state,
            # A step by itself: over several, the hours of the day would not weigh alike in both arms.
            seen.pick(seen.plan == state.plan) if rules.guardrails else seen,
            tuned_for=rules.min_rows,
            parts=len(rules.steps),
        )
        if rules.guardrails:
            measured["guardrails"] = guarded.measured
        if guarded.harmed:
            return returned(state, "roll back", guarded.harmed[name], measured)
        enough = here.requests >= rules.min_rows and self._waited(state, seen)
        clean = enough and name not in guarded.blocked
        if clean and step + 1 == len(rules.steps):
            said = f"{whole.requests:,} requests without more errors than the champion"
            return promoted(state.challenger, said, measured)
        if days_seen(seen) > rules.max_days:
            late = guarded.blocked.get(name, "too little traffic to judge it")
            return returned(state, "refuse", late, measured)
        reason = f"step {step + 1} of {len(rules.steps)}"
        if clean:
            step += 1
            reason = f"{here.requests:,} clean requests: step {step + 1} of {len(rules.steps)}"
        last = step + 1 == len(rules.steps)
        left = rules.min_rows - (0 if clean else here.requests)
        until = f"after {max(left, 0):,} more clean requests"
        if enough and not clean:
            reason = f"{reason}; {guarded.blocked[name]}"
            until = "once its guardrails are shown to be safe"
        return Answer(
            arms=split(state, {name: rules.steps[step]}),
            reason=reason,
            next=f"{until} "
            + ("it is promoted" if last else f"it gets {rules.steps[step + 1]:.4g} of the traffic"),
            measured=measured,
            memory={"step": step},
        )

    @staticmethod
    def _waited(state: State, seen: Observations) -> bool:
        rows = seen.plan == state.plan
        begun = int(seen.time[rows].min()) if rows.any() else seen.watermark
        waited: bool = seen.watermark - begun >= state.rules.step_seconds * 1_000_000
        return waited
