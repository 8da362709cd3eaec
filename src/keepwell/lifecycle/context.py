"""What a procedure works with: the ports and values that the app wires together once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from keepwell.core.clock import Clock
    from keepwell.core.ports.blobs import Blobs
    from keepwell.core.ports.signing import Signer, Verifier
    from keepwell.core.ports.stage import Application, Stage
    from keepwell.core.ports.store import Store, Transaction
    from keepwell.core.project import Project
    from keepwell.core.records.evidence import CheckResult
    from keepwell.core.records.models import ModelVersion
    from keepwell.core.records.rollouts import Rollout
    from keepwell.core.settings import Settings


class Rollouts(Protocol):
    """Starts a change of traffic that its strategy then drives."""

    def start(
        self,
        *,
        id: str,
        endpoint: str,
        version: ModelVersion,
        strategy: str,
        actor: str,
    ) -> Rollout:
        """Begin, or give the rollout of this id if it has begun already. Raises Refused, InvalidInput."""
        ...

    def check(self, strategy: str) -> None:
        """Raise NotFound, with the nearest name, unless there is such a strategy."""
        ...

    def call_off(self, transaction: Transaction, *, id: str, actor: str, reason: str) -> bool:
        """Take back what the rollout of this id has changed, in the caller's transaction.

        Its endpoint returns to the plan before it, or to one that nobody answers. Tells whether anything
        changed: nothing does if the plan in force does not name the rollout's version.
        """
        ...


class Drills(Protocol):
    """Proves that an alarm would be heard."""

    def alert(self, endpoint: str, version: ModelVersion) -> CheckResult:
        """Push a made drift through the real monitors and the alert through the real channels."""
        ...


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a step may touch."""

    project: Project
    settings: Settings
    folder: Path
    store: Store
    blobs: Blobs
    signer: Signer
    verifier: Verifier
    """Trusts every key that the store holds, so that what an earlier key signed still counts."""
    clock: Clock
    stage: Stage
    application: Application
    rollouts: Rollouts
    drills: Drills
