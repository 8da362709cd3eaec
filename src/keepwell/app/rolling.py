"""Rollouts as people start them: among versions that may answer, by whoever may do so."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keepwell.core.admission import admission_problems
from keepwell.core.errors import Conflict, InvalidInput, Refused
from keepwell.core.records.lifecycle import Policy
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import Rollout
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
    from keepwell.lifecycle.activation import (
        course_of,  # brings polars, and the server starts without
    )

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


def steer_rollout(
    state: State, id: str, verb: str, *, actor: str, reason: str, version: int | None = None
) -> Rollout:
    """Pause, resume, promote or roll back a rollout on a person's word.

    Raises NotFound, Refused if they may not, Conflict if it has ended, InvalidInput without a reason.
    """
    require(actor, "rollback" if verb == "rollback" else "rollout", store=state.store)
    if not reason.strip():
        raise InvalidInput("Why?", todo="Give a reason, in a sentence: it is kept.")
    rollouts = state.rollouts
    if verb == "pause":
        return rollouts.pause(id, actor=actor, reason=reason)
    if verb == "resume":
        return rollouts.resume(id, actor=actor, reason=reason)
    if verb == "promote":
        return rollouts.promote(id, actor=actor, reason=reason, version=version)
    found = rollouts.named(id)
    if found.state not in {"running", "paused"}:
        raise Conflict(
            f"{id} has ended: {found.state}.",
            todo=f"To return to the version before: keepwell rollback {found.endpoint}.",
        )
    rollouts.roll_back(found.endpoint, actor=actor, reason=reason)
    return rollouts.named(id)
