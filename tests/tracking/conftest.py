"""A tracking store and a real server for the tests of tracking."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import uvicorn
from starlette.applications import Starlette

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.stores.sql import SqlStore, open_store
from keepwell.adapters.tracking.sql import SqlTracking, open_tracking
from keepwell.app.api.mlflow import Limits, routes
from keepwell.core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Run by the interpreter that has MLflow, never imported here.
collect_ignore = ["client_session.py"]


class Running:
    """A tracking server on a free port, with the parts behind it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.store: SqlStore = open_store(url)
        self.tracking: SqlTracking = open_tracking(url)
        self.blobs = FileBlobs(folder / "blobs")
        limits = Limits(body=1_000_000, artifact=5_000_000)
        app = Starlette(
            routes=routes(self.tracking, self.store, self.blobs, SystemClock(), limits=limits)
        )
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server and release the database."""
        self._server.should_exit = True
        self._thread.join(60)
        self._socket.close()
        self.tracking.close()
        self.store.close()


@pytest.fixture
def tracking(migrated: str) -> Iterator[SqlTracking]:
    """Give tracking on a migrated database."""
    made = open_tracking(migrated)
    yield made
    made.close()


@pytest.fixture
def server(migrated: str, tmp_path: Path) -> Iterator[Running]:
    """Give a running server on each kind of database."""
    made = Running(migrated, tmp_path)
    yield made
    made.stop()
