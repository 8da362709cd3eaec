"""A true difference of rates, 10% against 12%: how surely and how soon each test finds it."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.rows import Row, at_least, at_most, share_error
from keepwell.stats.outcome_comparison import log_evidence

ALPHA = 0.05
UNITS = 10_000  # a side
LOOKS = 100
SEED = 11


def _stops(rng: np.random.Generator, rates: tuple[float, float], *, runs: int, declared: float):
    """Units a side at the look that rejects, infinite if none does, shape (runs,)."""
    step = UNITS // LOOKS
    units = step * np.arange(1, LOOKS + 1)
    control, treatment = (
        rng.binomial(step, rate, size=(runs, LOOKS)).cumsum(axis=1) for rate in rates
    )
    evidence = log_evidence(treatment, units, control, units, rate=declared, effect=0.02)
    found = evidence >= -math.log(ALPHA)
    return np.where(found.any(axis=1), units[found.argmax(axis=1)], np.inf)


def study(quick: bool) -> list[Row]:
    """Look 100 times at 10,000 units a side."""
    runs = 500 if quick else 10_000
    rng = np.random.default_rng(SEED)
    right, half, double, none = (
        _stops(rng, rates, runs=runs, declared=declared)
        for rates, declared in (
            ((0.10, 0.12), 0.10),
            ((0.10, 0.12), 0.05),
            ((0.10, 0.12), 0.20),
            ((0.10, 0.10), 0.10),
        )
    )
    slack = share_error(0.95, runs) if quick else 0.0
    what = {"runs": runs, "seed": SEED}
    return [
        at_least(
            "power: 10% against 12%, 10,000 a side, 100 looks",
            np.isfinite(right).mean(),
            0.95,
            slack=slack,
            **what,
        ),
        at_most(
            "power: median stop, units a side",
            np.median(right),
            4_200,
            slack=300 if quick else 0,
            **what,
        ),
        at_least(
            "power: the rate declared half of what it is",
            np.isfinite(half).mean(),
            0.90,
            slack=slack,
            **what,
        ),
        at_least(
            "power: the rate declared double of what it is",
            np.isfinite(double).mean(),
            0.90,
            slack=slack,
            **what,
        ),
        at_most(
            "power: false positives of the same looks",
            np.isfinite(none).mean(),
            ALPHA,
            slack=slack,
            **what,
        ),
    ]
