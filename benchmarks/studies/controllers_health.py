"""Canary, blue-green and shadow as whole controllers: how often each stops a healthy version, and how soon a sick one.

The real strategies with their default rules look at a simulated endpoint (`benchmarks.endpoints`) again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.special import ndtri

from benchmarks.endpoints import START, End, Traffic, ends, state_of, stopped, visits
from benchmarks.rows import Row, Simulated, share_error
from keepwell.core.clock import SECOND, Time
from keepwell.serving.rollouts.forecasts import delays_alone
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategies.blue_green import BlueGreen, BlueGreenRules
from keepwell.serving.rollouts.strategies.canary import Canary, CanaryRules
from keepwell.serving.rollouts.strategies.shadow import Shadow, ShadowRules
from keepwell.serving.rollouts.strategy import Answer, State, returned
from keepwell.stats.forecast import canary_forecast
from keepwell.stats.rate_comparison import RateComparison

SEED = 41
PER_SECOND = 100
HEALTHY, SICK = 0.002, 0.02
THINNED = 10
"""A healthy hour has a tenth of the requests, ten times as many of which fail: as many errors, on which it rests."""


def requests(
    rng: np.random.Generator,
    *,
    seconds: float,
    per_second: float,
    rates: Sequence[float],
    units: int = 0,
    apart: float = 0.0,
) -> Traffic:
    """Draw requests whose arms fail at these rates; of the second arm's answers a share `apart` differs too much.

    Whether an answer differs hangs by half on who asks. Without `units` everybody comes once.
    """
    n = rng.poisson(seconds * per_second)
    at = START + np.sort(rng.random(n) * seconds * SECOND).astype(np.int64)
    unit = visits(rng, n, units=units, spread=1.5) if units else np.arange(n)
    output = np.full((n, len(rates)), 0.5)
    if apart:
        own = rng.normal(size=unit.max() + 1)[unit]
        differs = np.sqrt(0.5) * own + np.sqrt(0.5) * rng.normal(size=n)
        # A normal number is beyond its quantile in so many cases; the tolerance is 0.1.
        output[:, 1] += 0.1 * differs / float(_beyond(apart))
    return Traffic(
        time=at,
        unit=unit,
        output=output,
        failed=rng.random((n, len(rates))) < np.asarray(rates),
        outcome=np.full((n, len(rates)), np.nan),
        labelled=at,
    )


class ByShare(Canary):
    """The control: errors are held against the plan's share of the units, whatever requests these bring."""

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        answer = super().plan(state, seen, now, rng)
        test = RateComparison(alpha=state.rules.error_alpha)
        test = test.update(
            treatment_events=int(answer.measured["errors"]),
            control_events=int(answer.measured["champion_errors"]),
            treatment_share=state.rules.steps[0],
        )
        return returned(state, "roll back", "more errors") if test.rejected else answer


def _beyond(share: float) -> float:
    """Give the number that a normal one exceeds, to either side, in such a share of cases."""
    return float(ndtri(1 - share / 2))


def looks(*, seconds: float, each: float) -> list[int]:
    """List the moments at which a controller looks."""
    return [START + round(k * each * SECOND) for k in range(1, round(seconds / each) + 1)]


def soon(found: list[End]) -> float:
    """Give the seconds after which half of the rollouts had given the traffic back; infinite if fewer have."""
    return float(np.median([e.days * 86_400 if stopped([e]) else np.inf for e in found]))


def study(quick: bool) -> list[Row]:
    """Leave versions that are well alone, and stop those that are not."""
    return [*_canary(quick), *_blue_green(quick), *_shadow(quick)]


