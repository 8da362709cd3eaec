"""What a rollout will need, told before it starts: rows, days, chances, and how soon trouble would be found.

It is computed from the endpoint's own recent traffic (``keepwell.serving.rollouts.history``). Where that traffic cannot
bring what a rule asks for within ``max_days``, the rollout is refused before anything changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from keepwell.core.clock import DAY
from keepwell.core.records.rollouts import Delay, Expected, Forecast
from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.strategy import State, finite
from keepwell.stats.forecast import (
    SequentialForecast,
    canary_forecast,
    outcome_forecast,
    sequential_forecast,
)
from keepwell.stats.group_sequential import boundaries
from keepwell.stats.rate_limit import RateLimitTest

UNKNOWN = "No traffic is known there (nobody has asked yet, or too much would have to be read)"
LOOKS = 100
"""A test that may be looked at whenever one likes is forecast at so many looks."""
SPREADS = 0.1
"""A difference worth finding, unless declared, is this part of the spread of the units' gains: small, by Cohen."""
RELATIVE = 0.2
"""Where gains are 0 or 1 it is this part of the rarer one's rate."""
TENFOLD = 10.0
PLAIN = 0.1
"""Error rates whose delay is told: ten times the present one, and this one."""
MONTH = 28.0
"""Days within which that delay is looked for."""


@runtime_checkable
class Foreseeing(Protocol):
    """A strategy that can tell what it will need."""

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """Tell, from recent traffic, what each step and verdict needs."""
        ...


def forecast(controller: Any, stage: str, state: State) -> Forecast:
    """Tell what a stage will need; where no traffic is known, that."""
    if not isinstance(controller, Foreseeing):
        return Forecast(stage=stage)
    known = state.known
    if known is None or state.champion is None:
        why = UNKNOWN if known is None else "Nothing answers there yet"
        return Forecast(stage=stage, notes=(f"{why}: nothing can be said of how long it takes.",))
    units = f", {sum(known.new_units):,} units" if state.unit else ""
    basis = (
        f"From {known.decisions:,} decisions{units} of the last {spell_days(known.days)}:"
        f" {known.per_day:,.0f} decisions a day, {known.error_share:.2%} errors."
    )
    brief = () if known.sure else ("That is little to go by; nothing is refused for it.",)
    return Forecast(
        stage=stage, expected=tuple(controller.foresee(state, known)), notes=(basis, *brief)
    )


def spell_days(days: float) -> str:
    """Say a length of time in the unit that people would take.

    >>> spell_days(0.02), spell_days(0.5), spell_days(3.04), spell_days(42 / 86400)
    ('28.8 min', '12 h', '3.04 days', '42 s')
    """
    for size, unit in ((1.0, "days"), (1 / 24, "h"), (1 / 1440, "min")):
        if days >= 1.5 * size:
            return f"{days / size:.3g} {unit}"
    return f"{days * 86400:.3g} s"


def _spell(days: float | None) -> str:
    return "never" if days is None or not math.isfinite(days) else spell_days(days)


def share_problems(shares: dict[str, float]) -> list[str]:
    """Tell which shares are nothing once they are whole buckets."""
    return [
        f"{name}: a share of {share:g} is less than one of {BUCKETS:,} buckets. Give at least {1 / BUCKETS:g}."
        for name, share in shares.items()
        if round(share * BUCKETS) < 1
    ]


def slow_decisions(
    state: State,
    rows: float,
    *,
    share: float,
    rule: str,
    what: str,
    way_out: str,
    after: float = 0.0,
) -> list[str]:
    """Tell whether so many decisions of a share take longer than ``max_days``; nothing if traffic is not known.

    ``after``: days that have gone by then, by steps before or until labels come.
    """
    known = state.known
    if known is None or not known.sure or state.champion is None:
        return []
    days = rows / (known.per_day * share)
    most: float = state.rules.max_days
    if days + after <= most:
        return []
    told = f"{rows:,.0f} {what} at {share:.4g} of {known.per_day:,.0f} decisions a day take {spell_days(days)}"
    if after:
        told += f", after {spell_days(after)} before"
    return [f"{rule}: {told}, and max_days is {most:g}. {way_out}"]


def expect_decisions(
    known: Known,
    rows: int,
    *,
    of: str,
    what: str,
    share: float,
    least_days: float = 0.0,
    delays: Sequence[Delay] = (),
) -> Expected:
    """Tell how long so many decisions of such a share take."""
    days = max(rows / (known.per_day * share), least_days) if known.per_day else math.inf
    said = f"{of}: {f'{rows:,} {what} take' if rows else 'that takes'} {_spell(days)}"
    for delay in delays:
        rate = f"{100 * delay.error_share:.3g}%"
        said += (
            f"; an error rate of {rate} would be found after {_spell_seconds(delay.median_seconds)}"
        )
        if delay.p90_seconds is not None:
            said += f" (nine of ten within {_spell_seconds(delay.p90_seconds)})"
    return Expected(
        of=of, rows=rows, what=what, days=finite(days), delays=tuple(delays), said=said + "."
    )


def _spell_seconds(seconds: float | None) -> str:
    return "more than a month" if seconds is None else spell_days(seconds / 86400)


def bad_rates(known: Known) -> list[float]:
    """List the error rates whose delay is worth telling."""
    rates = [TENFOLD * known.error_share, PLAIN]
    return sorted({rate for rate in rates if known.error_share < rate <= 0.5})


