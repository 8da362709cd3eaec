"""Champion-challenger and switchback as whole controllers: alike versions called different, and better ones found.

The real strategies with their default rules look once a day at a simulated endpoint (`benchmarks.endpoints`) whose
days, or hours, differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.endpoints import (
    NEVER,
    START,
    End,
    Traffic,
    ends,
    every,
    median_days,
    promoted,
    state_of,
    stopped,
    times,
    visits,
)
from benchmarks.rows import Row, Simulated
from benchmarks.studies.switchbacks import HOURS, market
from keepwell.core.clock import DAY, HOUR
from keepwell.serving.rollouts.strategies.champion_challenger import (
    TUNED_DAYS,
    ChampionChallenger,
)
from keepwell.serving.rollouts.strategies.switchback import Switchback, SwitchbackRules
from keepwell.serving.rollouts.strategy import Rules
from keepwell.stats.performance import log_loss_rows

SEED = 61
ERRORS = 0.002
NOISY, CALM = 0.9, 0.3
"""How far off, in log-odds, the two versions are of which one is better."""


def labels(
    rng: np.random.Generator, *, days: float, per_day: float, noises: Sequence[float]
) -> Traffic:
    """Draw decisions whose outcome is 0 or 1, foretold by arms that are the further off the greater their noise.

    Half of its variance is the day's: what a model misses today it misses all day. Labels come a day later on average.
    """
    at = times(rng, days=days, per_day=per_day)
    n, arms = at.size, len(noises)
    truth = rng.normal(-1.5, 1.0, n)
    day = (at - START) // DAY
    off = rng.normal(size=(int(days) + 2, arms))[day] + rng.normal(size=(n, arms))
    said = truth[:, None] + np.asarray(noises) * np.sqrt(0.5) * off
    outcome = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    lost = rng.random(n) < 0.05
    known = at + (rng.exponential(12.0, n) * HOUR).astype(np.int64)
    return Traffic(
        time=at,
        unit=visits(rng, n, units=5000),
        output=1 / (1 + np.exp(-said)),
        failed=rng.random((n, arms)) < ERRORS,
        outcome=np.repeat(outcome[:, None], arms, axis=1),
        labelled=np.where(lost, NEVER, known),
    )


def streets(rng: np.random.Generator, *, per_hour: float, effects: Sequence[float]) -> Traffic:
    """Draw four weeks of a market that all units share: by the hour it is better or worse for whoever answers."""
    level, _, _ = market(rng, 0.0)
    n = rng.poisson(per_hour * HOURS)
    at = START + np.sort(rng.random(n) * HOURS * HOUR).astype(np.int64)
    worth = level[(at - START) // HOUR] + rng.normal(size=n) * 6.0
    return Traffic(
        time=at,
        unit=visits(rng, n, units=2000),
        output=np.full((n, len(effects)), 0.5),
        failed=rng.random((n, len(effects))) < ERRORS,
        outcome=worth[:, None] + np.asarray(effects),
        labelled=at + (rng.exponential(0.5, n) * HOUR).astype(np.int64),
    )


def loss(outputs: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Give the gain that is compared by default: less loss."""
    return -log_loss_rows(outcomes, outputs)


def study(quick: bool) -> list[Row]:
    """Compare alike versions and better ones for four weeks."""
    return [*_pairs(quick), *_turns(quick)]


def _pairs(quick: bool) -> list[Row]:
    """100 decisions a day, all of them mirrored."""
    runs, some = (10, 5) if quick else (800, 200)
    alike = Simulated(runs=runs, seed=SEED, quick=quick)
    found = Simulated(runs=some, seed=SEED + 1, quick=quick)

    def rolled(noises: tuple[float, float], runs: int, seed: int) -> list[End]:
        return ends(
            ChampionChallenger(),
            state_of(Rules(), label_delay=2 * DAY, gain=loss),
            partial(labels, days=31, per_day=100, noises=noises),
            every(days=31, times_a_day=1),
            runs=runs,
            seed=seed,
        )

    same = rolled((0.5, 0.5), runs, SEED)
    better, worse = rolled((NOISY, CALM), some, SEED + 1), rolled((CALM, NOISY), some, SEED + 1)
    name = "controllers: champion-challenger"
    return [
        alike.at_most(
            f"{name}, alike called different",
            promoted(same) + stopped(same, "it is worse"),
            0.05,
            share=0.05,
        ),
        found.at_least(f"{name}, better found", promoted(better), 0.8, share=0.8),
        found.at_most(
            f"{name}, median day of that", median_days(better, "promote"), TUNED_DAYS, slack=7
        ),
        found.at_least(
            f"{name}, worse refused as worse", stopped(worse, "it is worse"), 0.8, share=0.8
        ),
        found.at_most(f"{name}, worse promoted", promoted(worse), 0.0),
    ]


def _turns(quick: bool) -> list[Row]:
    """Turns of an hour; ten decisions in each."""
    runs, some = (2, 2) if quick else (200, 100)
    alike = Simulated(runs=runs, seed=SEED + 2, quick=quick)
    found = Simulated(runs=some, seed=SEED + 3, quick=quick)

    def rolled(effect: float, runs: int, seed: int) -> list[End]:
        return ends(
            Switchback(),
            state_of(SwitchbackRules(), label_delay=2 * HOUR),
            partial(streets, per_hour=10, effects=(0.0, effect)),
            every(days=28, times_a_day=0.25 if quick else 1),
            runs=runs,
            seed=seed,
        )

    same, better = rolled(0.0, runs, SEED + 2), rolled(1.0, some, SEED + 3)
    name = "controllers: switchback"
    return [
        alike.at_most(
            f"{name}, alike called different",
            promoted(same) + stopped(same, "worse"),
            0.05,
            share=0.05,
        ),
        alike.at_most(
            f"{name}, alike rolled back for errors",
            stopped(same, "challenger"),
            0.01,
            share=0.01,
        ),
        found.at_least(f"{name}, 2% better found", promoted(better), 0.8, share=0.8),
        found.at_most(f"{name}, median day of that", median_days(better, "promote"), 21),
    ]
