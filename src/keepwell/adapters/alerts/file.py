"""A file that alerts are appended to, one line of JSON each: for a machine on which a log shipper or a person looks."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from keepwell.core.errors import Unavailable
from keepwell.core.records.watching import Alert


class AlertFile:
    """Appends alerts to a file, durable on return. Implements ``keepwell.core.ports.alerts.Channel``."""

    def __init__(self, *, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    @property
    def name(self) -> str:
        """See ``keepwell.core.ports.alerts.Channel``."""
        return self._name

    def send(self, alert: Alert) -> str:
        """See ``keepwell.core.ports.alerts.Channel``."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(alert) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(
                f"The alert file {self._name!r} cannot be written: {error.strerror}.",
                where=str(self._path),
            ) from error
        return "written"
