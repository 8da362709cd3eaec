"""The backlog: what the prediction log holds that has not become Parquet yet. Reads each byte of it once."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from keepwell.serving.log.manifest import ManifestFile

READ_BYTES = 64 * 1024 * 1024
"""A look reads no further than this; the rest is told as not counted yet, and the next look goes on."""
_HEAD = struct.Struct("<II")


class _Start(msgspec.Struct, array_like=True):
    """The first fields of a ``Batch``, down to the number of its rows; the others are skipped."""

    endpoint: str
    plan: int
    arms: msgspec.Raw
    answerers: msgspec.Raw
    arrived: int
    mirror: bool
    rows: int


_kind = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_start = msgspec.msgpack.Decoder(_Start)
_many = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Waiting(msgspec.Struct, kw_only=True):
    """What one look found."""

    segments: int = 0
    bytes: int = 0
    oldest: float = 0.0
    """When the oldest of the segments was written to last, seconds since 1970; 0: there is none."""
    records: int = 0
    uncounted: int = 0
    """Bytes whose records are not in ``records`` yet, or cannot be: the frame is torn."""
    rounds: int = 0
    compacted: int = 0
    """Records that are in Parquet."""
    compacted_at: float = 0.0
    """When segments last became Parquet, seconds since 1970; 0: never."""


class Backlog:
    """Looks at one log folder. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = ManifestFile(folder)
        self._counted: dict[str, tuple[int, int]] = {}
        """Byte and records up to which a segment was counted."""

    def look(self) -> Waiting:
        """Look again. Raises Corrupt if the manifest is damaged."""
        held = self._manifest.read()
        found = Waiting(rounds=held.rounds, compacted=sum(part.rows for part in held.parts))
        if held.rounds:
            found.compacted_at = self._manifest.changed
        left = READ_BYTES
        seen: dict[str, tuple[int, int]] = {}
        for path in sorted(self._folder.glob("*.seg")):
            if path.name in held.segments:
                continue
            try:
                told = path.stat()
                at, records = self._counted.get(path.name, (0, 0))
                stop = min(told.st_size, at + left)
                more, passed = _count(path, at, stop)
            except FileNotFoundError:
                continue  # it became Parquet meanwhile
            left -= passed - at
            seen[path.name] = (passed, records + more)
            found.segments += 1
            found.bytes += told.st_size
            found.oldest = min(found.oldest or told.st_mtime, told.st_mtime)
            found.records += records + more
            found.uncounted += told.st_size - passed
        self._counted = seen
        return found


def _count(path: Path, start: int, stop: int) -> tuple[int, int]:
    """Count the records of the whole frames from ``start`` that begin before ``stop``, and say where they end."""
    records = 0
    end = start
    if start >= stop:
        return 0, start
    with path.open("rb") as file:
        file.seek(start)
        while end < stop and len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, _ = _HEAD.unpack(head)
            payload = file.read(length)
            if len(payload) < length:
                break
            try:
                kind, content = _kind.decode(payload)
                records += _start.decode(content).rows if kind == 2 else len(_many.decode(content))
            except msgspec.DecodeError:
                break
            end += _HEAD.size + length
    return records, end
