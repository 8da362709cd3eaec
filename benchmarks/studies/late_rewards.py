"""What rewards that come late cost Thompson sampling."""

from __future__ import annotations

import numpy as np

from benchmarks.bandit_worlds import play
from benchmarks.rows import Row, at_most

SEED = 32
PROBLEMS = {"10%/5%/5%/5%": (0.10, 0.05, 0.05, 0.05), "50%/40%/30%/20%": (0.5, 0.4, 0.3, 0.2)}


def study(quick: bool) -> list[Row]:
    """Play 10,000 steps with rewards at once and 100 and 1,000 steps late; `quick` only 1,000."""
    runs, delays = (60, (1_000,)) if quick else (400, (100, 1_000))
    rows = []
    for name, rates in PROBLEMS.items():
        if quick and name != "10%/5%/5%/5%":
            continue
        truth = np.array(rates)
        prompt, *late = (
            play(
                lambda _, truth=truth: truth,
                np.random.default_rng(SEED),
                runs=runs,
                marks=(10_000,),
                delay=delay,
            ).mean()
            for delay in (0, *delays)
        )
        for delay, regret in zip(delays, late, strict=True):
            # At the least the delay's own requests are chosen blindly: delay x largest gap.
            rows.append(
                at_most(
                    f"extra regret, rewards {delay:,} late, of delay x largest gap: {name}",
                    float((regret - prompt) / (delay * (max(rates) - min(rates)))),
                    1.2,
                    runs=runs,
                    seed=SEED,
                )
            )
    return rows
