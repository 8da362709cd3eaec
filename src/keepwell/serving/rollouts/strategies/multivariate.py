"""Multivariate: versions that differ in several things at once, and what each of these things does by itself."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import Time
from keepwell.core.errors import near_miss
from keepwell.core.records.rollouts import Expected
from keepwell.serving.rollouts.evidence import Worths
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategies.ab import AB, ABRules, units_of, worths_of
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, State
from keepwell.stats.factorial import factorial_effects


class MultivariateRules(ABRules, frozen=True, kw_only=True):
    """Which version stands for which combination."""

    share: float = 0.0
    """Of all units, those that the challengers part evenly among them; 0: as many to each arm as to the champion."""
    factors: dict[str, dict[str, str]] = {}
    """By version: the level of each factor, ``{"3" = {model = "boosting", threshold = "0.5"}}``."""


class Multivariate:
    """An A/B test of all combinations of several factors, which tells the effect of each and of their pairs.

    The verdict is that of A/B: the best version, valid at any look. Beside it the evidence has main effects and
    interactions against the champion's levels (``keepwell.stats.factorial``); their intervals hold at one look, the
    last. Implements ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = MultivariateRules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: MultivariateRules = state.rules
        found = AB().problems(_even(state))
        arms = [*([state.champion] if state.champion else []), *state.challengers]
        playing = {str(arm.version) for arm in arms}
        found += [
            f"factors: version {number} takes no part. {near_miss(number, playing)}".strip()
            for number in rules.factors
            if number not in playing
        ]
        missing = [str(arm.version) for arm in arms if str(arm.version) not in rules.factors]
        if missing:
            return [*found, f"The rule 'factors' says nothing of version {', '.join(missing)}."]
        levels = [rules.factors[str(arm.version)] for arm in arms]
        names = sorted({name for each in levels for name in each})
        if any(sorted(each) != names for each in levels) or not names:
            return [*found, "Every version needs a level of each factor."]
        given = [tuple(each[name] for name in names) for each in levels]
        wanted = set(
            itertools.product(*[sorted({each[name] for each in levels}) for name in names])
        )
        for combination in sorted(wanted - set(given)):
            told = ", ".join(f"{n}={v}" for n, v in zip(names, combination, strict=True))
            found.append(f"No version stands for the combination {told}.")
        if len(set(given)) < len(given):
            found.append("Two versions stand for one combination.")
        return found

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        return AB().foresee(_even(state), known)

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        even = _even(state)
        answer = AB().plan(even, seen, now, rng)
        if state.champion is None:
            return answer
        effects = self._effects(state, worths_of(even, units_of(even, seen)))
        return msgspec.structs.replace(answer, measured=answer.measured | {"effects": effects})

    @staticmethod
    def _effects(state: State, worth: dict[str, Worths]) -> list[dict[str, Any]]:
        if min((len(each) for each in worth.values()), default=0) < 2:
            return []
        factors: dict[str, dict[str, str]] = state.rules.factors
        assert state.champion is not None
        levels = {CHAMPION: factors[str(state.champion.version)]}
        levels |= {arm.name: factors[str(arm.version)] for arm in state.challengers}
        names = [name for name, each in worth.items() for _ in each.values]
        report = factorial_effects(
            np.concatenate([each.values for each in worth.values()]),
            {name: np.array([levels[arm][name] for arm in names]) for name in levels[CHAMPION]},
            base=levels[CHAMPION],
            order=min(2, len(levels[CHAMPION])),
            level=1 - state.rules.alpha,
        )
        return [
            {
                "factors": list(effect.factors),
                "levels": [str(level) for level in effect.levels],
                "effect": effect.interval.estimate,
                "low": effect.interval.lower,
                "high": effect.interval.upper,
                "p_value": effect.p_value,
            }
            for effect in report.effects
        ]


def _even(state: State) -> State:
    rules: MultivariateRules = state.rules
    if rules.share > 0:
        return state
    share = len(state.challengers) / (len(state.challengers) + 1)
    return msgspec.structs.replace(state, rules=msgspec.structs.replace(rules, share=share))
