"""Approvals: a named person's signed consent, bound to digests, by someone other than the author."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Literal

import msgspec

from keepwell.core.admission import bound_of
from keepwell.core.clock import duration
from keepwell.core.errors import InvalidInput, NotFound, Refused
from keepwell.core.ports.signing import Statement
from keepwell.core.records.lifecycle import Approval
from keepwell.core.records.models import ModelVersion
from keepwell.core.statements import APPROVAL
from keepwell.lifecycle.roles import require

if TYPE_CHECKING:
    from keepwell.core.clock import Clock
    from keepwell.core.ports.blobs import Blobs
    from keepwell.core.ports.signing import Signer
    from keepwell.core.ports.store import Store


def approve(
    model: str,
    version: int,
    *,
    by: str,
    reason: str,
    expires_in: str,
    store: Store,
    blobs: Blobs,
    signer: Signer,
    clock: Clock,
    scope: Literal["version", "renewals"] = "version",
) -> Approval:
    """Record that ``by`` consents to this version; or, with scope ``renewals``, to newer data under the same code.

    The approval names the digests of artefact, training set, code, policy and results as they are now.
    Raises NotFound; Refused if ``by`` may not approve, is the author, or no release has passed.
    """
    found = store.get(ModelVersion, model, version)
    if found is None:
        raise NotFound(f"There is no version {model}/{version}.")
    require(by, "approve", store=store)
    if by == found.author:
        raise Refused(
            f"{by} is the author of {found.label()} and cannot approve it.",
            todo="Ask another person with the role 'approver'.",
        )
    if not reason.strip():
        raise InvalidInput("An approval needs a reason.", todo="Say in a sentence why it is right.")
    bound = bound_of(found, store=store)
    if bound is None:
        raise Refused(
            f"{found.label()} has no passed release, so there is nothing to approve.",
            todo=f"Run 'keepwell release {found.label()}' first.",
        )
    now = clock.now()
    already = [
        held
        for held in store.find(Approval, {"model": model, "version": version})
        if (held.by, held.scope, held.bound, held.withdrawn) == (by, scope, bound, None)
        and held.expires > now
    ]
    if already:
        # Consenting twice to the same thing says nothing new.
        return already[0]
    expires = now + duration(expires_in)
    statement = Statement(
        subjects={found.label(): found.artefact},
        predicate_type=APPROVAL,
        predicate={
            "by": by,
            "scope": scope,
            "reason": reason,
            "bound": msgspec.to_builtins(bound),
            "created": now,
            "expires": expires,
        },
    )
    approval = Approval(
        id=f"approval-{secrets.token_hex(6)}",
        model=model,
        version=version,
        scope=scope,
        bound=bound,
        by=by,
        reason=reason,
        envelope=blobs.put(signer.sign(statement)),
        created=now,
        expires=expires,
    )
    with store.transaction(actor=by) as transaction:
        transaction.add(approval, reason=reason)
    return approval


def withdraw(approval_id: str, *, by: str, reason: str, store: Store, clock: Clock) -> Approval:
    """Take an approval back: the gateway stops serving what it alone held up. Raises NotFound, Refused."""
    approval = store.get(Approval, approval_id)
    if approval is None:
        raise NotFound(f"There is no approval {approval_id!r}.")
    if by != approval.by:
        require(by, "rollback", store=store)
    if approval.withdrawn is not None:
        return approval
    withdrawn = msgspec.structs.replace(
        approval, withdrawn=clock.now(), revision=approval.revision + 1
    )
    with store.transaction(actor=by) as transaction:
        transaction.replace(withdrawn, reason=reason)
    return withdrawn
