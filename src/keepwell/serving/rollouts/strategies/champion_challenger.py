"""Champion-challenger: challengers see all live traffic and answer none; all are judged on the same decisions."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.records.rollouts import Expected
from keepwell.core.records.traffic import Arm
from keepwell.serving.rollouts.evidence import health, paired_days
from keepwell.serving.rollouts.forecasts import expect_decisions, slow_decisions
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import (
    CHAMPION,
    Answer,
    Rules,
    State,
    alone,
    days_seen,
    finite,
    promoted,
    returned,
    spell_bounds,
)
from keepwell.stats.confidence_sequence import ClusterConfidenceSequence

FAILURES = 0.01
"""Share of requests in which a challenger may fail before it is refused without waiting for labels."""
TUNED_DAYS = 21.0
"""Days at which the sequence is tightest: about the time in which a seasonal change of a model shows."""


class ChampionChallenger:
    """Promotes when the paired gain per decision is above zero with an anytime-valid bound; refuses when it is below.

    The bound is a confidence sequence over whole days (``keepwell.stats.confidence_sequence``), because decisions of
    one day share its weather: looking after every label keeps the chance of a wrong promotion under ``alpha``, which
    several challengers part among them. Weak where a day's luck is heavy-tailed and fewer than about ten days are
    seen. Implements ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = Rules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        return slow_decisions(
            state,
            state.rules.min_rows,
            share=1.0,
            rule="min_rows",
            what="labelled decisions",
            way_out="Give a lower min_rows or more days.",
            after=state.label_delay / DAY,
        )

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: Rules = state.rules
        found = expect_decisions(
            known,
            rules.min_rows,
            of="least decisions",
            what="labelled decisions",
            share=1.0,
            least_days=1 + state.label_delay / DAY,
        )
        return [found]

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del now, rng
        if state.champion is None:
            return promoted(state.challenger, "there is no champion to compare with")
        rules: Rules = state.rules
        out = set(state.memory.get("out", ()))
        found = {arm.name: self._judged(state, seen, arm) for arm in state.challengers}
        measured = {name: facts for name, (_, _, facts) in found.items()}
        if len(found) == 1:
            measured = next(iter(measured.values()))
        winners = [arm for arm in state.challengers if found[arm.name][0] == "better"]
        if winners:
            best = max(winners, key=lambda arm: found[arm.name][2]["gain"])
            return promoted(best, found[best.name][1], measured)
        out |= {name for name, (judged, _, _) in found.items() if judged == "worse"}
        said = "; ".join(
            said if len(found) == 1 else f"{name}: {said}" for name, (_, said, _) in found.items()
        )
        if len(out) == len(found):
            return returned(state, "refuse", said, measured)
        if days_seen(seen) > rules.max_days:
            late = f"no proof that it is better within {rules.max_days:g} days: {said}"
            return returned(state, "refuse", late, measured)
        return Answer(
            arms=alone(state.champion),
            mirrors=tuple(
                msgspec.structs.replace(arm, weight=0)
                for arm in state.challengers
                if arm.name not in out
            ),
            reason=said,
            next=f"promoted once its bound is above zero after {rules.min_rows:,} labelled decisions; "
            f"refused after {rules.max_days - days_seen(seen):.3g} more days without",
            measured=measured,
            memory={"out": sorted(out)},
        )

    @staticmethod
    def _judged(state: State, seen: Observations, arm: Arm) -> tuple[str, str, dict[str, Any]]:
        rules: Rules = state.rules
        own = health(seen, arm.name)
        if own.requests >= 100 and own.errors > FAILURES * own.requests:
            said = f"it failed in {own.errors:,} of {own.requests:,} requests"
            return "worse", said, {"requests": own.requests, "errors": own.errors}
        days = paired_days(seen, CHAMPION, arm.name, gain=state.gain, label_delay=state.label_delay)
        alpha = rules.alpha / len(state.challengers)
        sequence = ClusterConfidenceSequence(alpha=alpha, tuned_for=TUNED_DAYS)
        if len(days.sums):
            sequence = sequence.update(days.sums, days.rows)
        rows = int(days.rows.sum())
        measured = {
            "days": len(days.sums),
            "rows": rows,
            "gain": sequence.mean if rows else None,
            "low": finite(sequence.lower),
            "high": finite(sequence.upper),
            "alpha": alpha,
        }
        said = (
            f"gain per decision {sequence.mean:+.4g} ({spell_bounds(sequence.lower, sequence.upper)})"
            f" over {rows:,} decisions of {len(days.sums)} day{'s' * (len(days.sums) != 1)}"
        )
        if not rows:
            said = "no decision of a whole day has its label yet"
        if rows >= rules.min_rows and sequence.lower > 0:
            return "better", said, measured
        if rows >= rules.min_rows and sequence.upper < 0:
            return "worse", f"it is worse: {said}", measured
        return "open", said, measured
