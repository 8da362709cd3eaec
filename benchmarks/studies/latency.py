"""Latency quantiles: bounds that hold at every look, and a slower canary that is found."""

from __future__ import annotations

import numpy as np
from scipy import special

from benchmarks.rows import Row, Simulated
from keepwell.stats.quantile_sequence import quantile_difference, quantile_ranks

ALPHA = 0.05
ROWS = 10_000
STEP = 50
SEED = 50


def _misses(rng: np.random.Generator, p: float, *, runs: int) -> tuple[float, float]:
    """Share of runs whose bounds ever miss the quantile: ours, and those of one look.

    Whether bounds by rank hold the quantile depends only on how many values lie below it.
    """
    looks = np.arange(STEP, ROWS + 1, STEP)
    below = rng.binomial(STEP, p, size=(runs, looks.size)).cumsum(axis=1)
    ranks = np.array([quantile_ranks(int(n), p, alpha=ALPHA, tuned_for=ROWS / 2) for n in looks])
    ours = (below < ranks[:, 0]) | (below >= ranks[:, 1])
    # The control: ranks from binomial tails, right at one look.
    once = (special.bdtr(below, looks, p) < ALPHA / 2) | (
        special.bdtrc(below - 1, looks, p) < ALPHA / 2
    )
    return float(ours.any(axis=1).mean()), float(once.any(axis=1).mean())


def _rows_until_slower(rng: np.random.Generator, factor: float, *, runs: int) -> np.ndarray:
    """Rows of each arm until treatment's 95th percentile is shown to be above control's."""
    found = np.full(runs, np.inf)
    for run in range(runs):
        control = rng.lognormal(3.0, 0.6, size=ROWS)
        treatment = factor * rng.lognormal(3.0, 0.6, size=ROWS)
        for n in range(500, ROWS + 1, 500):
            bounds = quantile_difference(
                treatment[:n], control[:n], 0.95, alpha=ALPHA, tuned_for=ROWS / 2
            )
            if bounds.lower > 0:
                found[run] = n
                break
    return found


def study(quick: bool) -> list[Row]:
    """Look each 50 requests at the median and the 99th percentile; then slow a canary down."""
    runs, rollouts = (400, 12) if quick else (4000, 300)
    rng = np.random.default_rng(SEED)
    simulated = Simulated(runs=runs, seed=SEED, quick=quick)
    canaries = Simulated(runs=rollouts, seed=SEED, quick=quick)
    rows = []
    for p in (0.5, 0.95, 0.99):
        ours, once = _misses(rng, p, runs=runs)
        rows += [
            simulated.at_most(
                f"latency: bounds of quantile {p} that ever miss, 200 looks",
                ours,
                ALPHA,
                share=ALPHA,
            ),
            simulated.at_least(f"latency: bounds of one look beside them, quantile {p}", once, 0.2),
        ]
    slower = _rows_until_slower(rng, 1.2, runs=rollouts)
    equal = _rows_until_slower(rng, 1.0, runs=rollouts)
    return [
        *rows,
        canaries.at_least(
            "latency: 95th percentile 20% slower, found by 10,000 requests a side",
            np.isfinite(slower).mean(),
            0.95,
            share=0.95,
        ),
        canaries.at_most(
            "latency: arms alike called slower", np.isfinite(equal).mean(), ALPHA, share=ALPHA
        ),
    ]
