"""Basic: the new version answers everything at once. For a first version, and where nobody is at risk."""

from __future__ import annotations

import numpy as np

from keepwell.core.clock import Time
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import Answer, Rules, State, promoted


class Basic:
    """Implements ``keepwell.serving.rollouts.strategy.Strategy``."""

    rules = Rules
    features = False

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del state
        return []

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del seen, now, rng
        return promoted(state.challenger, "replaced at once, as declared")
