"""A known uplift against a permanent holdout, in skewed money: how often the interval covers it."""

from __future__ import annotations

import numpy as np

from benchmarks.rows import Row, Simulated
from keepwell.stats.attribution import attribute_value
from keepwell.stats.switchback import switchback_effect

UNITS, HOLDOUT, UPLIFT = 6_000, 0.1, 0.04
SEED = 35


def _orders(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, holdout and units of a month: customers differ widely, orders of one less so.

    The model adds 4% to each order of the customers it serves.
    """
    held = rng.random(UNITS) < HOLDOUT
    unit = np.repeat(np.arange(UNITS), 1 + rng.poisson(2.0, size=UNITS))
    habit = rng.lognormal(0.0, 0.6, size=UNITS)
    value = 20 * habit[unit] * rng.lognormal(0.0, 0.4, size=unit.size)
    return value * np.where(held[unit], 1.0, 1 + UPLIFT), held[unit], unit


def _market(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Values, blocks, arms, ages in the block and hours of four weeks, switched every two hours.

    All requests of an hour share its demand; what the arm adds (2.0) is there after the first half
    hour, before that the last block's arm still works.
    """
    blocks, per_block = 336, 40
    arm = rng.integers(2, size=blocks)
    block = np.repeat(np.arange(blocks), per_block)
    since = np.tile(np.linspace(0, 2, per_block, endpoint=False), blocks)
    hour = block % 12
    lasting = np.where(since < 0.5, np.roll(arm, 1)[block], arm[block])
    demand = 5 * np.sin(hour / 12 * 2 * np.pi) + rng.normal(0, 1.5, size=blocks)[block]
    value = 50 + demand + rng.normal(0, 6, size=block.size) + 2.0 * lasting
    return value, block, arm[block], since, hour


def study(quick: bool) -> list[Row]:
    """Attribute many months of orders, and as many switchbacks of a shared market."""
    runs = 20 if quick else 400
    rng = np.random.default_rng(SEED)
    simulated = Simulated(runs=runs, seed=SEED, quick=quick)
    truth = UPLIFT * 20 * np.exp(0.6**2 / 2 + 0.4**2 / 2)
    months = []
    for _ in range(runs):
        value, held, unit = _orders(rng)
        months.append((attribute_value(value, held, units=unit), attribute_value(value, held)))
    covered = [not own.per_decision.excludes(truth) for own, _ in months]
    alone = [not rows.per_decision.excludes(truth) for _, rows in months]
    markets = [_market(rng) for _ in range(runs)]
    switched = [
        switchback_effect(v, b, a, since=s, burn_in=0.5, strata=h) for v, b, a, s, h in markets
    ]
    hasty = [switchback_effect(v, b, a, strata=h) for v, b, a, _, h in markets]
    return [
        simulated.within(
            "value attribution: 95% intervals cover a known uplift of 4%",
            float(np.mean(covered)),
            0.93,
            0.97,
            share=0.95,
        ),
        simulated.at_most(
            "control: intervals that take orders of one customer as unrelated cover",
            float(np.mean(alone)),
            0.93,
        ),
        simulated.within(
            "switchback: 95% intervals cover a known effect",
            float(np.mean([not each.excludes(2.0) for each in switched])),
            0.93,
            0.97,
            share=0.95,
        ),
        simulated.at_most(
            "control: switchback without its burn-in covers",
            float(np.mean([not each.excludes(2.0) for each in hasty])),
            0.8,
        ),
    ]
