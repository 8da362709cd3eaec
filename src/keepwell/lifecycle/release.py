"""The release: seven steps that make a registered version fit to serve, each with real questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.errors import Refused
from keepwell.core.records.lifecycle import RELEASE_STEPS, Procedure, Release
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Work
from keepwell.lifecycle.activation import enqueue_activation
from keepwell.lifecycle.procedures import (
    Course,
    StepDeclaration,
    begin,
    check_none_under_way,
    run_step,
)
from keepwell.lifecycle.questions import (
    candidate_release,
    endpoint_identification,
    instantiation_validation,
    integration_testing,
    kpi_validation,
    model_risk_review,
    parameter_testing,
)
from keepwell.lifecycle.roles import require

if TYPE_CHECKING:
    from keepwell.core.ports.store import Transaction
    from keepwell.lifecycle.context import Context


def start_release(context: Context, version: ModelVersion, *, actor: str) -> Release:
    """Begin the release of a registered version: its row and its work, in one transaction.

    Raises Refused if the version's state does not allow it, Conflict if a release of it is under way.
    """
    require(actor, "release", store=context.store)
    with context.store.transaction(actor=actor) as transaction:
        return enqueue_release(context, transaction, version, actor=actor)


def enqueue_release(
    context: Context, transaction: Transaction, version: ModelVersion, *, actor: str
) -> Release:
    """Do what ``start_release`` does, inside a transaction that has other things to say too."""
    if version.state in {"active", "retired"}:
        raise Refused(
            f"{version.label()} is {version.state}; only a version that does not serve can be released.",
            todo="Train a new version.",
        )
    check_none_under_way(Release, version, store=transaction)
    release = begin(context, transaction, Release, version, actor=actor)
    transaction.add(
        Work(
            id=release.id,
            kind="release",
            subject=version.label(),
            args={"procedure": release.id},
            requested_by=actor,
            created=release.started,
        )
    )
    return release


def _set_state(
    context: Context, transaction: Transaction, version: ModelVersion, state: str, reason: str
) -> ModelVersion:
    current = transaction.get(ModelVersion, version.model, version.version) or version
    changed = msgspec.structs.replace(
        current,
        state=state,
        reason=reason,
        updated=context.clock.now(),
        revision=current.revision + 1,
    )
    transaction.replace(changed, reason=reason or state)
    return changed


def _passed(
    context: Context, transaction: Transaction, procedure: Procedure, version: ModelVersion
) -> None:
    released = _set_state(context, transaction, version, "released", "")
    if released.renews is not None and not context.settings.policy.renewal_needs_person:
        # The loop closes here: what the loop had trained goes on to its rollout by itself.
        enqueue_activation(context, transaction, released, actor=procedure.requested_by)


def _failed(
    context: Context,
    transaction: Transaction,
    procedure: Procedure,
    version: ModelVersion,
    reason: str,
) -> None:
    _set_state(context, transaction, version, "refused", f"{procedure.step}: {reason}")


def _broken(
    context: Context,
    transaction: Transaction,
    procedure: Procedure,
    version: ModelVersion,
    reason: str,
) -> None:
    """Say on the version why its release ended without a verdict; it may be released again."""
    # An earlier release counts no more once another has begun: the version is as before any.
    _set_state(context, transaction, version, "registered", f"{procedure.step}: {reason}")


RELEASE = Course(
    kind=Release,
    work="release",
    steps=tuple(
        StepDeclaration(name, ask)
        for name, ask in zip(
            RELEASE_STEPS,
            (
                model_risk_review,
                candidate_release,
                endpoint_identification,
                parameter_testing,
                integration_testing,
                instantiation_validation,
                kpi_validation,
            ),
            strict=True,
        )
    ),
    passed=_passed,
    failed=_failed,
    broken=_broken,
)


def run_release_step(context: Context, release_id: str, number: int) -> bool:
    """Run one step of a release; tell whether to go on."""
    return run_step(context, RELEASE, release_id, number)
