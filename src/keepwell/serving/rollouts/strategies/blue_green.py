"""Blue-green: green is tried by testers and by mirrored traffic, all traffic moves at once, blue stays at hand."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import Time, iso
from keepwell.core.records.rollouts import Expected
from keepwell.core.records.traffic import BUCKETS, Cohort
from keepwell.core.settings import Limit, Share
from keepwell.serving.rollouts.evidence import Health, health
from keepwell.serving.rollouts.forecasts import (
    delays_alone,
    expect_decisions,
    slow_decisions,
)
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, Rules, State, promoted, returned
from keepwell.stats.rate_limit import RateLimitTest


class BlueGreenRules(Rules, frozen=True, kw_only=True):
    """How green is tried, and how long blue is kept."""

    header: str = "x-keepwell-arm"
    """Requests with this header and the value ``green`` (later ``blue``) are answered by that side."""
    keep_seconds: Limit = 600.0
    """Blue stays loaded for this long after the switch, and traffic returns to it if green errs."""
    error_alpha: Share = 0.01
    """Chance of finding too many errors though there are not."""
    max_errors: Limit = 0.01
    """Share of errors that is too many, before the switch and after it."""


class BlueGreen:
    """Switches after ``min_rows`` mirrored or tested requests without too many errors; returns if green errs then.

    Errors are held against ``max_errors`` by an anytime-valid test (``keepwell.stats.rate_limit``). Implements
    ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = BlueGreenRules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: BlueGreenRules = state.rules
        found = []
        if state.champion is None:
            found.append("Nothing answers there yet: there is no blue to switch from.")
        if not 0 < rules.max_errors < 1:
            found.append(f"max_errors is {rules.max_errors:g}: give it a share between 0 and 1.")
        if rules.header != rules.header.lower():
            found.append(f"The header {rules.header!r} is not in lower case.")
        if not found:
            found += slow_decisions(
                state,
                rules.min_rows,
                share=1.0,
                rule="min_rows",
                what="mirrored decisions",
                way_out="Give a lower min_rows or more days.",
            )
        return found

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: BlueGreenRules = state.rules
        delays = delays_alone(known, limit=rules.max_errors, alpha=rules.error_alpha)
        return [
            expect_decisions(
                known,
                rules.min_rows,
                of="green on trial",
                what="mirrored decisions",
                share=1.0,
                delays=delays,
            ),
            expect_decisions(
                known,
                0,
                of="all traffic on green",
                what="decisions",
                share=1.0,
                least_days=rules.keep_seconds / 86_400,
                delays=delays,
            ),
        ]

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del rng
        rules: BlueGreenRules = state.rules
        if state.champion is None:
            return promoted(state.challenger, "there is no blue to switch from")
        switched = state.memory.get("switched")
        green, blue = state.challenger, state.champion
        if switched is None:
            return self._tried(state, seen, now)
        after = health(seen, green.name, plan=state.plan)
        measured = {"requests": after.requests, "errors": after.errors}
        if _too_many(after.requests, after.errors, rules):
            return returned(
                state,
                "roll back",
                f"green erred in {after.errors:,} of {after.requests:,} requests after the switch",
                measured,
            )
        until = int(switched) + round(rules.keep_seconds * 1_000_000)
        if now >= until:
            return promoted(
                green,
                f"{after.requests:,} requests since the switch, {after.errors:,} of them errors",
                measured,
            )
        return Answer(
            # The first of several arms answers where another one fails: blue stands in for green.
            arms=(
                msgspec.structs.replace(blue, weight=0),
                msgspec.structs.replace(green, weight=BUCKETS),
            ),
            cohorts=(Cohort(arm=CHAMPION, header=rules.header, values=("blue",)),),
            reason="all traffic is on green",
            next=f"blue is put away at {iso(until)}",
            measured=measured,
            memory={"switched": switched},
        )

    def _tried(self, state: State, seen: Observations, now: Time) -> Answer:
        rules: BlueGreenRules = state.rules
        green, blue = state.challenger, state.champion
        assert blue is not None
        shown = msgspec.structs.replace(green, name=f"{green.name}-mirror", weight=0)
        by_testers, beside = health(seen, green.name), health(seen, shown.name)
        tried = Health(by_testers.requests + beside.requests, by_testers.errors + beside.errors)
        measured: dict[str, Any] = {"requests": tried.requests, "errors": tried.errors}
        if _too_many(tried.requests, tried.errors, rules):
            return returned(
                state,
                "refuse",
                f"green erred in {tried.errors:,} of {tried.requests:,} requests on trial",
                measured,
            )
        if tried.requests >= rules.min_rows:
            return msgspec.structs.replace(
                self.plan(
                    msgspec.structs.replace(state, memory={"switched": now}, plan=state.plan + 1),
                    seen,
                    now,
                    np.random.default_rng(0),
                ),
                reason=f"{tried.requests:,} requests on trial without too many errors: all traffic moves to green",
            )
        return Answer(
            arms=(
                msgspec.structs.replace(blue, weight=BUCKETS),
                msgspec.structs.replace(green, weight=0),
            ),
            mirrors=(shown,),
            cohorts=(Cohort(arm=green.name, header=rules.header, values=("green",)),),
            reason="green is on trial",
            next=f"all traffic moves to green after {rules.min_rows - tried.requests:,} more requests",
            measured=measured,
        )


def _too_many(requests: int, errors: int, rules: BlueGreenRules) -> bool:
    if not requests:
        return False
    test = RateLimitTest(alpha=rules.error_alpha, limit=rules.max_errors)
    return test.update(events=errors, trials=requests).exceeded
