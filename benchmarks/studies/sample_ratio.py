"""The sample-ratio test: false alarms under true shares, and the users until lost ones are found."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.rows import Row, at_least, at_most, share_error
from keepwell.stats.sample_ratio import log_evidence

ALPHA = 0.001
USERS = 200_000
STEP = 100
SEED = 20


def _first_alarms(rng: np.random.Generator, share: float, *, runs: int, users: int) -> np.ndarray:
    """Users at the first look that alarms, infinite if none does, for each run."""
    found = np.full(runs, math.inf)
    for start in range(0, runs, 100):
        first = rng.binomial(STEP, share, size=(min(100, runs - start), users // STEP)).cumsum(1)
        seen = STEP * np.arange(1, users // STEP + 1)
        evidence = log_evidence(np.stack([first, seen - first], axis=-1), shares=(0.5, 0.5))
        alarm = evidence >= -math.log(ALPHA)
        hit = alarm.any(axis=1)
        found[start : start + hit.size][hit] = seen[alarm.argmax(axis=1)[hit]]
    return found


def study(quick: bool) -> list[Row]:
    """Peek each 100 users, at even shares and at 51 to 49."""
    runs, true = (300, 300) if quick else (4000, 12_000)
    users = USERS // 4 if quick else USERS
    rng = np.random.default_rng(SEED)
    false = float(np.isfinite(_first_alarms(rng, 0.5, runs=true, users=users)).mean())
    found = _first_alarms(rng, 0.51, runs=runs, users=USERS)
    return [
        at_most(
            f"sample ratio: false alarms, {users:,} users peeked each {STEP}",
            false,
            ALPHA,
            runs=true,
            seed=SEED,
            slack=share_error(ALPHA, true) if quick else 0.0,
        ),
        at_most(
            "sample ratio: median users until 51/49 is found",
            float(np.median(found)),
            45_000,
            runs=runs,
            seed=SEED,
            slack=5_000 if quick else 0,
        ),
        at_least(
            "sample ratio: share of runs that find 51/49 by 200,000 users",
            float(np.isfinite(found).mean()),
            0.99,
            runs=runs,
            seed=SEED,
        ),
    ]
