"""A/B and multivariate tests as whole controllers: alike versions called different, and better ones found as foretold.

The real strategies with their default rules look once a day at a simulated shop (`benchmarks.endpoints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from benchmarks.endpoints import (
    NEVER,
    Traffic,
    ends,
    every,
    known_from,
    median_days,
    promoted,
    state_of,
    stopped,
    times,
    visits,
)
from benchmarks.rows import Row, Simulated, at_least, at_most, share_error
from keepwell.core.clock import DAY, HOUR, Time
from keepwell.serving.rollouts.forecasts import forecast
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategies.ab import AB, ABRules, units_of, worths_of
from keepwell.serving.rollouts.strategies.multivariate import Multivariate, MultivariateRules
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, State
from keepwell.serving.rollouts.strategy import promoted as promoted_arm

SEED = 51
ERRORS = 0.002
DAYS, PER_DAY, UNITS = 29, 300, 20_000
SIGMA = 0.6
"""Of the logarithm of an order's amount; they are 24 on average, and one in a hundred is above 80."""
FEWER = 0.05
"""By so much less may be found than was told: a tenth fewer new units come here, since many of them came before."""
FACTORS = {
    "1": {"model": "old", "price": "old"},
    "2": {"model": "new", "price": "old"},
    "3": {"model": "old", "price": "new"},
    "4": {"model": "new", "price": "new"},
}


def shop(
    rng: np.random.Generator,
    *,
    lifts: Sequence[float],
    orders: float = 0.1,
    money: bool = True,
    days: float = DAYS,
) -> Traffic:
    """Draw visits to a shop where such a share orders, some of the units oftener than others.

    Orders are worth amounts that are skewed, or 1 each. One is known some hours later, one in fifty only after a day;
    who orders nothing is never heard of. `lifts` are what the arms add, by visit, to what it is worth on average.
    """
    at = times(rng, days=days, per_day=PER_DAY)
    n, arms = at.size, len(lifts)
    unit = visits(rng, n, units=UNITS)
    buys = rng.beta(10 * orders, 10 * (1 - orders), UNITS)[unit]
    amount = rng.lognormal(3.0, SIGMA, n) if money else np.ones(n)
    mean = orders * (np.exp(3.0 + SIGMA**2 / 2) if money else 1.0)
    # Better by more orders, not by greater ones. One draw for all arms: only one of them is ever logged.
    chance = buys[:, None] * (1 + np.asarray(lifts) / mean)
    ordered = rng.random(n)[:, None] < chance
    known = at + (rng.exponential(6.0, n) * HOUR).astype(np.int64)
    return Traffic(
        time=at,
        unit=unit,
        output=np.full((n, arms), 0.5),
        failed=rng.random((n, arms)) < ERRORS,
        outcome=np.where(ordered, amount[:, None], np.nan),
        labelled=np.where(ordered.any(axis=1), known, NEVER),
    )


