"""A world in which the best arm is swapped: Thompson sampling that forgets beside the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.bandit_worlds import play
from benchmarks.rows import Row, at_most

SWAP = 10_000
FORGET = 0.9995
"""About the last 2,000 rewards count: a fifth of the time between swaps."""
WINDOW = 2_000
SEED = 31
PROBLEMS = {
    "10%/5%/5%/5%": (0.10, 0.05, 0.05, 0.05),
    "30%/20%/10%": (0.3, 0.2, 0.1),
    "50%/30%/30%/30%": (0.5, 0.3, 0.3, 0.3),
}


def study(quick: bool) -> list[Row]:
    """Play 40,000 steps, every 10,000 the rates move on by one arm; with `quick` a quarter of it all."""
    runs, turns_played, swap = (20, 4, SWAP // 4) if quick else (200, 4, SWAP)
    forget = 1 - (1 - FORGET) * SWAP / swap
    rows = []
    for name, rates in PROBLEMS.items():
        if quick and name != "50%/30%/30%/30%":  # one swap tells most where gaps are large
            continue
        truth = np.array(rates)
        turns = [np.roll(truth, turn) for turn in range(turns_played)]
        ways: dict[str, dict[str, Any]] = {
            "plain": {},
            "discounted": {"forget": forget},
            "sliding": {"window": WINDOW},
        }
        regret = {
            way: play(
                lambda t, turns=turns: turns[t // swap],
                np.random.default_rng(SEED),
                runs=runs,
                marks=(turns_played * swap,),
                **options,
            ).mean()
            for way, options in ways.items()
            if way != "sliding" or not quick
        }
        for way in list(regret)[1:]:
            rows.append(
                at_most(
                    f"regret of {way} Thompson, of plain, best arm swapped each {swap:,}: {name}",
                    float(regret[way] / regret["plain"]),
                    0.55,
                    runs=runs,
                    seed=SEED,
                )
            )
    return rows
