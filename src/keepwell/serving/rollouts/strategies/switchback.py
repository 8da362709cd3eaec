"""Switchback: all traffic turns to one arm for a whole period, then chance draws anew; for units that interfere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keepwell.core.clock import DAY, Time, iso
from keepwell.core.records.rollouts import Expected
from keepwell.core.records.traffic import Period
from keepwell.core.settings import Count, Limit, Share
from keepwell.serving.rollouts.evidence import health
from keepwell.serving.rollouts.forecasts import expect_decisions, slow_decisions
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import (
    CHAMPION,
    Answer,
    Rules,
    State,
    days_seen,
    finite,
    promoted,
    returned,
    spell_bounds,
    split,
)
from keepwell.serving.rollouts.turns import (
    Turning,
    Turns,
    compared,
    errors_of_turns,
    worth_of_turns,
)
from keepwell.stats.rate_limit import RateLimitTest

MINUTE = 60_000_000
LEAST_TURNS = 38
"""Turns of both arms under which there are no bounds: the first 8 only teach, and 30 are judged."""


class SwitchbackRules(Rules, frozen=True, kw_only=True):
    """How long turns are, and how they are judged."""

    period_minutes: Limit = 60.0
    """Length of a turn. What an arm does to its market should show well within it."""
    washout_minutes: Limit = 10.0
    """The beginning of each turn counts for nothing: what the turn before left behind has gone by then."""
    share: Share = 0.5
    """Of all turns, those that the challengers part evenly among them."""
    group: str = ""
    """A feature whose values (regions, say) do not interfere: each takes turns by itself."""
    min_turns: Count = 20
    """Whole turns of each arm before a verdict."""
    tuned_for: Limit = 200.0
    """Turns of both arms at which a verdict is hoped for; it is valid at any number."""
    max_errors: Share = 0.05
    """Share of a challenger's requests that may fail, whatever the champion's do."""
    error_alpha: Share = 0.01
    """Chance of rolling back a challenger for its errors though it makes no more than the champion, or than that."""


class Switchback:
    """Promotes the best challenger once its turns are worth more than the champion's with an anytime-valid bound.

    Turns are what chance draws and what is compared, because decisions of one turn share a market: the bound is a
    confidence sequence by the chance of the draws alone (``keepwell.stats.switchback``), so that hours and days
    that differ cannot look like an effect. Challengers part ``alpha`` among them. More errors than ``max_errors`` roll
    a challenger back at once, more than the champion has in its turns once that is certain. Weak where effects outlast
    the washout, and with few turns: at an hour each, expect weeks.
    Implements ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = SwitchbackRules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: SwitchbackRules = state.rules
        found = []
        if state.champion is None:
            found.append("Nothing answers there yet: there is nothing to take turns with.")
        seconds = rules.period_minutes * 60
        if seconds < 60 or seconds != round(seconds):
            found.append(
                f"period_minutes is {rules.period_minutes:g}: give it 1 or more, in whole seconds."
            )
        elif rules.washout_minutes >= rules.period_minutes:
            found.append(
                f"The washout of {rules.washout_minutes:g} minutes leaves nothing"
                f" of a turn of {rules.period_minutes:g}."
            )
        elif state.champion is not None:
            # Of groups it is not known beforehand how many there are.
            turns = rules.max_days * DAY / (rules.period_minutes * MINUTE)
            own = turns * _rarest(state)
            if not rules.group and own < rules.min_turns:
                found.append(
                    f"{rules.max_days:g} days have {turns:,.0f} turns, {own:,.0f} of them of some arm:"
                    f" too few for min_turns = {rules.min_turns}. Make turns shorter, or allow more days."
                )
        if rules.tuned_for < 2:
            found.append(f"tuned_for is {rules.tuned_for:g}: give it at least 2 turns.")
        if not found:
            found += slow_decisions(
                state,
                rules.min_rows,
                share=_counted(rules) * _rarest(state),
                rule="min_rows",
                what="decisions of the rarest arm",
                way_out="Give a lower min_rows, a shorter washout or more days.",
            )
        return found

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: SwitchbackRules = state.rules
        rarest = _rarest(state)
        # The turn in which it begins is lost, and the first that are whole only teach.
        turns = max(rules.min_turns / rarest, LEAST_TURNS) + 1
        groups = " (sooner with several groups)" if rules.group else ""
        return [
            expect_decisions(
                known,
                rules.min_rows,
                of=f"{rules.min_turns:,} turns of each arm{groups}",
                what="decisions of the rarest arm",
                share=_counted(rules) * rarest,
                least_days=turns * rules.period_minutes * MINUTE / DAY + state.label_delay / DAY,
            )
        ]

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del now, rng
        if state.champion is None:
            return promoted(state.challenger, "there is nothing to compare with")
        rules: SwitchbackRules = state.rules
        names = (CHAMPION, *(arm.name for arm in state.challengers))
        turning = Turning(
            period=round(rules.period_minutes * MINUTE),
            washout=round(rules.washout_minutes * MINUTE),
        )
        each = rules.share / len(state.challengers)
        turns = worth_of_turns(
            seen,
            names,
            turning,
            gain=state.gain,
            label_delay=state.label_delay,
            default=state.default,
        )
        counts = np.bincount(turns.arm, minlength=len(names)).tolist()
        measured: dict[str, Any] = {
            "turns": dict(zip(names, counts, strict=True)),
            "rows": {name: int(turns.rows[turns.arm == k].sum()) for k, name in enumerate(names)},
            "mixed": turns.mixed,
        }
        failing = self._failing(state, seen, names, turning)
        if failing:
            return returned(state, "roll back", failing, measured)
        judged = {
            name: self._judged(state, turns, k, name) for k, name in enumerate(names) if k > 0
        }
        measured["gain"] = {name: facts for name, (_, facts) in judged.items()}
        said = "; ".join(said for said, _ in judged.values())
        enough = {
            name: min(measured["rows"][name], measured["rows"][CHAMPION]) >= rules.min_rows
            and min(counts[k], counts[0]) >= rules.min_turns
            for k, name in enumerate(names)
        }
        better = [
            arm
            for arm in state.challengers
            if enough[arm.name] and (judged[arm.name][1]["low"] or -math.inf) > 0
        ]
        if better:
            best = max(better, key=lambda arm: judged[arm.name][1]["mean"])
            return promoted(best, said, measured)
        if all(
            enough[name] and facts["high"] is not None and facts["high"] < 0
            for name, (_, facts) in judged.items()
        ):
            return returned(state, "refuse", f"worse: {said}", measured)
        if days_seen(seen) > rules.max_days:
            late = f"no proof of a difference within {rules.max_days:g} days: {said}"
            return returned(state, "refuse", late, measured)
        period = Period(seconds=turning.period // 1_000_000, field=rules.group)
        return Answer(
            arms=split(state, dict.fromkeys(names[1:], each)),
            period=period,
            reason=said if len(seen) else f"arms take turns of {rules.period_minutes:g} minutes",
            next=self._next(rules, seen, turning, names, counts),
            measured=measured,
        )

    @staticmethod
    def _next(
        rules: SwitchbackRules,
        seen: Observations,
        turning: Turning,
        names: tuple[str, ...],
        counts: list[int],
    ) -> str:
        waits = [
            f"{rules.min_turns - count:,} more whole turns of {name}"
            for name, count in zip(names, counts, strict=True)
            if count < rules.min_turns
        ]
        told = (
            f"it waits for {' and '.join(waits)}"
            if waits
            else "promoted once its bound is above zero"
        )
        if len(seen):
            turn = (seen.watermark // turning.period + 1) * turning.period
            told += f"; the next turn is drawn at {iso(turn)[:16]}"
        return (
            f"{told}; refused after {rules.max_days - days_seen(seen):.3g} more days without proof"
        )

    @staticmethod
    def _failing(state: State, seen: Observations, names: tuple[str, ...], turning: Turning) -> str:
        """Say which challenger fails too often, and how often."""
        rules: SwitchbackRules = state.rules
        # Each challenger is tested twice.
        alpha = rules.error_alpha / (2 * len(state.challengers))
        turns = errors_of_turns(seen, names, turning)
        for k, arm in enumerate(state.challengers, 1):
            own, other = health(seen, arm.name), health(seen, CHAMPION)
            often = RateLimitTest(limit=rules.max_errors, alpha=alpha)
            if often.update(events=own.errors, trials=own.requests).exceeded:
                return f"{arm.name} failed in {own.errors:,} of {own.requests:,} requests"
            more = compared(
                turns,
                k,
                share=_share(rules, len(state.challengers)),
                alpha=alpha,
                tuned_for=max(rules.tuned_for, 2.0),
                side="lower",
            )
            if more.lower > 0:
                told = f"{own.errors:,} in {own.requests:,} requests against {other.errors:,} in {other.requests:,}"
                return f"{arm.name} makes more errors in its turns than the champion ({told})"
        return ""

    @staticmethod
    def _judged(state: State, turns: Turns, k: int, name: str) -> tuple[str, dict[str, Any]]:
        rules: SwitchbackRules = state.rules
        found = compared(
            turns,
            k,
            share=_share(rules, len(state.challengers)),
            alpha=rules.alpha / len(state.challengers),
            tuned_for=max(rules.tuned_for, 2.0),
        )
        mean = found.estimate if found.blocks else None
        facts = {"mean": mean, "low": finite(found.lower), "high": finite(found.upper)}
        bounds = spell_bounds(found.lower, found.upper)
        said = f"{name}: gain per decision {found.estimate:+.4g} ({bounds}) over {found.blocks:,} turns"
        return said if found.blocks else f"{name}: no turn is judged yet", facts


def _rarest(state: State) -> float:
    """Give the share of the turns of the arm that has fewest."""
    share: float = state.rules.share
    return min(share / len(state.challengers), 1 - share)


def _counted(rules: SwitchbackRules) -> float:
    """Give the part of a turn that counts."""
    return 1 - rules.washout_minutes / rules.period_minutes


def _share(rules: SwitchbackRules, challengers: int) -> float:
    """Give the chance of a challenger's turn, of turns that are its own or the champion's."""
    own = rules.share / challengers
    return own / (own + 1 - rules.share)
