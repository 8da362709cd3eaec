"""A canary at 5% of 100 requests a second: how soon errors roll it back, how seldom nothing does."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from benchmarks.rows import Row, Simulated
from keepwell.stats.rate_comparison import log_evidence

ALPHA = 0.01
SHARE = 0.05
PER_SECOND = 100
CONTROL_RATE = 0.002
SEED = 30


def _seconds(
    rng: np.random.Generator, rate: float, *, runs: int, seconds: int, unsound: bool = False
) -> np.ndarray:
    """Seconds until each run is rolled back, infinite if it is not, looked at after each request.

    The evidence falls between errors, so the looks after errors are those that matter. `unsound`
    asks an exact binomial test of one look instead, after each error.
    """
    on_canary = SHARE * rate
    error = on_canary + (1 - SHARE) * CONTROL_RATE
    requests = PER_SECOND * seconds
    errors = int(requests * error + 6 * math.sqrt(requests * error) + 20)
    at = rng.geometric(error, size=(runs, errors)).cumsum(axis=1)
    canary = (rng.random((runs, errors)) < on_canary / error).cumsum(axis=1)
    total = np.arange(1, errors + 1)
    if unsound:
        alarm = special.bdtrc(canary - 1, total, SHARE) < ALPHA
        alarm &= canary > 0
    else:
        alarm = log_evidence(canary, total - canary, treatment_share=SHARE) >= -math.log(ALPHA)
    alarm &= at <= requests
    first = at[np.arange(runs), alarm.argmax(axis=1)] / PER_SECOND
    return np.where(alarm.any(axis=1), first, np.inf)


def study(quick: bool) -> list[Row]:
    """Raise the canary's error rate from 0.2%, and leave a thousand healthy ones for an hour."""
    runs, healthy, hour = (300, 150, 1800) if quick else (4000, 1000, 3600)
    rng = np.random.default_rng(SEED)
    canaries = Simulated(runs=runs, seed=SEED, quick=quick)
    hours = Simulated(runs=healthy, seed=SEED, quick=quick)
    rows = [
        canaries.at_most(
            f"canary: median seconds to roll back, errors 0.2% to {rate:.0%}",
            np.median(_seconds(rng, rate, runs=runs, seconds=30 * bar)),
            bar,
        )
        for rate, bar in ((0.02, 60), (0.10, 8), (0.50, 2))
    ]
    false, fooled = (
        np.isfinite(_seconds(rng, CONTROL_RATE, runs=healthy, seconds=hour, unsound=unsound)).mean()
        for unsound in (False, True)
    )
    what = "healthy half-hours" if quick else "healthy hours"
    return [
        *rows,
        hours.at_most(f"canary: {what} rolled back", false, 0.01, share=0.01),
        # The control: the same alpha read from a test that is right at one look only.
        hours.at_least(
            f"canary: {what} rolled back by a binomial test after each error", fooled, 0.05
        ),
    ]
