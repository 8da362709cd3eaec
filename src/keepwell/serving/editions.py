"""Editions: what the workers serve, as one file that is replaced whole and a counter in shared memory."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import msgspec

from keepwell.core.errors import Corrupt
from keepwell.core.records.models import Signature
from keepwell.core.records.traffic import Arm, Cohort, Gap, LinearPolicyState, LogLevel, Period

_NUMBER = struct.Struct("<Q")


class EndpointEdition(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint as it is to be served now. ``refused`` says why nothing may answer, or why an arm is left out."""

    name: str
    model: str
    unit: str
    time: str
    log: LogLevel
    log_share: float = 1.0
    plan: int
    salt: str
    fallback: str
    arms: tuple[Arm, ...]
    mirrors: tuple[Arm, ...]
    holdout: Arm | None = None
    cohorts: tuple[Cohort, ...] = ()
    policy: LinearPolicyState | None = None
    period: Period | None = None
    gap: Gap = "refuse"
    """What becomes of requests while there are no arms, as the plan says; versions that are refused are no gap."""
    gap_seconds: float = 0.0
    refused: str = ""
    signature: Signature | None = None

    @property
    def answering(self) -> tuple[Arm, ...]:
        """List everything that may answer: the arms, and behind them the holdout, which has no place alone."""
        return (*self.arms, self.holdout) if self.holdout is not None and self.arms else self.arms


class Edition(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs; artefact digests name folders beside the file."""

    number: int
    endpoints: tuple[EndpointEdition, ...]


class Shelf:
    """The folder where the parent puts editions and the workers find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "generation"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            if os.fstat(descriptor).st_size < _NUMBER.size:
                os.ftruncate(descriptor, _NUMBER.size)
            self._memory = mmap.mmap(descriptor, _NUMBER.size)
        finally:
            os.close(descriptor)

    def generation(self) -> int:
        """Give the newest edition's number: one read of shared memory."""
        number: int = _NUMBER.unpack_from(self._memory)[0]
        return number

    def artefact_folder(self, digest: str) -> Path:
        """Give the place of an unpacked artefact."""
        return self.folder / "artefacts" / digest.removeprefix("sha256:")

    def publish(self, edition: Edition) -> None:
        """Replace the edition's file, then raise the counter: a worker that sees the number finds the file."""
        temporary = self.folder / ".edition.json"
        temporary.write_bytes(msgspec.json.encode(edition))
        temporary.replace(self.folder / "edition.json")
        _NUMBER.pack_into(self._memory, 0, edition.number)

    def read(self) -> Edition:
        """Read the newest edition; before the first one, an empty one. Raises Corrupt."""
        try:
            return msgspec.json.decode((self.folder / "edition.json").read_bytes(), type=Edition)
        except FileNotFoundError:
            return Edition(number=0, endpoints=())
        except msgspec.DecodeError as error:
            raise Corrupt(
                f"The edition cannot be read: {error}.", where=str(self.folder)
            ) from error
