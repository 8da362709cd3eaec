"""A/B: units are parted among the arms, stay with theirs, and each arm is judged by what its own units were worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keepwell.core.clock import DAY, Time, iso
from keepwell.core.errors import near_miss
from keepwell.core.records.rollouts import Expected
from keepwell.core.records.traffic import BUCKETS, Arm
from keepwell.core.settings import Count, Limit, Several, Share
from keepwell.serving.rollouts.discoveries import discover, discovery_problems, told
from keepwell.serving.rollouts.effects import (
    Effect,
    any_time,
    at_horizon,
    covariates_of,
    zero_one,
)
from keepwell.serving.rollouts.evidence import Units, Worths, by_unit, error_comparison
from keepwell.serving.rollouts.forecasts import (
    foresee_units,
    share_problems,
    slow_units,
    worthwhile,
)
from keepwell.serving.rollouts.guardrails import (
    Guarded,
    GuardrailRule,
    guard,
    guardrail_problems,
)
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.metrics import outcome_rows
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
from keepwell.stats.mismatch import mismatch_cause
from keepwell.stats.sample_ratio import SampleRatioTest

MOST_LOOKS = 100
"""Each planned look costs an integration; with more of them a test that is valid at any look is as good."""


class ABRules(Rules, frozen=True, kw_only=True):
    """How units are parted and judged."""

    share: Share = 0.5
    """Of all units, those that the challengers part evenly among them."""
    attribution_days: Limit = 0.0
    """A unit is judged by all its decisions within so many days of its first; 0: by the first alone."""
    tuned_for: Limit = 2_000.0
    """Units of an arm at which a verdict is hoped for; it is valid at any number."""
    horizon: Count = 0
    """Units of a challenger at which it ends, looked at as ``looks`` plans; 0: looked at whenever one likes."""
    looks: Several = 5
    """Planned looks up to the horizon, evenly spaced; those below ``min_rows`` are left out."""
    minimum_effect: Limit = 0.0
    """Least difference in gain per unit worth finding, which the forecast is about; 0: a tenth of its spread."""
    cuped: bool | str = False
    """Adjust by what was known before: true, the unit's mean gain before the rollout; or a numeric feature's name."""
    metrics: tuple[str, ...] = ()
    """Further metrics that are judged together; what differs is told, and moves no traffic."""
    guardrails: tuple[GuardrailRule, ...] = ()
    """Metrics that must not get worse."""
    ratio_alpha: Share = 0.001
    """Chance of finding the units wrongly parted though they are not."""
    error_alpha: Share = 0.01
    """Chance of rolling back a challenger for its errors though it makes no more than the champion."""

    def looked_at(self) -> tuple[str, ...]:
        """See ``keepwell.serving.rollouts.strategy.Rules``."""
        return (self.cuped,) if isinstance(self.cuped, str) else ()

    @property
    def attribution(self) -> Time:
        """Microseconds from a unit's first decision in which it is judged."""
        return round(self.attribution_days * DAY)

    @property
    def planned(self) -> tuple[int, ...]:
        """Units of a challenger at each planned look."""
        counts = [math.ceil(self.horizon * k / self.looks) for k in range(1, self.looks + 1)]
        return tuple(count for count in counts if count >= max(self.min_rows, 2))


