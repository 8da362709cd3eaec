"""Thompson sampling beside the Lai-Robbins line, its slope, and UCB1."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.bandit_worlds import play
from benchmarks.rows import Row, at_least, at_most, within
from keepwell.stats.exploration import choose
from keepwell.stats.upper_bounds import ucb1

RARE = (0.10, 0.05, 0.05, 0.05)
PROBLEMS = {
    "10%/5%/5%/5%": RARE,
    "90%/80%": (0.9, 0.8),
    "50%/40%/30%/20%": (0.5, 0.4, 0.3, 0.2),
    # The ten arms of Garivier and Cappe 2011 and of Kaufmann, Korda and Munos 2012.
    "10%, 3 x 5%, 3 x 2%, 3 x 1%": (0.1, *[0.05] * 3, *[0.02] * 3, *[0.01] * 3),
}
SEED = 30


def lai_robbins(rates: tuple[float, ...]) -> float:
    """What any policy that is good everywhere must lose for each unit of log T.

    Source: Lai and Robbins 1985: sum of gap / KL(rate, best rate) over the lesser arms.
    """
    best = max(rates)
    return sum(
        (best - p) / (p * math.log(p / best) + (1 - p) * math.log((1 - p) / (1 - best)))
        for p in rates
        if p < best
    )


def _ucb1(won: np.ndarray, lost: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = won + lost
    return choose(ucb1(n, won / np.maximum(n, 1)), rng)


def study(quick: bool) -> list[Row]:
    """Play each problem to 100,000 steps; with `quick` only the first, to 10,000."""
    runs = 40 if quick else 400
    rows = []
    thompson = 0.0
    for name, rates in list(PROBLEMS.items())[: 1 if quick else None]:
        truth = np.array(rates)
        marks = (10_000,) if quick else (10_000, 100_000)
        rng = np.random.default_rng(SEED)
        regret = play(lambda _, truth=truth: truth, rng, runs=runs, marks=marks).mean(axis=1)
        line = lai_robbins(rates)
        if rates == RARE:
            thompson = float(regret[0])
        rows.append(
            at_most(
                f"Thompson regret at 10,000, of the Lai-Robbins line: {name}",
                regret[0] / (line * math.log(10_000)),
                1.0,
                runs=runs,
                seed=SEED,
            )
        )
        if not quick:
            rows.append(
                within(
                    f"Thompson slope from 10,000 to 100,000, of the line's: {name}",
                    (regret[1] - regret[0]) / (line * math.log(10)),
                    0.6,
                    1.3,
                    runs=runs,
                    seed=SEED,
                )
            )
    truth, fewer = np.array(RARE), runs // 4
    rng = np.random.default_rng(SEED)
    other = play(lambda _: truth, rng, runs=fewer, marks=(10_000,), choose=_ucb1).mean()
    rows.append(
        at_least(
            "UCB1 regret at 10,000, of Thompson's: 10%/5%/5%/5%",
            float(other) / thompson,
            5.0,
            runs=fewer,
            seed=SEED,
        )
    )
    return rows
