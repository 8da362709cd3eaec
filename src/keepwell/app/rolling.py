"""Rollouts as people start them: among versions that may answer, by whoever may do so."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keepwell.core.admission import admission_problems
from keepwell.core.errors import InvalidInput, Refused
from keepwell.core.records.lifecycle import Policy
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import Rollout
from keepwell.lifecycle.activation import course_of
from keepwell.lifecycle.roles import require

if TYPE_CHECKING:
    from keepwell.app.wiring import State


def start_rollout(
    state: State,
    versions: Sequence[ModelVersion],
    *,
    actor: str,
    strategy: str = "",
    rules: Mapping[str, Any] | None = None,
) -> Rollout:
    """Let versions take over, by a strategy or several in a row.

    Raises Refused if one of them may not answer (no passed release, too few approvals) or the person may not do so,
    InvalidInput for wrong rules, Conflict if another rollout is under way.
    """
    require(actor, "rollout", store=state.store)
    first, others = versions[0], versions[1:]
    if any(other.model != first.model for other in others):
        raise InvalidInput(
            "The versions are of different models.", todo="Compare versions of one model."
        )
    for version in versions:
        problems = admission_problems(
            version,
            approvals=_approvals(state, version),
            store=state.store,
            blobs=state.blobs,
            verifier=state.verifier,
            now=state.clock.now(),
        )
        if problems:
            raise Refused(
                f"{version.label()} may not answer: {'; '.join(problems)}.",
                todo=f"Release and approve it first, or run 'keepwell activate {version.label()}'.",
            )
    endpoint, chosen = course_of(state.context, state.store, first, strategy=strategy)
    return state.rollouts.start(
        id=f"rollout-{secrets.token_hex(4)}",
        endpoint=endpoint,
        version=first,
        others=others,
        strategy=chosen,
        rules=rules,
        actor=actor,
        makes_champion=True,
    )


def _approvals(state: State, version: ModelVersion) -> int:
    policies = state.store.find(Policy, {"model": version.model}, order=["-created"], limit=1)
    return int(policies[0].limits["approvals"]) if policies else 1
