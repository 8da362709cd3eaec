"""How much more the units of a challenger were worth than the champion's, and whether that is proven by now.

Three tests, one declared beforehand: valid at any look; at the looks that a horizon plans; and for gains of 0 or 1 the
exact one. A covariate from before the rollout takes its share of the noise away (CUPED).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from keepwell.serving.rollouts.evidence import Units, Worths
from keepwell.serving.rollouts.observations import Floats
from keepwell.serving.rollouts.strategy import State, finite, spell_bounds
from keepwell.stats.difference_sequence import DifferenceSequence
from keepwell.stats.group_sequential import GroupSequentialTest
from keepwell.stats.outcome_comparison import OutcomeComparison

Passed = Sequence[Sequence[float]]
"""Planned looks that were taken: units of an arm, z value, estimate, standard error."""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """A challenger's gain per unit less the champion's, and what follows."""

    better: bool
    worse: bool
    mean: float
    said: str
    facts: dict[str, Any]
    over: bool = False
    """Whether the horizon is reached, so that nothing more can follow."""
    looks: list[list[float]] = []
    """What to remember: the planned looks taken so far."""


def any_time(
    name: str,
    treatment: Worths,
    control: Worths,
    *,
    alpha: float,
    tuned_for: float,
    covariates: tuple[Floats, Floats] | None = None,
) -> Effect:
    """Compare by a confidence sequence, valid at any look."""
    sequence = _sequence(treatment, control, covariates, alpha=alpha, tuned_for=tuned_for)
    mean, low, high = sequence.estimate, sequence.lower, sequence.upper
    judged = f"{len(treatment):,} units against {len(control):,}"
    said = f"gain per unit {mean:+.4g} ({spell_bounds(low, high)}) of {judged}"
    both = len(treatment) and len(control)
    return Effect(
        better=low > 0,
        worse=high < 0,
        mean=mean,
        said=f"{name}: {said if both else f'nothing to compare yet, {judged} are judged'}",
        facts={
            "mean": mean if both else None,
            "low": finite(low),
            "high": finite(high),
            **_adjusted(sequence),
        },
    )


def zero_one(
    name: str,
    treatment: Worths,
    control: Worths,
    *,
    alpha: float,
    tuned_for: float,
    rate: float,
    effect: float,
    share: float,
) -> Effect:
    """Compare gains of 0 or 1 by the exact test that bets on each unit's arm; its verdict goes before the interval.

    ``rate`` and ``effect`` come from before the rollout, ``share`` is the challenger's among the units of both.
    """
    found = any_time(name, treatment, control, alpha=alpha, tuned_for=tuned_for)
    if not (_zero_one(treatment.values) and _zero_one(control.values)):
        return found  # it was not of that kind after all: both tests together spend twice alpha at most
    test = OutcomeComparison(alpha=alpha, rate=rate, effect=min(effect, 0.9 * (1 - rate)))
    test = test.update(
        treatment_events=int(treatment.values.sum()),
        treatment_units=len(treatment),
        control_events=int(control.values.sum()),
        control_units=len(control),
        treatment_share=share,
    )
    return msgspec.structs.replace(
        found,
        better=test.rejected and found.mean > 0,
        worse=test.rejected and found.mean < 0,
        said=f"{found.said}, exact p-value {test.p_value:.2g}",
        facts=found.facts | {"p_value": test.p_value},
    )


def at_horizon(
    name: str,
    treatment: Worths,
    control: Worths,
    *,
    alpha: float,
    planned: Sequence[int],
    ratio: float,
    passed: Passed,
    covariates: tuple[Floats, Floats] | None = None,
) -> Effect:
    """Compare at planned numbers of units, the last being the horizon; between them nothing is said.

    A look is taken once, on the first units of each arm (``ratio``: the champion's for one of the challenger), and
    remembered: what is labelled later does not change it.
    """
    looks = [list(map(float, look)) for look in passed]
    test = GroupSequentialTest(alpha=alpha)
    for units, z, _, _ in looks:
        test = test.look(information=units / planned[-1], z=z)
    for units in planned[len(looks) :]:
        others = math.ceil(units * ratio)
        if test.rejected or len(treatment) < units or len(control) < others:
            break
        first = None if covariates is None else (covariates[0][:units], covariates[1][:others])
        sequence = _sequence(
            Worths(treatment.values[:units], treatment.keys[:units]),
            Worths(control.values[:others], control.keys[:others]),
            first,
            alpha=alpha,
            tuned_for=2.0,
        )
        mean, error = sequence.estimate, sequence.standard_error
        z = mean / error if 0 < error < math.inf else 0.0
        looks.append([float(units), z, mean, error])
        test = test.look(information=units / planned[-1], z=z)
    far = f"{len(treatment):,} of {planned[-1]:,} units"
    if not looks:
        return Effect(
            better=False,
            worse=False,
            mean=math.nan,
            said=f"{name}: {far}; the first planned look is at {planned[0]:,}",
            facts={"mean": None, "low": None, "high": None, "looks": 0},
        )
    units, z, mean, error = looks[-1]
    reach = test.critical[-1] * error
    return Effect(
        better=test.rejected and z > 0,
        worse=test.rejected and z < 0,
        mean=mean,
        over=test.finished,
        said=f"{name}: gain per unit {mean:+.4g} ({mean - reach:.4g} to {mean + reach:.4g}) at look {len(looks)}"
        f" of {len(planned)}, {units:,.0f} of {planned[-1]:,} units",
        facts={
            "mean": mean,
            "low": finite(mean - reach),
            "high": finite(mean + reach),
            "looks": len(looks),
            "z": z,
            "critical": finite(test.critical[-1]),
        },
        looks=looks,
    )


def covariates_of(
    state: State, units: Units, treatment: Worths, control: Worths, *, cuped: bool | str
) -> tuple[Floats, Floats] | None:
    """Give what was known of the units of both arms before they were assigned; none if nothing is asked for."""
    if cuped is False:
        return None
    if cuped is True:
        if state.before is None or not len(state.before.keys):
            return None
        return state.before.of(treatment.keys), state.before.of(control.keys)
    column = units.drawn.features[units.first, state.fields.index(cuped)]
    known = column[~np.isnan(column)]
    if not len(known):
        return None
    # One number for all that miss it, in either arm: it speaks for neither.
    column = np.where(np.isnan(column), known.mean(), column)
    ours, theirs = (column[np.searchsorted(units.keys, arm.keys)] for arm in (treatment, control))
    return ours, theirs


def _sequence(
    treatment: Worths,
    control: Worths,
    covariates: tuple[Floats, Floats] | None,
    *,
    alpha: float,
    tuned_for: float,
) -> DifferenceSequence:
    given = covariates or (None, None)
    return DifferenceSequence(alpha=alpha, tuned_for=max(tuned_for, 2.0)).update(
        treatment=treatment.values,
        control=control.values,
        treatment_covariate=given[0],
        control_covariate=given[1],
    )


def _adjusted(sequence: DifferenceSequence) -> dict[str, float]:
    """Say what the covariate took away, where there was one."""
    arms = sequence.treatment, sequence.control
    if not sequence.theta or min(arm.count for arm in arms) < 2:
        return {}
    whole = sum(arm.squares / (arm.count - 1) / arm.count for arm in arms)
    return {"theta": sequence.theta, "variance_left": sequence.standard_error**2 / whole}


def _zero_one(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())
