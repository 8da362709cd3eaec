"""Canary: the challenger answers a small share; errors roll it back at once, and the rest follows when it holds."""

from __future__ import annotations

import msgspec

from keepwell.core.clock import DAY
from keepwell.core.records.traffic import BUCKETS, Arm, Rollout
from keepwell.serving.strategies import Answer, Comparison
from keepwell.stats.rate_comparison import RateComparison


class Canary:
    """Rolls back when an anytime-valid test finds more errors than the champion has; promotes after a clean run.

    The test is the sequential comparison of two rates (``keepwell.stats.rate_comparison``, Lindon and Malek
    2020). A clean run is ``min_rows`` of the challenger's own decisions. It judges errors only; the KPI is
    judged by champion-challenger. Implements ``keepwell.serving.strategies.Strategy``.
    """

    def begin(self, rollout: Rollout, champion: Arm | None, challenger: Arm) -> Answer:
        """See ``keepwell.serving.strategies.Strategy``."""
        if champion is None:
            return Answer(
                arms=(msgspec.structs.replace(challenger, name="champion", weight=BUCKETS),),
                verdict="promote",
                reason="there is no champion to fall back to",
            )
        share = round(BUCKETS * float(rollout.settings.get("canary_share", 0.05)))
        return Answer(
            arms=(
                msgspec.structs.replace(champion, weight=BUCKETS - share),
                msgspec.structs.replace(challenger, name="challenger", weight=share),
            )
        )

    def look(
        self, rollout: Rollout, champion: Arm | None, challenger: Arm, evidence: Comparison
    ) -> Answer:
        """See ``keepwell.serving.strategies.Strategy``."""
        now = self.begin(rollout, champion, challenger)
        if now.verdict == "promote" or champion is None:
            return now
        share = float(rollout.settings.get("canary_share", 0.05))
        test = RateComparison(alpha=float(rollout.settings.get("alpha", 0.05)), side="greater")
        if evidence.errors or evidence.champion_errors:
            test = test.update(
                treatment_events=evidence.errors,
                control_events=evidence.champion_errors,
                treatment_share=share,
            )
        measured = {
            "requests": evidence.requests,
            "errors": evidence.errors,
            "champion_requests": evidence.champion_requests,
            "champion_errors": evidence.champion_errors,
            "p_value": test.p_value,
        }
        back = (msgspec.structs.replace(champion, weight=BUCKETS),)
        if test.rejected:
            return Answer(
                arms=back,
                verdict="roll back",
                reason=f"more errors than the champion: {evidence.errors:,} in {evidence.requests:,} requests",
                measured=measured,
            )
        if evidence.requests >= int(rollout.settings.get("min_rows", 500)):
            return Answer(
                arms=(msgspec.structs.replace(challenger, name="champion", weight=BUCKETS),),
                verdict="promote",
                reason=f"{evidence.requests:,} requests without more errors than the champion",
                measured=measured,
            )
        if (evidence.event_time - evidence.since) / DAY > float(
            rollout.settings.get("max_days", 28.0)
        ):
            return Answer(
                arms=back,
                verdict="refuse",
                reason="too little traffic to judge it",
                measured=measured,
            )
        return msgspec.structs.replace(now, measured=measured)
