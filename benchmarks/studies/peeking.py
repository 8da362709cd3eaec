"""Two arms without a difference, looked at after every unit: how often each test is fooled."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.rows import Row, Simulated
from keepwell.stats.outcome_comparison import log_evidence

ALPHA = 0.05
RATES = (0.002, 0.01, 0.1, 0.5)
UNITS = 20_000  # of both arms, the arm of each drawn by a fair coin
CHUNK = 50
SEED = 10


def _fooled(
    rng: np.random.Generator, rate: float, declared: float, *, runs: int, units: int
) -> tuple[float, float]:
    """Share of runs that ever reject, by our test and by a z test of two proportions."""
    # The effect declared is one that a single look at the end would find nearly surely.
    effect = 4.5 * math.sqrt(declared * (1 - declared) / (units / 4))
    ours = naive = 0
    for start in range(0, runs, CHUNK):
        shape = (min(CHUNK, runs - start), units)
        arm = rng.random(shape, dtype=np.float32) < 0.5
        event = rng.random(shape, dtype=np.float32) < rate
        n = arm.cumsum(axis=1, dtype=np.float64)
        m = np.arange(1, units + 1) - n
        a = (arm & event).cumsum(axis=1, dtype=np.float64)
        b = event.cumsum(axis=1, dtype=np.float64) - a
        evidence = log_evidence(a, n, b, m, rate=declared, effect=effect)
        ours += int((evidence >= -math.log(ALPHA)).any(axis=1).sum())
        pooled = (a + b) / (n + m)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (a / n - b / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        naive += int((np.abs(z) > 1.959964).any(axis=1).sum())
    return ours / runs, naive / runs


def study(quick: bool) -> list[Row]:
    """Count false positives of 2,000 runs at each rate; once with the rate declared wrongly."""
    runs, units = (200, 2_000) if quick else (2_000, UNITS)
    rng = np.random.default_rng(SEED)
    simulated = Simulated(runs=runs, seed=SEED, quick=quick)
    rows = []
    rates = RATES[1:] if quick else RATES  # 2,000 units have four events at the first
    for rate, declared in (*((rate, rate) for rate in rates), (0.02, 0.2)):
        ours, naive = _fooled(rng, rate, declared, runs=runs, units=units)
        told = f"rate {rate:.1%}" + (f" declared as {declared:.0%}" if rate != declared else "")
        rows += [
            simulated.at_most(
                f"peeking: false positives, {told}, {units:,} looks", ours, ALPHA, share=ALPHA
            ),
            # The control: a test that is right at one look and wrong at many.
            simulated.at_least(
                f"peeking: a naive z test beside it, {told}", naive, 0.15 if quick else 0.2
            ),
        ]
    return rows
