"""CUPED: the variance it leaves is 1 - rho^2, and its sequence keeps its error rate."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.rows import Row, at_most, share_error, within
from keepwell.stats.cuped import cuped_difference
from keepwell.stats.difference_sequence import DifferenceSequence

SEED = 40
ARM = 1000


def _ratio(rng: np.random.Generator, rho: float, runs: int) -> tuple[float, float]:
    """Variance of the adjusted over that of the plain difference, and its intervals' coverage."""
    plain, adjusted, covered = np.empty(runs), np.empty(runs), 0
    for run in range(runs):
        # Skewed, as money is: the covariate explains rho^2 of the variance, not all of the shape.
        before = rng.exponential(size=2 * ARM)
        value = rho * before + math.sqrt(1 - rho**2) * rng.exponential(size=2 * ARM)
        value[:ARM] += 0.1
        found = cuped_difference(
            value[:ARM],
            value[ARM:],
            treatment_covariate=before[:ARM],
            control_covariate=before[ARM:],
        )
        plain[run] = value[:ARM].mean() - value[ARM:].mean()
        adjusted[run] = found.estimate
        covered += not found.excludes(0.1)
    return float(adjusted.var() / plain.var()), covered / runs


def _sequences_that_miss(rng: np.random.Generator, runs: int) -> float:
    missed = 0
    for _ in range(runs):
        sequence = DifferenceSequence(alpha=0.05, tuned_for=2000)
        for _ in range(40):
            before = rng.exponential(size=100)
            value = 0.7 * before + rng.exponential(size=100)
            sequence = sequence.update(
                treatment=value[:50],
                control=value[50:],
                treatment_covariate=before[:50],
                control_covariate=before[50:],
            )
            if sequence.excludes(0.0):
                missed += 1
                break
    return missed / runs


def study(quick: bool) -> list[Row]:
    """Simulate three correlations."""
    runs, sequences = (500, 60) if quick else (20_000, 2000)
    rng = np.random.default_rng(SEED)
    rows = []
    for rho in (0.3, 0.6, 0.9):
        ratio, coverage = _ratio(rng, rho, runs)
        rows += [
            within(
                f"CUPED: variance left over 1 - rho^2, rho {rho}",
                ratio / (1 - rho**2),
                0.95,
                1.05,
                runs=runs,
                seed=SEED,
                # Variances of two estimates correlated by sqrt(1 - rho^2): error 2 rho / sqrt(runs).
                slack=6 * rho / math.sqrt(runs) if quick else 0.0,
            ),
            within(
                f"CUPED: 95% intervals that cover, rho {rho}",
                coverage,
                0.94,
                0.96,
                runs=runs,
                seed=SEED,
                slack=share_error(0.05, runs) if quick else 0.0,
            ),
        ]
    rows.append(
        at_most(
            "CUPED: sequences that ever miss, 40 looks at 100 units",
            _sequences_that_miss(rng, sequences),
            0.05,
            runs=sequences,
            seed=SEED,
            slack=share_error(0.05, sequences) if quick else 0.0,
        )
    )
    return rows
