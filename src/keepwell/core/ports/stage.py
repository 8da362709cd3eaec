"""The stage: a throwaway gateway on which a candidate is tried before anyone may reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from keepwell.core.records.models import ModelVersion
    from keepwell.core.records.traffic import Endpoint

    Row = dict[str, Any]


class Staged(Protocol):
    """A version that runs in a fresh process behind real HTTP, on this machine only."""

    @property
    def load_seconds(self) -> float:
        """From starting the process until it was ready."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process, after the requests made so far."""
        ...

    def predict(self, rows: Sequence[Row]) -> list[Any]:
        """Send rows in one request and give the predictions. Raises Unavailable, InvalidInput."""
        ...

    def raw(self, body: bytes) -> tuple[int, bytes]:
        """Send any body to the staged endpoint and give status and answer."""
        ...


class Stage(Protocol):
    """Makes staged versions."""

    def open(self, version: ModelVersion, endpoint: Endpoint) -> AbstractContextManager[Staged]:
        """Start the version in a fresh process and end it with the block. Raises Unavailable, Corrupt."""
        ...


class Application(Protocol):
    """The live endpoint as an application calls it, over HTTP."""

    def predict(self, endpoint: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Send rows; give of each at least ``id``, ``prediction``, ``version`` and ``plan``. Raises Unavailable."""
        ...

    def probe(
        self, endpoint: str, *, version: int, rows: Sequence[Row], within: float
    ) -> list[Any]:
        """Give the predictions of one loaded version, an arm or a mirror, at the live endpoint.

        A probe is answered by the process that answers users but is no decision, so it is not logged.
        Waits up to ``within`` seconds for the version to be loaded. Raises Unavailable.
        """
        ...
