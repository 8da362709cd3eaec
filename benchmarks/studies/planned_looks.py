"""A declared horizon: group-sequential tests keep alpha and find more, and forecasts come true."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.rows import Row, Simulated
from keepwell.stats.forecast import canary_forecast, outcome_forecast, sequential_forecast
from keepwell.stats.group_sequential import Spending, boundaries
from keepwell.stats.outcome_comparison import log_evidence
from keepwell.stats.rate_comparison import log_evidence as error_evidence

UNITS = 10_000
LOOKS = 100
ALPHA = 0.05
SEED = 60


def _counts(rng: np.random.Generator, rate: float, runs: int) -> np.ndarray:
    return rng.binomial(UNITS // LOOKS, rate, size=(runs, LOOKS)).cumsum(axis=1)


def _stops(crossed: np.ndarray, units: np.ndarray) -> np.ndarray:
    return np.where(crossed.any(axis=1), units[crossed.argmax(axis=1)], np.inf)


def study(quick: bool) -> list[Row]:
    """Compare three spending functions at 100 looks, then forecasts with what happens."""
    runs = 600 if quick else 10_000
    rng = np.random.default_rng(SEED)
    simulated = Simulated(runs=runs, seed=SEED, quick=quick)
    units = UNITS // LOOKS * np.arange(1, LOOKS + 1)
    control, treatment = _counts(rng, 0.10, runs), _counts(rng, 0.12, runs)
    other = _counts(rng, 0.10, runs)

    def z(a: np.ndarray) -> np.ndarray:
        p, q = a / units, control / units
        both = (p + q) / 2
        return (p - q) / np.sqrt(np.maximum(2 * both * (1 - both), 1e-9) / units)

    rows = []
    names: tuple[Spending, ...] = ("obrien_fleming", "pocock", "kim_demets")
    for spending in names:
        plan = boundaries(units / UNITS, alpha=ALPHA, spending=spending)
        critical = np.asarray(plan.critical)
        found = _stops(np.abs(z(treatment)) >= critical, units)
        false = _stops(np.abs(z(other)) >= critical, units)
        rows += [
            # All of alpha is spent: a share below 5% would be luck, so the bar is its neighbourhood.
            simulated.within(
                f"planned looks: false positives, {spending}, 100 looks",
                np.isfinite(false).mean(),
                0.043,
                0.057,
                share=ALPHA,
            ),
            simulated.at_least(
                f"planned looks: power at 10% against 12%, {spending}",
                np.isfinite(found).mean(),
                0.97,
                share=0.97,
            ),
            simulated.at_most(f"planned looks: median stop, {spending}", np.median(found), 5_000),
        ]
    evidence = log_evidence(treatment, units, control, units, rate=0.10, effect=0.02)
    found = _stops(evidence >= -math.log(ALPHA), units)
    told = outcome_forecast(rate=0.10, effect=0.02, horizon=UNITS, looks=LOOKS)
    plan = boundaries(units / UNITS, alpha=ALPHA, spending="kim_demets")
    planned = _stops(np.abs(z(treatment)) >= np.asarray(plan.critical), units)
    planned_told = sequential_forecast(
        effect=0.02,
        control_variance=0.1 * 0.9,
        treatment_variance=0.12 * 0.88,
        horizon=UNITS,
        looks=LOOKS,
        plan=plan,
    )
    for name, happened, said in (
        ("the outcome comparison", found, told),
        ("planned looks", planned, planned_told),
    ):
        rows += [
            simulated.within(
                f"forecast: power of {name}, told less simulated",
                said.power - np.isfinite(happened).mean(),
                -0.01,
                0.01,
                share=0.95,
            ),
            simulated.within(
                f"forecast: median stop of {name}, told over simulated",
                said.median_units / np.median(happened),
                0.95,
                1.05,
                slack=0.1,
            ),
        ]
    return [*rows, _canary(rng, quick=quick)]


def _canary(rng: np.random.Generator, *, quick: bool) -> Row:
    """Errors 0.2% to 2% at 5% of 100 requests a second."""
    runs = 400 if quick else 4000
    error = 0.05 * 0.02 + 0.95 * 0.002
    at = rng.exponential(1 / (100 * error), size=(runs, 600)).cumsum(axis=1)
    canary = (rng.random((runs, 600)) < 0.05 * 0.02 / error).cumsum(axis=1)
    alarm = error_evidence(canary, np.arange(1, 601) - canary, treatment_share=0.05) >= math.log(
        100
    )
    happened = np.median(at[np.arange(runs), alarm.argmax(axis=1)])
    told = canary_forecast(
        control_rate=0.002, treatment_rate=0.02, treatment_share=0.05, requests_per_second=100
    )
    return Simulated(runs=runs, seed=SEED, quick=quick).within(
        "forecast: median seconds of a canary, told over simulated",
        told.median_seconds / happened,
        0.95,
        1.05,
        slack=0.15,
    )