def delays_beside(known: Known, *, share: float, alpha: float) -> list[Delay]:
    """Tell how soon a canary is rolled back whose errors are compared with the champion's."""
    # Where no error came, there may be one in twice as many.
    present = max(known.errors, 0.5) / known.decisions
    found = []
    for rate in bad_rates(known):
        told = canary_forecast(
            control_rate=present,
            treatment_rate=rate,
            treatment_share=share,
            requests_per_second=known.per_day / 86400,
            alpha=alpha,
            horizon_seconds=MONTH * 86400,
        )
        found.append(
            Delay(
                error_share=rate,
                median_seconds=finite(told.median_seconds),
                p90_seconds=finite(told.p90_seconds),
            )
        )
    return found


def delays_alone(known: Known, *, limit: float, alpha: float) -> list[Delay]:
    """Tell how soon an arm that answers everything is found beyond a limit, if its errors come evenly."""
    found = []
    for rate in bad_rates(known):
        if rate <= limit:
            continue
        requests = 1
        while not _beyond(rate, requests, limit=limit, alpha=alpha) and requests < 1e9:
            requests = math.ceil(requests * 1.1)
        found.append(Delay(error_share=rate, median_seconds=requests / (known.per_day / 86400)))
    return found


def _beyond(rate: float, requests: int, *, limit: float, alpha: float) -> bool:
    test = RateLimitTest(limit=limit, alpha=alpha)
    return test.update(events=round(rate * requests), trials=requests).exceeded


def worthwhile(known: Known, declared: float) -> float:
    """Give the difference in gain per unit that is worth finding."""
    if declared:
        return declared
    if known.zero_one:
        return RELATIVE * min(known.gain, 1 - known.gain)
    return SPREADS * known.spread


def slow_units(state: State) -> list[str]:
    """Tell whether the units that an A/B test needs come too late."""
    known, rules = state.known, state.rules
    if known is None or not known.sure:
        return []
    smallest = min(_shares(state))
    if rules.horizon:
        rule, units, share = "horizon", rules.horizon, rules.share / len(state.challengers)
    else:
        rule, units, share = "min_rows", rules.min_rows, smallest
    days = known.days_for_units(units / share) + _wait(state)
    most: float = rules.max_days
    if days <= most:
        return []
    come = known.units_within(max(most - _wait(state), 0.0)) * share
    told = f"{units:,} units of an arm with {share:.4g} of them take {_spell(days)}, and max_days is {most:g}"
    return [
        f"{rule}: {told}: about {come:,.0f} come by then. Ask for fewer, give a greater share, or more days."
    ]


def foresee_units(state: State, known: Known) -> list[Expected]:
    """Tell when an A/B test has its least units, and how surely and how soon it finds what is worth finding."""
    rules = state.rules
    champion, each = 1 - rules.share, rules.share / len(state.challengers)
    smallest, wait = min(champion, each), _wait(state)
    days = known.days_for_units(rules.min_rows / smallest) + wait
    found = [
        Expected(
            of="least units",
            rows=rules.min_rows,
            what="units of each arm",
            days=finite(days),
            said=f"{rules.min_rows:,} units of each arm come within {_spell(days)}.",
        )
    ]
    effect = worthwhile(known, rules.minimum_effect)
    if not effect or (not known.spread and not known.zero_one):
        return found
    # Two arms of other sizes know as much as two even ones of their harmonic mean.
    even = 2 * champion * each / (champion + each)
    units = known.units_within(max(rules.max_days - wait, 0.0))
    horizon = rules.horizon / each * even if rules.horizon else units * even
    looks = len(rules.planned) if rules.horizon else LOOKS
    if horizon < max(looks, 2):
        return found
    told = _units_forecast(state, known, effect, horizon=math.floor(horizon), looks=looks)
    median = (
        known.days_for_units(told.median_units / even) + wait
        if math.isfinite(told.median_units)
        else math.inf
    )
    whole = (
        f"at the horizon of {rules.horizon:,} units"
        if rules.horizon
        else f"within {rules.max_days:g} days"
    )
    half = (
        f"half of such tests end after {told.median_units / even * each:,.0f} units of a challenger ({_spell(median)})"
        if math.isfinite(median)
        else "fewer than half of such rollouts find it"
    )
    needs = rules.horizon or finite(told.p90_units / even * each)
    found.append(
        Expected(
            of="verdict",
            rows=round(needs) if needs else round(horizon / even * each),
            what="units of a challenger",
            days=finite(known.days_for_units((needs or horizon / even * each) / each) + wait),
            effect=effect,
            power=told.power,
            median_days=finite(median),
            said=f"A difference of {effect:.4g} in gain per unit (they spread by {known.spread:.4g} around"
            f" {known.gain:.4g}) is found with a chance of {told.power:.0%} {whole}; {half}.",
        )
    )
    return found


def _units_forecast(
    state: State, known: Known, effect: float, *, horizon: int, looks: int
) -> SequentialForecast:
    rules = state.rules
    alpha = rules.alpha / len(state.challengers)
    found = partial(
        sequential_forecast,
        effect=effect,
        control_variance=known.spread**2,
        treatment_variance=known.spread**2,
        horizon=horizon,
        looks=looks,
    )
    if rules.horizon:
        shares = [units / rules.planned[-1] for units in rules.planned]
        return found(plan=boundaries(shares, alpha=alpha))
    if known.zero_one and rules.cuped is False and known.gain + effect < 1:
        return outcome_forecast(
            rate=known.gain, effect=effect, horizon=horizon, looks=looks, alpha=alpha
        )
    return found(alpha=alpha, tuned_for=max(2 * rules.tuned_for, 2.0))


def _shares(state: State) -> tuple[float, float]:
    return 1 - state.rules.share, state.rules.share / len(state.challengers)


def _wait(state: State) -> float:
    """Days after its first decision at which a unit counts."""
    attribution: float = state.rules.attribution_days
    return attribution + state.label_delay / DAY
