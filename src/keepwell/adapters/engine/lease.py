"""The worker's lease: a row that says who may act alone, renewed while he lives, taken over when he does not."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path

import msgspec

from keepwell.core.clock import SECOND, Clock
from keepwell.core.errors import Conflict, Refused, Unavailable
from keepwell.core.ports.store import Store, Transaction
from keepwell.core.records.work import Lease

ACTOR = "worker"
_LOOK_SECONDS = 0.2


class WorkerLease:
    """One process's hold on a project.

    The holder names host, process and the process's start time, so on the same host a dead holder is
    known at once; on another host only the lease's end tells. ``token`` rises with every new holder, and
    each write of the worker checks in its own transaction that the lease is still its own: a worker that
    was stopped for longer than its lease cannot write over the one that followed it.
    """

    def __init__(self, *, store: Store, clock: Clock, name: str, seconds: float) -> None:
        self._store = store
        self._clock = clock
        self._name = name
        self._seconds = seconds
        started = _started(os.getpid())
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{started}:{uuid.uuid4().hex[:12]}"
        self._ended = threading.Event()
        self.lost = threading.Event()
        """Set once the lease went to somebody else."""

    def take(self) -> None:
        """Take the lease and keep it renewed. Raises Refused if a live worker holds it."""
        deadline = time.monotonic() + self._seconds + 1.0
        seen: Lease | None = None
        while True:
            held = self._try()
            if held is None:
                break
            alive = _is_alive(held.holder)
            renewed = (
                seen is not None and held.holder == seen.holder and held.expires > seen.expires
            )
            if alive or renewed or time.monotonic() > deadline:
                raise Refused(
                    f"Another worker holds this project: {held.holder}.",
                    todo="End the other 'keepwell up', or wait until its lease runs out.",
                )
            seen = held
            time.sleep(_LOOK_SECONDS)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def check(self, transaction: Transaction) -> bool:
        """Tell, inside the transaction that is about to write, whether the lease is still ours."""
        held = transaction.get(Lease, self._name)
        if held is not None and held.holder == self.holder:
            return True
        self.lost.set()
        return False

    def give_back(self) -> None:
        """Stop renewing and let anybody take it at once. Harmless when it is lost."""
        self._ended.set()
        try:
            with self._store.transaction(actor=ACTOR) as transaction:
                if self.check(transaction):
                    held = transaction.get(Lease, self._name)
                    assert held is not None
                    transaction.replace(
                        msgspec.structs.replace(held, expires=0, revision=held.revision + 1)
                    )
        except (Unavailable, Conflict):
            return  # it runs out by itself

    def _try(self) -> Lease | None:
        """Take or renew it. Gives None if it is ours now, else the lease as somebody else holds it."""
        now = self._clock.now()
        expires = now + round(self._seconds * SECOND)
        with self._store.transaction(actor=ACTOR) as transaction:
            held = transaction.get(Lease, self._name)
            if held is None:
                transaction.add(
                    Lease(name=self._name, holder=self.holder, token=1, expires=expires)
                )
            elif held.holder == self.holder or held.expires <= now or _is_dead(held.holder):
                transaction.replace(
                    msgspec.structs.replace(
                        held,
                        holder=self.holder,
                        token=held.token + (held.holder != self.holder),
                        expires=expires,
                        revision=held.revision + 1,
                    )
                )
            else:
                return held
        return None

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            try:
                with self._store.transaction(actor=ACTOR) as transaction:
                    if not self.check(transaction):
                        return
                    held = transaction.get(Lease, self._name)
                    assert held is not None
                    expires = self._clock.now() + round(self._seconds * SECOND)
                    transaction.replace(
                        msgspec.structs.replace(held, expires=expires, revision=held.revision + 1)
                    )
            except Unavailable:
                continue  # the store is away for all; whoever takes the lease meanwhile is seen above


def _started(pid: int) -> str:
    """Give a process's start in clock ticks since boot, so that a pid used again is not taken for its last owner."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _runs_here(holder: str) -> bool | None:
    """Tell whether the holder runs on this host; None if it is another host or cannot be told."""
    parts = holder.split(":")
    if (
        len(parts) < 3
        or parts[0] != socket.gethostname()
        or not parts[1].isdecimal()
        or not parts[2]
    ):
        return None
    return _started(int(parts[1])) == parts[2]


def _is_alive(holder: str) -> bool:
    return _runs_here(holder) is True


def _is_dead(holder: str) -> bool:
    return _runs_here(holder) is False
