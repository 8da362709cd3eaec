"""What a procedure works with: the ports and values that the app wires together once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from keepwell.core.clock import Clock
    from keepwell.core.ports.blobs import Blobs
    from keepwell.core.ports.signing import Signer
    from keepwell.core.ports.stage import Application, Stage
    from keepwell.core.ports.store import Store
    from keepwell.core.project import Project
    from keepwell.core.records.evidence import CheckResult
    from keepwell.core.records.models import ModelVersion
    from keepwell.core.records.traffic import Rollout
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
    clock: Clock
    stage: Stage
    application: Application
    rollouts: Rollouts
    drills: Drills
