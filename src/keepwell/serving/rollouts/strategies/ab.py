"""A/B: units are parted among the arms, stay with theirs, and each arm is judged by what its own units were worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keepwell.core.clock import DAY, Time, iso
from keepwell.core.records.traffic import BUCKETS, Arm
from keepwell.core.settings import Limit, Share
from keepwell.serving.rollouts.evidence import UnitValues, error_comparison, values_by_unit
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import (
    CHAMPION,
    Answer,
    Rules,
    State,
    days_seen,
    finite,
    promoted,
    returned,
    split,
)
from keepwell.stats.difference_sequence import DifferenceSequence
from keepwell.stats.mismatch import mismatch_cause
from keepwell.stats.sample_ratio import SampleRatioTest


class ABRules(Rules, frozen=True, kw_only=True):
    """How units are parted and judged."""

    share: Share = 0.5
    """Of all units, those that the challengers part evenly among them."""
    attribution_days: Limit = 0.0
    """A unit is judged by all its decisions within so many days of its first; 0: by the first alone."""
    tuned_for: Limit = 2_000.0
    """Units of an arm at which a verdict is hoped for; it is valid at any number."""
    ratio_alpha: Share = 0.001
    """Chance of finding the units wrongly parted though they are not."""
    error_alpha: Share = 0.01
    """Chance of rolling back a challenger for its errors though it makes no more than the champion."""


class AB:
    """Promotes the best challenger once its gain per unit is above the champion's with an anytime-valid bound.

    The bound is a confidence sequence for the difference of the arms' means (``keepwell.stats.difference_sequence``),
    so it may be looked at after every unit; challengers part ``alpha`` among them. Two guards have an alpha of their
    own: units that are not parted as the plan says end the test (nothing in it could be believed),
    and more errors than the champion roll it back. Weak where units interfere with one another.
    Implements ``keepwell.serving.rollouts.strategy.Strategy``.
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
        return found

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
        measured: dict[str, Any] = {
            "units": units.assigned,
            "judged": {name: len(values) for name, values in units.values.items()},
            "contaminated": units.contaminated,
        }
        for arm in state.challengers:
            alpha = rules.error_alpha / len(state.challengers)
            errors = error_comparison(seen, CHAMPION, arm.name, alpha=alpha)
            if errors.rejected:
                told = f"{errors.treatment_events:,} against {errors.control_events:,}"
                said = f"{arm.name} makes more errors than the champion ({told})"
                return returned(state, "roll back", said, measured)
        ratio = SampleRatioTest(
            shares=tuple(arm.weight / BUCKETS for arm in arms), alpha=rules.ratio_alpha
        )
        ratio = ratio.update([units.assigned[name] for name in names])
        measured["sample_ratio_p"] = ratio.p_value
        if ratio.mismatched:
            told = ", ".join(f"{name} {units.assigned[name]:,}" for name in names)
            cause = _cause(seen, names, arms)
            said = f"units are not parted as the plan says ({told}): {cause}"
            return returned(state, "refuse", said, measured)
        judged = {arm.name: self._judged(state, units, arm.name) for arm in state.challengers}
        measured["gain"] = {name: facts for name, (_, facts) in judged.items()}
        said = "; ".join(said for said, _ in judged.values())
        enough = {
            arm.name: min(len(units.values[arm.name]), len(units.values[CHAMPION]))
            >= rules.min_rows
            for arm in state.challengers
        }
        better = [
            arm
            for arm in state.challengers
            if enough[arm.name] and (judged[arm.name][1]["low"] or -math.inf) > 0
        ]
        if better:
            best = max(better, key=lambda arm: judged[arm.name][1]["mean"])
            return promoted(best, said, measured)
        if all(
            enough[name] and (facts["high"] if facts["high"] is not None else math.inf) < 0
            for name, (_, facts) in judged.items()
        ):
            return returned(state, "refuse", f"worse: {said}", measured)
        if days_seen(seen) > rules.max_days:
            late = f"no proof of a difference within {rules.max_days:g} days: {said}"
            return returned(state, "refuse", late, measured)
        return Answer(
            arms=arms,
            reason=said if len(seen) else "units are parted",
            next=f"promoted once its bound is above zero after {rules.min_rows:,} units of each arm; "
            f"refused after {rules.max_days - days_seen(seen):.3g} more days without",
            measured=measured,
        )

    @staticmethod
    def _judged(state: State, units: UnitValues, name: str) -> tuple[str, dict[str, Any]]:
        rules: ABRules = state.rules
        sequence = DifferenceSequence(
            alpha=rules.alpha / len(state.challengers), tuned_for=max(2 * rules.tuned_for, 2.0)
        ).update(treatment=units.values[name], control=units.values[CHAMPION])
        mean, low, high = sequence.estimate, sequence.lower, sequence.upper
        said = (
            f"{name}: gain per unit {mean:+.4g} ({low:.4g} to {high:.4g}, valid at any time)"
            f" of {sequence.treatment.count:,} units against {sequence.control.count:,}"
        )
        return said, {"mean": mean, "low": finite(low), "high": finite(high)}


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


def units_of(state: State, seen: Observations) -> UnitValues:
    """Sum up what the units of all arms were worth."""
    rules: ABRules = state.rules
    return values_by_unit(
        seen,
        (CHAMPION, *(arm.name for arm in state.challengers)),
        gain=state.gain,
        label_delay=state.label_delay,
        attribution=round(rules.attribution_days * DAY),
        default=state.default,
    )