class AB:
    """Promotes the best challenger once its gain per unit is proven to be above the champion's.

    By default the proof is a confidence sequence for the difference of the arms' means, so it may be looked at after
    every unit; with a ``horizon`` it is a group-sequential test at planned looks; gains that were 0 or 1 before the
    rollout are compared by an exact test (``keepwell.serving.rollouts.effects``). Challengers part ``alpha`` among
    them. Guards have alphas of their own: units that are not parted as the plan says end the test (nothing in it could
    be believed), more errors than the champion and harmed guardrails roll it back. Weak where units interfere with one
    another. Implements ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = ABRules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: ABRules = state.rules
        found = []
        if state.champion is None:
            found.append("Nothing answers there yet: there is nothing to compare with.")
        if not state.unit:
            found.append(
                "The endpoint has no unit key, so nobody would stay with an arm:"
                " set 'unit' in its table of keepwell.toml."
            )
        if rules.tuned_for < 2:
            found.append(f"tuned_for is {rules.tuned_for:g}: give it at least 2 units.")
        found += share_problems({"share": rules.share / len(state.challengers)})
        if rules.share >= 1:
            found.append(
                f"share: {rules.share:g} for the challengers leaves nothing to the champion. Give less than 1."
            )
        if rules.horizon and not rules.planned:
            found.append(
                f"horizon: {rules.horizon:,} units are fewer than min_rows = {rules.min_rows:,}."
                " Give a longer horizon or a lower min_rows."
            )
        if rules.horizon and rules.looks > MOST_LOOKS:
            found.append(
                f"looks: {rules.looks} are more than {MOST_LOOKS}; with horizon = 0 any look is valid."
            )
        if isinstance(rules.cuped, str) and rules.cuped not in state.fields:
            found.append(
                f"cuped: the model has no numeric feature {rules.cuped!r}."
                f" {near_miss(rules.cuped, state.numeric)} Or say true: the unit's gain before the rollout."
            )
        if rules.cuped is True and state.known is None:
            found.append(
                "cuped: of the days before nothing is known, so there is nothing to adjust by."
                " Leave it out, or name a numeric feature."
            )
        found += discovery_problems(rules.metrics, state)
        found += guardrail_problems(rules.guardrails, state)
        if not found:
            found += slow_units(state)
        return found

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        return foresee_units(state, known)

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del now, rng
        if state.champion is None:
            return promoted(state.challenger, "there is nothing to compare with")
        rules: ABRules = state.rules
        names = (CHAMPION, *(arm.name for arm in state.challengers))
        shares = dict.fromkeys(names[1:], rules.share / len(state.challengers))
        arms = split(state, shares)
        units = units_of(state, seen)
        worth = worths_of(state, units)
        assigned = {name: units.assigned(name) for name in names}
        measured: dict[str, Any] = {
            "units": assigned,
            "judged": {name: len(values) for name, values in worth.items()},
            "contaminated": int(units.strayed.sum()),
        }
        stopped = self._stopped(state, seen, assigned, arms, measured)
        if stopped is not None:
            return stopped
        guarded = guard(
            rules.guardrails,
            state,
            seen,
            tuned_for=rules.tuned_for,
            parts=len(state.challengers),
            attribution=rules.attribution,
        )
        if rules.guardrails:
            measured["guardrails"] = guarded.measured
        if guarded.harmed:
            return returned(state, "roll back", "; ".join(guarded.harmed.values()), measured)
        judged = {
            arm.name: self._judged(state, arms, units, arm.name, worth) for arm in state.challengers
        }
        measured["gain"] = {name: effect.facts for name, effect in judged.items()}
        said = "; ".join(effect.said for effect in judged.values())
        if rules.metrics:
            found = discover(
                rules.metrics,
                state,
                seen,
                alpha=rules.alpha,
                tuned_for=rules.tuned_for,
                attribution=rules.attribution,
            )
            measured["metrics"] = found
            said += told(found)
        return self._concluded(state, arms, seen, worth, judged, guarded, said, measured)

    @staticmethod
    def _stopped(
        state: State,
        seen: Observations,
        assigned: dict[str, int],
        arms: tuple[Arm, ...],
        measured: dict[str, Any],
    ) -> Answer | None:
        """Look for what ends any test: errors, and units that are not parted as the plan says."""
        rules: ABRules = state.rules
        for arm in state.challengers:
            alpha = rules.error_alpha / len(state.challengers)
            errors = error_comparison(seen, CHAMPION, arm.name, alpha=alpha)
            if errors.rejected:
                counts = f"{errors.treatment_events:,} against {errors.control_events:,}"
                said = f"{arm.name} makes more errors than the champion ({counts})"
                return returned(state, "roll back", said, measured)
        ratio = SampleRatioTest(
            shares=tuple(arm.weight / BUCKETS for arm in arms), alpha=rules.ratio_alpha
        )
        ratio = ratio.update(list(assigned.values()))
        measured["sample_ratio_p"] = ratio.p_value
        if not ratio.mismatched:
            return None
        counts = ", ".join(f"{name} {count:,}" for name, count in assigned.items())
        cause = _cause(seen, tuple(assigned), arms)
        said = f"units are not parted as the plan says ({counts}): {cause}"
        return returned(state, "refuse", said, measured)

    @staticmethod
    def _judged(
        state: State, arms: tuple[Arm, ...], units: Units, name: str, worth: dict[str, Worths]
    ) -> Effect:
        rules: ABRules = state.rules
        treatment, control = worth[name], worth[CHAMPION]
        alpha = rules.alpha / len(state.challengers)
        covariates = covariates_of(state, units, treatment, control, cuped=rules.cuped)
        weights = {arm.name: arm.weight for arm in arms}
        if rules.horizon:
            return at_horizon(
                name,
                treatment,
                control,
                alpha=alpha,
                planned=rules.planned,
                ratio=weights[CHAMPION] / weights[name],
                passed=state.memory.get("looks", {}).get(name, ()),
                covariates=covariates,
            )
        if state.known is not None and state.known.zero_one and rules.cuped is False:
            return zero_one(
                name,
                treatment,
                control,
                alpha=alpha,
                tuned_for=2 * rules.tuned_for,
                rate=state.known.gain,
                effect=worthwhile(state.known, rules.minimum_effect),
                share=weights[name] / (weights[CHAMPION] + weights[name]),
            )
        return any_time(
            name,
            treatment,
            control,
            alpha=alpha,
            tuned_for=2 * rules.tuned_for,
            covariates=covariates,
        )

    @staticmethod
    def _concluded(
        state: State,
        arms: tuple[Arm, ...],
        seen: Observations,
        worth: dict[str, Worths],
        judged: dict[str, Effect],
        guarded: Guarded,
        said: str,
        measured: dict[str, Any],
    ) -> Answer:
        """Conclude from what was judged: the best that is better and safe, or nobody, or go on."""
        rules: ABRules = state.rules
        enough = {
            name: min(len(worth[name]), len(worth[CHAMPION])) >= rules.min_rows for name in judged
        }
        better = [arm for arm in state.challengers if enough[arm.name] and judged[arm.name].better]
        free = [arm for arm in better if arm.name not in guarded.blocked]
        if free:
            best = max(free, key=lambda arm: judged[arm.name].mean)
            return promoted(best, said, measured)
        if better:
            said += "; " + "; ".join(guarded.blocked[arm.name] for arm in better)
        out = {name for name, effect in judged.items() if enough[name] and effect.worse}
        if len(out) == len(judged):
            return returned(state, "refuse", f"worse: {said}", measured)
        out |= guarded.refuted
        out |= {name for name, effect in judged.items() if effect.over and not effect.better}
        if len(out) == len(judged):
            why = f"no proof of a difference at the horizon of {rules.horizon:,} units: {said}"
            return returned(
                state, "refuse", said if guarded.refuted or not rules.horizon else why, measured
            )
        left = rules.max_days - days_seen(seen)
        if left < 0:
            late = f"no proof of a difference within {rules.max_days:g} days: {said}"
            return returned(state, "refuse", late, measured)
        looks = {name: effect.looks for name, effect in judged.items()}
        return Answer(
            arms=arms,
            reason=said if len(seen) else "units are parted",
            next=_next(rules, max(map(len, looks.values())), blocked=bool(better))
            + f"; refused after {left:.3g} more days without",
            measured=measured,
            memory={"looks": looks} if rules.horizon else {},
        )


def _next(rules: ABRules, taken: int, *, blocked: bool) -> str:
    if blocked:
        return "promoted once its guardrails are shown to be safe"
    if rules.horizon:
        planned = rules.planned
        units = planned[min(taken, len(planned) - 1)]
        return f"look {taken + 1} of {len(planned)} is at {units:,} units of each challenger"
    return f"promoted once its bound is above zero after {rules.min_rows:,} units of each arm"


def _cause(seen: Observations, names: tuple[str, ...], arms: tuple[Arm, ...]) -> str:
    """Say which days or plans carry the mismatch, or that it is everywhere."""
    drawn = seen.pick(~seen.mirror & ~seen.placed)
    _, first = np.unique(drawn.unit, return_index=True)
    counts: dict[str, dict[str, list[int]]] = {"the day": {}, "the plan": {}}
    for dimension, segments in (("the day", drawn.time // DAY), ("the plan", drawn.plan)):
        for segment in np.unique(segments[first]).tolist():
            inside = drawn.arm[first][segments[first] == segment]
            label = iso(segment * DAY)[:10] if dimension == "the day" else str(segment)
            counts[dimension][label] = [int((inside == drawn.place(name)).sum()) for name in names]
    found = mismatch_cause(
        counts,
        shares=[arm.weight / BUCKETS for arm in arms],
        ordered=("the day", "the plan"),
        arms=names,
    )
    return found.sentence


def units_of(state: State, seen: Observations) -> Units:
    """Put decisions to the units that chance gave to arms."""
    rules: ABRules = state.rules
    return by_unit(
        seen,
        label_delay=state.label_delay,
        attribution=rules.attribution,
        default=state.default,
    )


def worths_of(state: State, units: Units) -> dict[str, Worths]:
    """Sum up what the units of all arms were worth."""
    rows = outcome_rows(units.drawn, units.outcome, state.gain)
    return units.values(rows, (CHAMPION, *(arm.name for arm in state.challengers)))