def rolling_out(rules: Any, *, arms: int = 2, **world: Any) -> State:
    """Give a rollout's state as it begins in the shop, which it knows from two weeks before."""
    state = state_of(rules, arms=arms, label_delay=DAY, default=0.0)
    before = shop(np.random.default_rng(SEED), lifts=(0.0,), days=14, **world)
    return msgspec.structs.replace(state, known=known_from(before, state))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An A/B test of the shop, and what a better version adds by visit."""

    name: str
    rules: ABRules
    lift: float
    money: bool = True
    orders: float = 0.6
    """Where a better one is looked for. Rarer orders spread more the more there are, which no forecast knows."""


TRIALS = (
    Trial(name="A/B", rules=ABRules(), lift=2.0),
    Trial(name="A/B to a horizon of 2,000", rules=ABRules(horizon=2000), lift=1.7),
    Trial(name="A/B of 0 or 1", rules=ABRules(), lift=0.035, money=False, orders=0.1),
)
LOOKS = every(days=DAYS, times_a_day=1)


def study(quick: bool) -> list[Row]:
    """Compare alike versions, better ones and worse ones for four weeks."""
    found = [row for trial in TRIALS[: 1 if quick else None] for row in _tried(trial, quick=quick)]
    return found if quick else [*found, _peeking(), _worse(), _multivariate()]


def _tried(trial: Trial, *, quick: bool) -> list[Row]:
    runs, some = (5, 4) if quick else (300, 150)
    alike = Simulated(runs=runs, seed=SEED, quick=quick)
    found = Simulated(runs=some, seed=SEED + 1, quick=quick)
    name, rules = f"controllers: {trial.name}", trial.rules
    state = rolling_out(rules, money=trial.money)
    drawn = partial(shop, money=trial.money, lifts=(0.0, 0.0))
    same = ends(AB(), state, drawn, LOOKS, runs=runs, seed=SEED)
    # A horizon spends all of alpha: less than 5% would be luck there.
    room = share_error(0.05, runs) if rules.horizon else 0.0
    rules = msgspec.structs.replace(rules, minimum_effect=trial.lift)
    state = rolling_out(rules, money=trial.money, orders=trial.orders)
    told = forecast(AB(), "ab", state).expected[1]
    assert told.power is not None
    assert told.median_days is not None
    drawn = partial(shop, money=trial.money, orders=trial.orders, lifts=(0.0, trial.lift))
    better = ends(AB(), state, drawn, LOOKS, runs=some, seed=SEED + 1)
    return [
        alike.at_most(
            f"{name}, alike called different",
            promoted(same) + stopped(same, "worse"),
            0.05 + room,
            share=0.05,
        ),
        alike.at_most(
            f"{name}, alike stopped by a guard",
            stopped(same, "challenger makes") + stopped(same, "units are not"),
            rules.error_alpha + rules.ratio_alpha,
            share=0.011,
        ),
        found.at_least(
            f"{name}, better found (told {told.power:.0%})",
            promoted(better),
            told.power - share_error(told.power, some) - FEWER,
        ),
        found.within(
            f"{name}, median day of that (told {told.median_days:.1f})",
            median_days(better, "promote") / told.median_days,
            0.75,
            1.25,
            slack=0.5,
        ),
    ]


class Peeking(AB):
    """The control: a z test, right at one look, at every look."""

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        worth = worths_of(state, units_of(state, seen))
        ours, theirs = worth["challenger"].values, worth[CHAMPION].values
        if min(len(ours), len(theirs)) >= state.rules.min_rows:
            error = np.hypot(ours.std() / np.sqrt(len(ours)), theirs.std() / np.sqrt(len(theirs)))
            if abs(ours.mean() - theirs.mean()) > 1.96 * error:
                return promoted_arm(state.challenger, "different")
        return super().plan(state, seen, now, rng)


def _peeking() -> Row:
    runs = 100
    same = ends(
        Peeking(),
        rolling_out(ABRules()),
        partial(shop, lifts=(0.0, 0.0)),
        LOOKS,
        runs=runs,
        seed=SEED,
    )
    return at_least(
        "control: A/B by a z test at every look, alike called different",
        promoted(same),
        0.1,
        runs=runs,
        seed=SEED,
    )


def _worse() -> Row:
    runs = 150
    state, drawn = rolling_out(ABRules(), orders=0.6), partial(shop, orders=0.6, lifts=(0.0, -2.0))
    found = ends(AB(), state, drawn, LOOKS, runs=runs, seed=SEED + 2)
    return at_most("controllers: A/B, worse promoted", promoted(found), 0, runs=runs, seed=SEED + 2)


def _multivariate() -> Row:
    runs = 150
    state = rolling_out(MultivariateRules(factors=FACTORS), arms=4)
    drawn = partial(shop, lifts=(0.0,) * 4)
    same = ends(Multivariate(), state, drawn, LOOKS, runs=runs, seed=SEED + 3)
    return at_most(
        "controllers: multivariate, four alike, one promoted or all refused as worse",
        promoted(same) + stopped(same, "worse"),
        0.05,
        runs=runs,
        seed=SEED + 3,
    )