def _canary(quick: bool) -> list[Row]:
    """5% of 100 requests a second."""
    rows = []
    few = "2,000 units, some of them busy"
    for controller, name, units, many in (
        (Canary(), few, 2000, 1000),
        (Canary(), "300 units", 300, 200),
        (ByShare(), few, 2000, 200),
    ):
        runs = 6 if quick else many
        found = ends(
            controller,
            state_of(CanaryRules(step_seconds=3600.0)),
            partial(
                requests,
                seconds=3600,
                per_second=PER_SECOND / THINNED,
                rates=(THINNED * HEALTHY,) * 2,
                units=units,
            ),
            looks(seconds=3600, each=600 if quick else 90),
            runs=runs,
            seed=SEED,
        )
        hours = Simulated(runs=runs, seed=SEED, quick=quick)
        told = f"controllers: canary, healthy hours rolled back, {name}"
        if isinstance(controller, ByShare):
            told = f"control: the same by the plan's share, {name}"
            rows.append(hours.at_least(told, stopped(found), 0.02, share=0.05))
            break
        rows.append(hours.at_most(told, stopped(found), 0.01, share=0.01))
    runs = 12 if quick else 200
    rolled = Simulated(runs=runs, seed=SEED, quick=quick)
    enough = CanaryRules().min_rows / (PER_SECOND * CanaryRules().steps[0])
    for name, rate in (("healthy", HEALTHY), ("0.2% to 2%", SICK), ("0.2% to 10%", 0.10)):
        found = ends(
            Canary(),
            state_of(CanaryRules()),
            partial(
                requests,
                seconds=2 * enough,
                per_second=PER_SECOND,
                rates=(HEALTHY, rate),
                units=5000,
            ),
            looks(seconds=2 * enough, each=2),
            runs=runs,
            seed=SEED + 1,
        )
        share = stopped(found)
        if rate == HEALTHY:
            rows.append(
                rolled.at_most("controllers: canary of 500, healthy ones rolled back", share, 0.01, share=0.01)
            )  # fmt: skip
            continue
        told = canary_forecast(
            control_rate=HEALTHY,
            treatment_rate=rate,
            treatment_share=CanaryRules().steps[0],
            requests_per_second=PER_SECOND,
            horizon_seconds=enough,
        )
        bar = told.found - share_error(told.found, runs)
        rows += [
            rolled.at_least(f"controllers: canary of 500 rolled back, errors {name}", share, bar),
            rolled.within(
                f"controllers: canary, seconds until that, over those told, errors {name}",
                soon(found) / told.median_seconds,
                0.8,
                1.25,
                slack=0.5,
            ),
        ]
    return rows


def _blue_green(quick: bool) -> list[Row]:
    """10 requests a second: 50 s on trial, ten minutes after the switch."""
    runs, rows, rules = 4 if quick else 200, [], BlueGreenRules()
    simulated = Simulated(runs=runs, seed=SEED + 2, quick=quick)
    known = Known(days=1.0, decisions=864_000, new_units=(5000,), errors=1728)
    told = {
        delay.error_share: delay.median_seconds
        for delay in delays_alone(known, limit=rules.max_errors, alpha=rules.error_alpha)
    }
    for name, rates, each in (
        ("both 0.2%", (HEALTHY, HEALTHY), 10.0),
        ("both 1%, the limit itself", (0.01, 0.01), 10.0),
        ("0.2% to 2%", (HEALTHY, SICK), 10.0),
        ("0.2% to 10%", (HEALTHY, 0.10), 0.5),
    ):
        seconds = 70 * each
        found = ends(
            BlueGreen(),
            state_of(rules),
            partial(requests, seconds=seconds, per_second=10, rates=rates, units=5000),
            looks(seconds=seconds, each=each),
            runs=runs,
            seed=SEED + 2,
        )
        of = f"controllers: blue-green, green sent back, {name}"
        if rates[0] == rates[1]:
            rows.append(simulated.at_most(of, stopped(found), 0.02, share=0.02))
            continue
        seconds = told[rates[1]] or np.inf
        rows += [
            simulated.at_least(of, stopped(found), 0.95),
            simulated.within(
                f"controllers: blue-green, seconds until that (told {seconds:.3g}), {name}",
                soon(found) / seconds,
                0.6,
                1.4,
                slack=0.5,
            ),
        ]
    return rows


def _shadow(quick: bool) -> list[Row]:
    """500 pairs at 10 requests a second; 20% of the answers may be more than 0.1 apart."""
    runs, rows = 4 if quick else 200, []
    simulated = Simulated(runs=runs, seed=SEED + 3, quick=quick)
    for name, units, apart in (
        ("15% differ", 5000, 0.15),
        ("15% differ, 300 units, few of them busy", 300, 0.15),
        ("30% differ", 5000, 0.30),
    ):
        found = ends(
            Shadow(),
            state_of(ShadowRules()),
            partial(
                requests,
                seconds=70,
                per_second=10,
                rates=(HEALTHY,) * 2,
                units=units,
                apart=apart,
            ),
            looks(seconds=70, each=2),
            runs=runs,
            seed=SEED + 3,
        )
        of = f"controllers: shadow refused, {name}"
        if apart < ShadowRules().max_disagreement:
            rows.append(simulated.at_most(of, stopped(found), 0.05, share=0.05))
            continue
        pairs = float(np.median([each.rows for each in found]))
        rows += [
            simulated.at_least(of, stopped(found), 0.99),
            simulated.at_most(f"controllers: shadow, pairs until that, {name}", pairs, 500),
        ]
    return rows
