"""The audit trail: one entry a change, each bound to the one before it."""

from __future__ import annotations

import hashlib

import msgspec

from keepwell.core.clock import Time
from keepwell.core.digest import Digest, canonical

GENESIS: Digest = "sha256:" + "0" * 64


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what, when, from what to what; ``hash`` covers all of it and the previous entry's hash."""

    seq: int
    time: Time
    actor: str
    action: str
    """``add``, ``replace`` or ``remove``."""
    subject: str
    """The record's name, ``table/key``."""
    before: Digest
    """Digest of the record before; empty for an addition."""
    after: Digest
    """Digest of the record after; empty for a removal."""
    reason: str
    previous: Digest
    hash: Digest

    def expected_hash(self) -> Digest:
        """Compute what ``hash`` must be."""
        body = msgspec.structs.asdict(self)
        del body["hash"]
        return "sha256:" + hashlib.sha256(canonical(body)).hexdigest()


def chain(
    *,
    seq: int,
    time: Time,
    actor: str,
    action: str,
    subject: str,
    before: Digest,
    after: Digest,
    reason: str,
    previous: Digest,
) -> AuditEntry:
    """Make the entry that follows the one whose hash is ``previous``."""
    entry = AuditEntry(
        seq=seq,
        time=time,
        actor=actor,
        action=action,
        subject=subject,
        before=before,
        after=after,
        reason=reason,
        previous=previous,
        hash="",
    )
    return msgspec.structs.replace(entry, hash=entry.expected_hash())
