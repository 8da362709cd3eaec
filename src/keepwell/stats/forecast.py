"""How many units or seconds a test will take, told before it starts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from keepwell.stats import _arrays, outcome_comparison, rate_comparison
from keepwell.stats._normal_mixture import factor, precision
from keepwell.stats.group_sequential import Boundaries, crossing

# Errors by which a canary of this test is nearly surely decided; the forecast says so if not.
MOST_EVENTS = 1200


@dataclass(frozen=True, kw_only=True)
class FixedForecast:
    """Units a side for one look at the end, and the power that whole units give."""

    units: int
    power: float


@dataclass(frozen=True, kw_only=True)
class SequentialForecast:
    """What looking on the way will do within a horizon, if the effect is as said.

    Units a side. `median_units` and `p90_units` are infinite where fewer than half, or nine of
    ten, of such rollouts stop within the horizon; `mean_units` counts those at the horizon.
    """

    horizon: int
    power: float
    median_units: float
    p90_units: float
    mean_units: float


@dataclass(frozen=True, kw_only=True)
class CanaryForecast:
    """Seconds until a canary is rolled back, if its error rate is as said.

    `found` is the chance within `horizon_seconds`. The quantiles are infinite beyond that.
    `median_errors` are the canary's own errors that users see until then.
    """

    horizon_seconds: float
    found: float
    median_seconds: float
    p90_seconds: float
    median_errors: float


def fixed_forecast(
    *,
    effect: float,
    control_variance: float,
    treatment_variance: float,
    alpha: float = 0.05,
    power: float = 0.8,
) -> FixedForecast:
    """Units a side with which one look at the end finds `effect` with chance `power`.

    n = (z_alpha/2 + z_power)^2 (s0^2 + s1^2) / effect^2, two-sided. For rates the variances are
    p (1 - p). With CUPED, multiply both by `variance_left`.

    Weak at: fewer than some tens of units, or of events; looking before the end.

    effect: not 0, in the value's unit. variances: > 0, of one unit. alpha, power: in (0, 1).
    Raises ValueError otherwise.
    Source: Cohen 1988, Statistical power analysis for the behavioral sciences; van Belle 2008.

    >>> fixed_forecast(effect=0.02, control_variance=0.10 * 0.90,
    ...                treatment_variance=0.12 * 0.88).units
    3839
    """
    each = _variance(effect, control_variance, treatment_variance)
    z = special.ndtri(1 - _arrays.inside("alpha", alpha, 0, 1) / 2)
    wanted = _arrays.inside("power", power, 0, 1)
    units = math.ceil((z + special.ndtri(wanted)) ** 2 * each / effect**2)
    drift = abs(effect) / math.sqrt(each / units)
    return FixedForecast(
        units=units, power=float(special.ndtr(drift - z) + special.ndtr(-drift - z))
    )


def sequential_forecast(
    *,
    effect: float,
    control_variance: float,
    treatment_variance: float,
    horizon: int,
    looks: int,
    alpha: float = 0.05,
    tuned_for: float | None = None,
    plan: Boundaries | None = None,
) -> SequentialForecast:
    """How surely and how soon `DifferenceSequence`, or a group-sequential plan, finds an effect.

    The z value at evenly spaced looks is a random walk with drift; the chance to cross the test's
    boundary at each is integrated numerically. Two-sided.

    Weak at: few units or rare events, where z values are not normal.

    horizon: units a side, >= looks. looks: >= 1. tuned_for: units of both arms, by default the
    horizon's. plan: its boundaries instead, with `looks` of them. Others as `fixed_forecast`.
    Raises ValueError otherwise.
    Source: Armitage, McPherson and Rowe 1969; Waudby-Smith et al. 2021 (2103.06476).

    >>> told = sequential_forecast(effect=0.02, control_variance=0.10 * 0.90,
    ...                            treatment_variance=0.12 * 0.88, horizon=10_000, looks=100)
    >>> round(told.power, 2), told.median_units
    (0.96, 4200.0)
    """
    drift = _drift(effect, control_variance, treatment_variance, horizon, looks)
    share = np.arange(1, looks + 1) / looks
    if plan is not None:
        if len(plan.critical) != looks:
            message = f"plan must have {looks} looks, received {len(plan.critical)}"
            raise ValueError(message)
        return _told(horizon, np.asarray(plan.information), plan.crossing(drift))
    c = precision(alpha, tuned_for or 2 * horizon, "both")
    critical = []
    for n in 2 * horizon * share:
        growth = math.expm1(factor(round(n), alpha, c, "both"))
        room = n - c * growth
        critical.append(math.sqrt(growth * n * (n + c) / room) if room > 0 else math.inf)
    return _told(horizon, share, crossing(share, critical, drift=drift))


def outcome_forecast(
    *,
    rate: float,
    effect: float,
    horizon: int,
    looks: int,
    alpha: float = 0.05,
    true_effect: float | None = None,
) -> SequentialForecast:
    """How surely and how soon `OutcomeComparison` finds a difference of rates, arms even.

    Its evidence is, for many units, a function of the z value; the boundary is where it reaches
    1/alpha, and the rest as `sequential_forecast`. Two-sided.

    Weak at: fewer than some tens of events an arm.

    rate, effect: as declared to the test. true_effect: what the difference is, by default `effect`.
    horizon: units a side, >= looks. looks >= 1. Raises ValueError otherwise.
    Source: Grünwald, Henzi and Lardy 2024 (2209.12637); Armitage, McPherson and Rowe 1969.

    >>> told = outcome_forecast(rate=0.10, effect=0.02, horizon=10_000, looks=100)
    >>> round(told.power, 2), told.median_units
    (0.96, 3500.0)
    """
    real = effect if true_effect is None else true_effect
    treated = _arrays.inside("rate + true_effect", rate + real, 0, 1)
    _arrays.inside("rate", rate, 0, 1)
    drift = _drift(real, rate * (1 - rate), treated * (1 - treated), horizon, looks)
    share = np.arange(1, looks + 1) / looks
    limit = -math.log(_arrays.inside("alpha", alpha, 0, 1))
    pooled = rate + real / 2
    critical = []
    for units in horizon * share:
        error = math.sqrt(2 * pooled * (1 - pooled) / units)
        low, high = 0.0, 20.0
        while high - low > 1e-6:
            z = (low + high) / 2
            half = min(z * error / 2, pooled * (1 - 1e-9), (1 - pooled) * (1 - 1e-9))
            found = outcome_comparison.log_evidence(
                units * (pooled + half),
                units,
                units * (pooled - half),
                units,
                rate=rate,
                effect=effect,
            )
            low, high = (low, z) if found >= limit else (z, high)
        critical.append(high if high < 20 - 1e-5 else math.inf)
    return _told(horizon, share, crossing(share, critical, drift=drift))


def canary_forecast(
    *,
    control_rate: float,
    treatment_rate: float,
    treatment_share: float,
    requests_per_second: float,
    alpha: float = 0.01,
    horizon_seconds: float = 3600.0,
) -> CanaryForecast:
    """How soon `RateComparison`, looked at after each error, rolls a canary back. Exact.

    The arm of each error is a coin of known chance, so the number of errors until the test rejects
    is found by adding up over all ways there; errors come as a Poisson stream. With equal rates
    `found` is the chance that a healthy canary is rolled back.

    Weak at: errors that come in bursts; a healthy canary with more than 1,200 errors within the
    horizon, of which only the first 1,200 are counted.

    rates: in (0, 1). treatment_share: in (0, 1), of both arms' requests. requests_per_second: of
    both arms, > 0. Raises ValueError otherwise.
    Source: Lindon and Malek 2022 (2011.03567).

    >>> told = canary_forecast(control_rate=0.002, treatment_rate=0.02, treatment_share=0.05,
    ...                        requests_per_second=100)
    >>> round(told.median_seconds), round(told.p90_seconds), round(told.median_errors, 1)
    (42, 100, 4.2)
    """
    for name, rate in (("control_rate", control_rate), ("treatment_rate", treatment_rate)):
        _arrays.inside(name, rate, 0, 1)
    share = _arrays.inside("treatment_share", treatment_share, 0, 1)
    per_second = _arrays.inside("requests_per_second", requests_per_second, 0, math.inf)
    horizon = _arrays.inside("horizon_seconds", horizon_seconds, 0, math.inf)
    limit = -math.log(_arrays.inside("alpha", alpha, 0, 1))
    on_canary = share * treatment_rate
    errors = on_canary + (1 - share) * control_rate
    expected = per_second * errors * horizon
    most = int(min(MOST_EVENTS, expected + 10 * math.sqrt(expected) + 20))
    total = np.arange(1, most + 1)
    # The least number of canary errors that rejects, for each total: evidence grows in it.
    low, high = np.zeros(most), total + 1.0
    while (high - low > 0).any():
        middle = np.floor((low + high) / 2)
        rejects = (
            rate_comparison.log_evidence(
                np.minimum(middle, total), np.maximum(total - middle, 0), treatment_share=share
            )
            >= limit
        ) & (middle <= total)
        low, high = (
            np.where(rejects | (low >= high), low, middle + 1),
            np.where(rejects, middle, high),
        )
    chance = on_canary / errors
    alive, stop = np.ones(1), np.empty(most)
    for place, least in enumerate(high.astype(int)):
        after = np.zeros(alive.size + 1)
        after[:-1] += alive * (1 - chance)
        after[1:] += alive * chance
        stop[place] = after[least:].sum()
        after[least:] = 0.0
        alive = after

    def by(seconds: float) -> float:
        # Gamma: the chance that so many errors have come.
        return float(stop @ special.gammainc(total, per_second * errors * seconds))

    found = by(horizon)
    median = _when(by, 0.5, horizon) if found >= 0.5 else math.inf
    return CanaryForecast(
        horizon_seconds=horizon,
        found=found,
        median_seconds=median,
        p90_seconds=_when(by, 0.9, horizon) if found >= 0.9 else math.inf,
        median_errors=per_second * on_canary * median,
    )


def _variance(effect: float, control: float, treatment: float) -> float:
    if not (math.isfinite(effect) and effect):
        message = f"effect must be finite and not 0, received {effect!r}"
        raise ValueError(message)
    _arrays.inside("control_variance", control, 0, math.inf)
    return control + _arrays.inside("treatment_variance", treatment, 0, math.inf)


def _drift(effect: float, control: float, treatment: float, horizon: int, looks: int) -> float:
    """Give the z value expected at the horizon."""
    _arrays.at_least("looks", looks, 1)
    _arrays.at_least("horizon", horizon, looks)
    return effect / math.sqrt(_variance(effect, control, treatment) / horizon)


def _told(
    horizon: int, share: _arrays.FloatArray, crossed: tuple[float, ...]
) -> SequentialForecast:
    reached = np.cumsum(crossed)
    units = horizon * share

    def first(chance: float) -> float:
        return float(units[np.searchsorted(reached, chance)]) if reached[-1] >= chance else math.inf

    return SequentialForecast(
        horizon=horizon,
        power=float(reached[-1]),
        median_units=first(0.5),
        p90_units=first(0.9),
        mean_units=float(units @ crossed + horizon * (1 - reached[-1])),
    )


def _when(by: Callable[[float], float], chance: float, horizon: float) -> float:
    """Find the time by which it has happened with this chance, by halving."""
    low, high = 0.0, horizon
    while high - low > 1e-6 * horizon:
        middle = (low + high) / 2
        low, high = (middle, high) if by(middle) < chance else (low, middle)
    return high
