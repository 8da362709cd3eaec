"""Basic: the new version answers everything at once. For a first version, and where nobody is at risk."""

from __future__ import annotations

import msgspec

from keepwell.core.records.traffic import BUCKETS, Arm, Rollout
from keepwell.serving.strategies import Answer, Comparison


class Basic:
    """Implements ``keepwell.serving.strategies.Strategy``."""

    def begin(self, rollout: Rollout, champion: Arm | None, challenger: Arm) -> Answer:
        """See ``keepwell.serving.strategies.Strategy``."""
        del rollout, champion
        return Answer(
            arms=(msgspec.structs.replace(challenger, name="champion", weight=BUCKETS),),
            verdict="promote",
            reason="replaced at once, as declared",
        )

    def look(
        self, rollout: Rollout, champion: Arm | None, challenger: Arm, evidence: Comparison
    ) -> Answer:
        """See ``keepwell.serving.strategies.Strategy``."""
        del evidence
        return self.begin(rollout, champion, challenger)
