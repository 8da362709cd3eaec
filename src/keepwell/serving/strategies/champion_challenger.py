"""Champion-challenger: the challenger sees all live traffic and answers none; both are judged on the same decisions."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keepwell.core.clock import DAY
from keepwell.core.records.traffic import BUCKETS, Arm, Rollout
from keepwell.serving.strategies import Answer, Comparison
from keepwell.stats.confidence_sequence import ClusterConfidenceSequence

FAILURES = 0.01
"""Share of requests in which a challenger may fail before it is refused without waiting for labels."""
TUNED_DAYS = 21.0
"""Days at which the sequence is tightest: about the time in which a seasonal change of a model shows."""


class ChampionChallenger:
    """Promotes when the paired gain per decision is above zero with an anytime-valid bound; refuses when it is below.

    The bound is a confidence sequence over whole days (``keepwell.stats.confidence_sequence``), because
    decisions of one day share its weather: looking after every label keeps the chance of a wrong promotion
    under ``alpha``. Weak where a day's luck is heavy-tailed and fewer than about ten days are seen.
    Implements ``keepwell.serving.strategies.Strategy``.
    """

    def begin(self, rollout: Rollout, champion: Arm | None, challenger: Arm) -> Answer:
        """See ``keepwell.serving.strategies.Strategy``."""
        del rollout
        if champion is None:
            return Answer(
                arms=(msgspec.structs.replace(challenger, name="champion", weight=BUCKETS),),
                verdict="promote",
                reason="there is no champion to compare with",
            )
        return Answer(
            arms=(msgspec.structs.replace(champion, weight=BUCKETS),),
            mirrors=(msgspec.structs.replace(challenger, name="challenger", weight=0),),
        )

    def look(
        self, rollout: Rollout, champion: Arm | None, challenger: Arm, evidence: Comparison
    ) -> Answer:
        """See ``keepwell.serving.strategies.Strategy``."""
        now = self.begin(rollout, champion, challenger)
        if now.verdict == "promote":
            return now
        alpha = float(rollout.settings.get("alpha", 0.05))
        min_rows = int(rollout.settings.get("min_rows", 500))
        max_days = float(rollout.settings.get("max_days", 28.0))
        days = (evidence.event_time - evidence.since) / DAY
        if evidence.requests >= 100 and evidence.errors > FAILURES * evidence.requests:
            return _ended(
                now, "refuse", f"it failed in {evidence.errors:,} of {evidence.requests:,} requests"
            )
        sequence = ClusterConfidenceSequence(alpha=alpha, tuned_for=TUNED_DAYS)
        if evidence.day_sums:
            sequence = sequence.update(evidence.day_sums, evidence.day_rows)
        measured: dict[str, Any] = {
            "days": len(evidence.day_sums),
            "rows": evidence.rows,
            "gain": sequence.mean if evidence.rows else None,
            "low": _finite(sequence.lower),
            "high": _finite(sequence.upper),
            "alpha": alpha,
        }
        said = (
            f"gain per decision {sequence.mean:+.4g} ({sequence.lower:.4g} to {sequence.upper:.4g},"
            f" valid at any time) over {evidence.rows:,} decisions of {len(evidence.day_sums)} days"
        )
        if evidence.rows >= min_rows and sequence.lower > 0:
            return Answer(
                arms=(msgspec.structs.replace(challenger, name="champion", weight=BUCKETS),),
                verdict="promote",
                reason=said,
                measured=measured,
            )
        if evidence.rows >= min_rows and sequence.upper < 0:
            return _ended(now, "refuse", f"it is worse: {said}", measured)
        if days > max_days:
            return _ended(
                now,
                "refuse",
                f"no proof that it is better within {max_days:g} days: {said}",
                measured,
            )
        return msgspec.structs.replace(now, reason=said, measured=measured)


def _ended(
    now: Answer, verdict: Literal["refuse"], reason: str, measured: dict[str, Any] | None = None
) -> Answer:
    return Answer(arms=now.arms, verdict=verdict, reason=reason, measured=measured or {})


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
