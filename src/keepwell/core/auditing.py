"""Proving the audit trail: the chain is whole, and every record still is what its last entry says."""

from __future__ import annotations

from keepwell.core.ports.store import Store
from keepwell.core.records.audit import GENESIS
from keepwell.core.records.base import Record


def audit_problems(store: Store, *, kinds: list[type[Record]] | None = None) -> list[str]:
    """List what does not hold; an empty list proves the trail.

    Checked are, offline and from the store alone: sequence numbers without a gap from 1, each entry's own
    hash, each link to the entry before, and for every audited record that its present content is what its
    last entry names. It cannot see that the newest entries were all cut off together with their records;
    the signed evidence of later steps does.
    """
    problems: list[str] = []
    previous, seq = GENESIS, 0
    last: dict[str, str] = {}
    for entry in store.audit():
        seq += 1
        if entry.seq != seq:
            problems.append(f"entry {entry.seq}: the one before it is missing (expected {seq})")
            seq = entry.seq
        if entry.previous != previous:
            problems.append(f"entry {entry.seq}: it is not linked to the entry before it")
        if entry.hash != entry.expected_hash():
            problems.append(f"entry {entry.seq}: its content was changed ({entry.subject})")
        previous = entry.hash
        last[entry.subject] = entry.after
    for kind in kinds if kinds is not None else audited_kinds():
        for record in store.find(kind):
            address = record.address()
            said = last.pop(address, None)
            if said is None:
                problems.append(f"{address}: it was added without an entry")
            elif said != record.digest():
                problems.append(f"{address}: its row was changed without an entry")
    problems += [
        f"{address}: its row is gone without an entry" for address, after in last.items() if after
    ]
    return problems


def audited_kinds() -> list[type[Record]]:
    """List the kinds of records that leave entries."""
    found: list[type[Record]] = []
    waiting = [Record]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.TABLE and kind.AUDITED and kind.__module__.startswith("keepwell."):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.TABLE)
