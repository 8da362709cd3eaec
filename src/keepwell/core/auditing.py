"""Proving the audit trail: the chain is whole, and every record still is what its last entry says."""

from __future__ import annotations

from collections import defaultdict

from keepwell.core.errors import Corrupt
from keepwell.core.ports.store import Store
from keepwell.core.records.audit import GENESIS, AuditEntry
from keepwell.core.records.base import Record
from keepwell.core.records.kinds import record_kinds


def audit_problems(store: Store, *, kinds: list[type[Record]] | None = None) -> list[str]:
    """List what does not hold; an empty list proves the trail. Others may write meanwhile.

    Checked are, offline and from the store alone: sequence numbers without a gap from 1, each entry's own
    hash, each link to the entry before, and for every audited record that its present content is what its
    last entry names. It cannot see that the newest entries were all cut off together with their records;
    the signed evidence of later steps does.
    """
    chain = _Chain()
    for entry in store.audit():
        chain.follow(entry)
    before = dict(chain.last)
    found: dict[str, str] = {}
    for kind in kinds if kinds is not None else audited_kinds():
        try:
            found.update((record.address(), record.digest()) for record in store.find(kind))
        except Corrupt as error:
            chain.problems.append(str(error))
            before = {name: after for name, after in before.items() if not _of(name, kind)}
    # What was written since the first pass is not wrong: a record may be as it was, or as any later entry says.
    since: defaultdict[str, set[str]] = defaultdict(set)
    for entry in store.audit(after=chain.seq):
        chain.follow(entry)
        since[entry.subject].add(entry.after)
    for address, digest in found.items():
        allowed = {before.get(address, ""), *since[address]}
        if digest not in allowed:
            known = allowed != {""} or address in before
            how = "its row was changed" if known else "it was added"
            chain.problems.append(f"{address}: {how} without an entry")
    if kinds is not None:
        before = {name: after for name, after in before.items() if any(_of(name, k) for k in kinds)}
    chain.problems += [
        f"{address}: its row is gone without an entry"
        for address, after in before.items()
        if after and address not in found and "" not in since[address]
    ]
    return chain.problems


class _Chain:
    """Follows the entries and notes where one does not bind to the one before it."""

    def __init__(self) -> None:
        self.seq = 0
        self.previous = GENESIS
        self.last: dict[str, str] = {}
        self.problems: list[str] = []

    def follow(self, entry: AuditEntry) -> None:
        self.seq += 1
        if entry.seq != self.seq:
            self.problems.append(
                f"entry {entry.seq}: the one before it is missing (expected {self.seq})"
            )
            self.seq = entry.seq
        if entry.previous != self.previous:
            self.problems.append(f"entry {entry.seq}: it is not linked to the entry before it")
        if entry.hash != entry.expected_hash():
            self.problems.append(f"entry {entry.seq}: its content was changed ({entry.subject})")
        self.previous = entry.hash
        self.last[entry.subject] = entry.after


def _of(address: str, kind: type[Record]) -> bool:
    return address.startswith(f"{kind.TABLE}/")


def audited_kinds() -> list[type[Record]]:
    """List the kinds of records that leave entries."""
    return [kind for kind in record_kinds() if kind.AUDITED]
