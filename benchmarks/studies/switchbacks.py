"""Turns of a shared market, looked at every day: how often a switchback sees what is not there, and what is."""

from __future__ import annotations

import numpy as np

from benchmarks.rows import Row, at_least, at_most, share_error
from keepwell.stats.difference_sequence import ArmSums, DifferenceSequence
from keepwell.stats.switchback import switchback_sequence

HOURS = 24 * 28
SEED = 36
SPREAD = 6.0
"""Of one decision beside its hour."""


def market(rng: np.random.Generator, effect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean value, decisions and arm of each hour of four weeks.

    Hours follow the clock and the weekend, and what was odd in one is still there in the next (by 0.7).
    """
    hour = np.arange(HOURS)
    demand = 5 * np.sin(hour / 24 * 2 * np.pi) + 2.0 * (hour // 24 % 7 >= 5)
    shock = rng.normal(size=HOURS)
    for k in range(1, HOURS):
        shock[k] += 0.7 * shock[k - 1]
    rows = 1 + rng.poisson(40 * (1.2 + np.sin(hour / 24 * 2 * np.pi)))
    arm = rng.integers(2, size=HOURS)
    noise = rng.normal(size=HOURS) * SPREAD / np.sqrt(rows)
    return 50 + demand + shock + noise + effect * arm, rows, arm


def found_on(days: range, value: np.ndarray, rows: np.ndarray, arm: np.ndarray) -> int:
    """Give the first day on which the bounds exclude no effect; 0 if there is none."""
    hour = np.arange(HOURS)
    for day in days:
        seen = slice(0, 24 * day)
        found = switchback_sequence(
            value[seen], hour[seen], arm[seen], rows=rows[seen], season=hour[seen] % 24
        )
        if found.excludes(0.0):
            return day
    return 0


def by_decision(days: range, value: np.ndarray, rows: np.ndarray, arm: np.ndarray) -> bool:
    """Tell whether taking each decision as a piece of evidence ever says that there is an effect."""
    for day in days:
        seen = slice(0, 24 * day)
        sides = []
        for side in (1, 0):
            own = arm[seen] == side
            y, n = value[seen][own], rows[seen][own]
            mean = float((n * y).sum() / n.sum())
            squares = float((n * ((y - mean) ** 2 + SPREAD**2)).sum())
            sides.append(ArmSums(count=int(n.sum()), mean=mean, squares=squares))
        if DifferenceSequence(
            alpha=0.05, tuned_for=20_000, treatment=sides[0], control=sides[1]
        ).excludes(0.0):
            return True
    return False


def study(quick: bool) -> list[Row]:
    """Take turns for four weeks, without an effect and with one of 1.0, where an hour is worth 50."""
    runs = 20 if quick else 1000
    days = range(2, 29, 4) if quick else range(2, 29)
    rng = np.random.default_rng(SEED)
    nothing = [market(rng, 0.0) for _ in range(runs)]
    something = [found_on(days, *market(rng, 1.0)) for _ in range(runs)]
    return [
        at_most(
            "switchback: false positives, looked at every day for four weeks",
            float(np.mean([found_on(days, *each) > 0 for each in nothing])),
            0.05,
            runs=runs,
            seed=SEED,
            slack=share_error(0.05, runs) if quick else 0.0,
        ),
        at_least(
            "control: false positives of taking each decision by itself",
            float(np.mean([by_decision(days, *each) for each in nothing])),
            0.3,
            runs=runs,
            seed=SEED,
        ),
        at_least(
            "switchback: effect of 2% of an hour's value found within four weeks",
            float(np.mean([day > 0 for day in something])),
            0.8,
            runs=runs,
            seed=SEED,
            slack=share_error(0.8, runs) if quick else 0.0,
        ),
        at_most(
            "switchback: median day on which it is found",
            float(np.median([day or 29 for day in something])),
            21,
            runs=runs,
            seed=SEED,
        ),
    ]
