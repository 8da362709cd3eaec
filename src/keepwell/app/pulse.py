"""The worker's pulse: a file by which other processes know how far it is."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Pulse:
    """Tells other processes how far the worker is: a file with the start of its last whole round."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run" / "worker.json"

    def beat(self, began: int) -> None:
        """Write that everything acknowledged before ``began`` (microseconds) has been read and judged."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode({"round": began}))
        temporary.replace(self._path)

    def last(self) -> int:
        """Give the start of the last whole round; 0 if there was none."""
        try:
            return int(msgspec.json.decode(self._path.read_bytes())["round"])
        except (OSError, KeyError, msgspec.DecodeError):
            return 0
