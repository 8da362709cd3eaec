"""The manifest of the compacted log: which segments have become Parquet, and which files hold their records.

It alone decides: a segment that it names is read from its parts, even if its file is still there; a part that it
does not name is left over from a crash and counts for nobody. It is replaced whole.
"""

from __future__ import annotations

import datetime as dt
import os
import zlib
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from keepwell.core.clock import DAY, Time
from keepwell.core.errors import Corrupt

FOLDER = "compacted"
NAME = "manifest.json"
Kind = Literal["predictions", "outcomes"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file: records of one kind, endpoint and day of event time, from some segments."""

    path: str
    """Relative to the folder of compacted data."""
    kind: Kind
    endpoint: str
    low: Time
    high: Time
    """Earliest and latest event time in it (of outcomes: when they became known)."""
    rows: int
    crc: int
    """CRC-32 of the file."""
    segments: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All that is compacted."""

    rounds: int = 0
    segments: dict[str, int] = {}
    """Bytes that each segment had."""
    parts: tuple[Part, ...] = ()


class ManifestFile:
    """The manifest of one log folder. Any number may read while one process replaces it."""

    def __init__(self, log: Path) -> None:
        self.folder = log / FOLDER
        self._path = self.folder / NAME
        self._state = (0, 0, 0)
        self._held = Manifest()

    @property
    def changed(self) -> float:
        """When the manifest that was read last was written, seconds since 1970."""
        return self._state[1] / 1e9

    def read(self) -> Manifest:
        """Give the manifest in force; an empty one before there is any. Raises Corrupt."""
        try:
            told = self._path.stat()
            state = (told.st_ino, told.st_mtime_ns, told.st_size)
            if state == self._state:
                return self._held
            content = self._path.read_bytes()
        except FileNotFoundError:
            return Manifest()
        try:
            self._held = msgspec.json.decode(content, type=Manifest)
        except msgspec.DecodeError as error:
            raise Corrupt(
                f"The manifest of the compacted log cannot be read: {error}.",
                where=str(self._path),
                todo="Restore it, with the folder it is in, from a backup.",
            ) from error
        self._state = state
        return self._held

    def replace(self, manifest: Manifest) -> None:
        """Put another in force: after a crash it is either the old one or this one."""
        write_whole(self._path, msgspec.json.encode(manifest))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside, bring it to the disk, then give it its name and bring that to the disk too."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(beside, path)  # noqa: PTH105 - one module for every step that a crash may fall between
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each name brought to the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def day_of(time: Time) -> str:
    """Name the day of an event time; times beyond the calendar's years count to its first or last day.

    >>> day_of(DAY + 1)
    '1970-01-02'
    """
    first = dt.date(1970, 1, 1).toordinal()
    day = min(max(time // DAY + first, dt.date.min.toordinal()), dt.date.max.toordinal())
    return dt.date.fromordinal(day).isoformat()


def place_of(kind: Kind, endpoint: str, day: str, number: int) -> str:
    """Give the relative path of a part, in the layout that Hive and its readers know.

    >>> place_of("outcomes", "late/east", "2013-01-01", 7)
    'endpoint=late%2Feast/day=2013-01-01/part-outcomes-000007.parquet'
    """
    return f"endpoint={quote(endpoint, safe='')}/day={day}/part-{kind}-{number:06d}.parquet"


def is_whole(path: Path, part: Part) -> bool:
    """Say whether a part's file is there and has the bytes that were written."""
    try:
        return zlib.crc32(path.read_bytes()) == part.crc
    except FileNotFoundError:
        return False
