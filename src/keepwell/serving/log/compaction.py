"""Compaction: segments of the prediction log that nobody writes to and the watcher is done with become Parquet.

Only the worker imports this. A round writes the parts, then a manifest that names them, then removes the segments;
stopped anywhere, each record is in force exactly once, because the manifest alone says where it is.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import polars as pl

from keepwell.core.clock import DAY
from keepwell.core.errors import Conflict
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log.manifest import (
    Kind,
    ManifestFile,
    Part,
    day_of,
    make_folder,
    place_of,
    sync_folder,
    write_whole,
)
from keepwell.serving.log.parts import Place, outcome_table, parquet_of, prediction_table, stack
from keepwell.serving.log.segments import read_frames

ROUND_BYTES = 64 * 1024 * 1024
"""A round takes no further segment once it has this much; one alone is at most about as large."""
CHUNK = 50_000
"""Records that are held as such; what was read before is held as columns, a tenth as large."""
_Group = tuple[Kind, str, int]


class Compactor:
    """Compacts one log folder. A second one at work on it is refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = ManifestFile(folder)
        self._damaged: set[str] = set()
        """Segments that were found damaged; they stay, and are not read again by each round."""

    def run(
        self, cursors: Iterable[Mapping[str, int]], *, stopping: Callable[[], bool] = lambda: False
    ) -> int:
        """Work one round; gives the number of segments that became Parquet.

        ``cursors`` are the watermarks' places in the log: a segment is due once one of them has passed its last byte,
        because each says from where *all* endpoints can be read again. A segment with a torn tail is never passed,
        so it stays as it is, and is told. Raises Conflict, Corrupt, OSError.
        """
        read = list(cursors)
        if not self._folder.is_dir():
            return 0
        make_folder(self._manifest.folder)
        with ExitStack() as stack_:
            if not stack_.enter_context(_locked(self._manifest.folder / "lock", os.O_CREAT)):
                raise Conflict("Another process compacts this log.", where=str(self._folder))
            self._sweep()
            due = self._due(read, stack_)
            return self._compact(due, stopping) if due else 0

    def _sweep(self) -> None:
        """Remove what a crash left: segments that were compacted already, and parts that nobody names."""
        manifest = self._manifest.read()
        for name in manifest.segments:
            (self._folder / name).unlink(missing_ok=True)
        named = {part.path for part in manifest.parts}
        for pattern in ("endpoint=*/day=*/part-*", "*.new"):
            for path in self._manifest.folder.glob(pattern):
                if str(path.relative_to(self._manifest.folder)) not in named:
                    path.unlink()

    def _due(self, cursors: list[Mapping[str, int]], held: ExitStack) -> dict[Path, int]:
        found: dict[Path, int] = {}
        for path in sorted(self._folder.glob("*.seg")):
            size = path.stat().st_size
            passed = max((cursor.get(path.name, 0) for cursor in cursors), default=0)
            # A writer holds its file's lock before its first byte and until it ends, however it ends.
            if path.name in self._damaged:
                continue
            if 0 < size <= passed and held.enter_context(_locked(path)):
                found[path] = size
                if sum(found.values()) >= ROUND_BYTES:
                    break
        return found

    def _compact(self, due: dict[Path, int], stopping: Callable[[], bool]) -> int:
        before = self._manifest.read()
        number = before.rounds + 1
        reading = _Reading()
        done: dict[str, int] = {}
        for path, size in due.items():
            if reading.take(path, size, stopping):
                done[path.name] = size
            elif stopping():
                return 0
            else:
                self._damaged.add(path.name)
        if not done:
            return 0
        parts = tuple(self._write(group, table, number) for group, table in reading.tables())
        self._manifest.replace(
            msgspec.structs.replace(
                before,
                rounds=number,
                segments=before.segments | done,
                parts=before.parts + parts,
            )
        )
        for name in done:
            os.unlink(self._folder / name)  # noqa: PTH108 - as in write_whole
        sync_folder(self._folder)
        return len(done)

    def _write(self, group: _Group, table: pl.DataFrame, number: int) -> Part:
        kind, endpoint, day = group
        place = place_of(kind, endpoint, day_of(day * DAY), number)
        content = parquet_of(table)
        path = self._manifest.folder / place
        make_folder(path.parent)
        write_whole(path, content)
        times = table.get_column("time").to_list()
        return Part(
            path=place,
            kind=kind,
            endpoint=endpoint,
            low=min(times),
            high=max(times),
            rows=len(table),
            crc=zlib.crc32(content),
            segments=tuple(sorted(table.get_column("segment").unique().to_list())),
        )


class _Reading:
    """The records of some segments, by kind, endpoint and day, as tables that grow chunk by chunk."""

    def __init__(self) -> None:
        self._tables: dict[_Group, list[pl.DataFrame]] = {}

    def take(self, path: Path, size: int, stopping: Callable[[], bool]) -> bool:
        """Take a segment in; False, and nothing taken, if it is not whole or there is no time left."""
        taken: dict[_Group, list[pl.DataFrame]] = {}
        chunk: dict[_Group, tuple[list[Place], list[Prediction | Outcome]]] = {}
        torn: list[str] = []
        count = end = 0
        name = path.name
        for end, predictions, outcomes in read_frames(path, 0, torn):
            for kind, row, record in _numbered(predictions, outcomes):
                key: _Group = (kind, record.endpoint, record.time // DAY)
                places, kept = chunk.setdefault(key, ([], []))
                places.append(Place(name, end, row))
                kept.append(record)
            count += len(predictions) + len(outcomes)
            if count >= CHUNK:
                _pour(chunk, taken)
                count = 0
                if stopping():
                    return False
        _pour(chunk, taken)
        if torn or end != size:
            return False
        for key, tables in taken.items():
            self._tables.setdefault(key, []).extend(tables)
        return True

    def tables(self) -> Iterator[tuple[_Group, pl.DataFrame]]:
        """Give one table a file."""
        for key, tables in sorted(self._tables.items()):
            yield key, stack(tables)


def _numbered(
    predictions: Sequence[Prediction], outcomes: Sequence[Outcome]
) -> Iterator[tuple[Kind, int, Prediction | Outcome]]:
    for row, prediction in enumerate(predictions):
        yield "predictions", row, prediction
    for row, outcome in enumerate(outcomes):
        yield "outcomes", row, outcome


def _pour(
    chunk: dict[_Group, tuple[list[Place], list[Prediction | Outcome]]],
    into: dict[_Group, list[pl.DataFrame]],
) -> None:
    for key, (places, records) in chunk.items():
        table = (
            prediction_table(places, [r for r in records if isinstance(r, Prediction)])
            if key[0] == "predictions"
            else outcome_table(places, [r for r in records if isinstance(r, Outcome)])
        )
        into.setdefault(key, []).append(table)
    chunk.clear()


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[bool]:
    """Hold a file's lock; gives False if another process holds it."""
    descriptor = os.open(path, os.O_RDONLY | flags, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
