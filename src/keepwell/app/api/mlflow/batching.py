"""Group commit: requests that arrive together are logged in one durable transaction.

Nothing waits for a batch to fill. While one batch is being written to disk the next gathers by itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from keepwell.core.errors import KeepwellError

if TYPE_CHECKING:
    from keepwell.core.ports.tracking import TrackingStore
    from keepwell.core.records.tracking import RunBatch

MOST = 512


class GroupCommit:
    """Logs batches from one event loop, several at a time; each caller gets its own verdict."""

    def __init__(self, tracker: TrackingStore) -> None:
        self._tracker = tracker
        self._waiting: list[tuple[RunBatch, asyncio.Future[KeepwellError | None]]] = []
        self._scheduled = False

    async def log(self, batch: RunBatch) -> None:
        """Return when the batch is durable. Raises what ``Tracker.log`` raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[KeepwellError | None] = loop.create_future()
        self._waiting.append((batch, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._write)
        refused = await future
        if refused is not None:
            raise refused

    def _write(self) -> None:
        # In the loop itself: a commit takes about as long as handing it to a thread and back.
        self._scheduled = False
        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        if self._waiting:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._write)
        try:
            verdicts = self._tracker.log_many([one for one, _ in batch])
        except BaseException as error:  # noqa: BLE001 - every waiting request must hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), verdict in zip(batch, verdicts, strict=True):
            if not future.done():
                future.set_result(verdict)
