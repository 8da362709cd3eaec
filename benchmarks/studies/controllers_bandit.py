"""Bandits as whole controllers: how often the verdict promotes an alike version, and finds a better one as foretold.

The real strategy with its default rules looks once a day at a simulated shop (`benchmarks.endpoints`).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.endpoints import ends, promoted
from benchmarks.rows import Row, Simulated, share_error
from benchmarks.studies.controllers_units import LOOKS, rolling_out, shop
from keepwell.serving.rollouts.forecasts import forecast
from keepwell.serving.rollouts.strategies.bandit import Bandit, BanditRules

SEED = 71


def study(quick: bool) -> list[Row]:
    """Let Thompson draw among arms that are alike, and with one that earns what the forecast says it will find."""
    rows = []
    for arms, runs, some in ((2, 3, 3),) if quick else ((2, 400, 150), (3, 100, 100)):
        alike = Simulated(runs=runs, seed=SEED, quick=quick)
        found = Simulated(runs=some, seed=SEED + 1, quick=quick)
        state = rolling_out(BanditRules(), arms=arms, orders=0.6)
        told = forecast(Bandit(), "bandit", state).expected[1]
        assert told.effect is not None
        assert told.power is not None
        drawn = partial(shop, lifts=(0.0,) * arms)
        same = ends(Bandit(), state, drawn, LOOKS, runs=runs, seed=SEED)
        drawn = partial(shop, orders=0.6, lifts=(0.0, told.effect, *[0.0] * (arms - 2)))
        better = ends(Bandit(), state, drawn, LOOKS, runs=some, seed=SEED + 1)
        rows += [
            alike.at_most(
                f"controllers: bandit, {arms} alike, one promoted", promoted(same), 0.05, share=0.05
            ),
            found.at_least(
                f"controllers: bandit, better of {arms} found (told {told.power:.0%})",
                float(np.mean([each.winner == 2 for each in better])),
                told.power - share_error(told.power, some),
            ),
        ]
    return rows
