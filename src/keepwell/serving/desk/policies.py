"""A bandit's policy in a traffic plan: packed by who learns it, unpacked by the workers that draw from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keepwell.core.errors import InvalidInput
from keepwell.core.records.models import Signature
from keepwell.core.records.traffic import LinearPolicyState
from keepwell.stats.linear_bandit import LinearPolicy


def pack_policy(
    policy: LinearPolicy, *, arms: Sequence[str], fields: Sequence[str], intercept: bool = False
) -> LinearPolicyState:
    """Put a policy into the form of a traffic plan, with the names of its arms and of its features."""
    return LinearPolicyState(
        kind=policy.kind,
        arms=tuple(arms),
        fields=tuple(fields),
        intercept=intercept,
        theta=policy.theta.astype("<f8").tobytes(),
        factor=policy.factor.astype("<f8").tobytes(),
        alpha=float(policy.alpha),
        floor=float(policy.floor),
        seed=int(policy.seed),
        draws=int(policy.draws),
        missing=b"" if policy.missing is None else policy.missing.astype("<f8").tobytes(),
    )


def unpack_policy(state: LinearPolicyState) -> LinearPolicy:
    """Make the very policy again that was packed. Raises InvalidInput."""
    k, d = len(state.arms), len(state.fields) + state.intercept
    try:
        return LinearPolicy(
            kind=state.kind,
            theta=np.frombuffer(state.theta, dtype="<f8").reshape(k, d),
            factor=np.frombuffer(state.factor, dtype="<f8").reshape(k, d, d),
            alpha=state.alpha,
            floor=state.floor,
            seed=state.seed,
            draws=state.draws,
            missing=np.frombuffer(state.missing, dtype="<f8") if state.missing else None,
        )
    except ValueError as error:
        raise InvalidInput(f"The plan's policy cannot be read: {error}.") from error


def inputs_of(
    state: LinearPolicyState, signature: Signature, matrix: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Give what a policy sees of n rows of features, shape (n, d): NaN where a value is missing.

    Raises InvalidInput for a field that is no feature of numbers.
    """
    places = _places(state, signature)
    return _seen(matrix, places, intercept=state.intercept)


def _places(state: LinearPolicyState, signature: Signature) -> list[int]:
    numbers = {
        column.name: place
        for place, column in enumerate(signature.inputs)
        if column.dtype in {"float64", "int64", "bool"}
    }
    missing = [name for name in state.fields if name not in numbers]
    if missing:
        raise InvalidInput(
            f"The plan's policy looks at {missing[0]!r}, which is no feature that is a number.",
            todo="Write a plan whose policy was learned on features of this model.",
        )
    return [numbers[name] for name in state.fields]


def _seen(
    matrix: npt.NDArray[Any], places: list[int], *, intercept: bool
) -> npt.NDArray[np.float64]:
    seen = np.ones((len(matrix), len(places) + intercept))
    # None, in rows that are not all numbers, becomes NaN.
    seen[:, : len(places)] = matrix.take(places, axis=1)
    return seen


class Drawing:
    """A policy at work for an endpoint's arms, prepared for ticks."""

    def __init__(
        self, state: LinearPolicyState, arms: Sequence[str], heir: int, signature: Signature
    ) -> None:
        self._policy = unpack_policy(state)
        self._places = _places(state, signature)
        self._intercept = state.intercept
        # An arm of the policy that may not answer leaves its share to the heir.
        self._to = np.zeros((len(state.arms), len(arms)))
        for k, name in enumerate(state.arms):
            self._to[k, arms.index(name) if name in arms else heir] = 1.0
        # Posterior draws are made at the first use, and are the same for ever: here, not in a tick.
        self._policy.probabilities(np.zeros((1, len(self._places) + self._intercept)))

    def probabilities(self, matrix: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Give the probabilities of the endpoint's arms for n rows of features, shape (n, arms)."""
        seen = _seen(matrix, self._places, intercept=self._intercept)
        given: npt.NDArray[np.float64] = self._policy.probabilities(seen) @ self._to
        return given
