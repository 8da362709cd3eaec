"""The limits that a version is held to, as a record named by content: a changed limit is another policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.digest import digest_of
from keepwell.core.errors import NotFound
from keepwell.core.records.lifecycle import Policy
from keepwell.core.settings import PolicySettings

if TYPE_CHECKING:
    from keepwell.core.clock import Time
    from keepwell.core.digest import Digest
    from keepwell.core.ports.store import Reader, Transaction


def policy_of(model: str, settings: PolicySettings, *, now: Time) -> Policy:
    """Make the policy record of a model from the project's values."""
    limits = msgspec.to_builtins(settings)
    return Policy(
        content=digest_of({"model": model, "limits": limits}),
        model=model,
        limits=limits,
        created=now,
    )


def keep_policy(transaction: Transaction, policy: Policy) -> Digest:
    """Add the policy unless it is there already, and give its digest."""
    if transaction.get(Policy, policy.content) is None:
        transaction.add(policy)
    return policy.content


def read_policy(content: Digest, *, store: Reader) -> PolicySettings:
    """Give the limits that a release or an activation was started under. Raises NotFound."""
    policy = store.get(Policy, content)
    if policy is None:
        raise NotFound("The policy is not in the store.", where=content)
    return msgspec.convert(policy.limits, PolicySettings)
