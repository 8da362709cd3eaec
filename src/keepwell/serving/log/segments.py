"""The prediction log on disk: per worker, append-only, each frame with its length and CRC-32.

A frame is ``length (4 bytes, little-endian) crc32 (4 bytes) payload``; the payload is MessagePack
``[kind, content]`` with kind 0 for prediction records, 1 for outcome records and 2 for one ``Batch`` of predictions.
A process only ever appends to files that it made itself, so a tail torn by a crash stays at the end of its file,
where the reader finds and reports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from keepwell.core.clock import Time
from keepwell.core.errors import Unavailable
from keepwell.core.ports.predictionlog import LogBatch
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log.batches import Batch
from keepwell.serving.log.columns import (
    ColumnBatch,
    Columns,
    Wanted,
    columns_of_batches,
    columns_of_records,
    columns_of_table,
)
from keepwell.serving.log.manifest import Manifest, ManifestFile, Part, is_whole

SEGMENT_BYTES = 64 * 1024 * 1024
RECORD_BYTES = 150
"""About what a record takes in a segment."""
_HEAD = struct.Struct("<II")
_encoder = msgspec.msgpack.Encoder()
_predictions = msgspec.msgpack.Decoder(tuple[int, tuple[Prediction, ...]])
_outcomes = msgspec.msgpack.Decoder(tuple[int, tuple[Outcome, ...]])
_batches = msgspec.msgpack.Decoder(tuple[int, Batch])


class SegmentWriter:
    """Appends frames, from one thread at a time; any number of ``sync`` may run beside it in others."""

    def __init__(self, folder: Path, *, name: str) -> None:
        self._folder = folder
        self._name = name
        self._part = 0
        self._size = 0
        self._file = -1
        self._changing = threading.Lock()
        """Held while descriptors are exchanged, so that a sync never meets a closed or reused one."""
        self._turning = threading.Lock()
        """Held while full files are made durable: what another sync still brings to the disk is not on it yet."""
        self._left: list[int] = []
        """Full files that the next sync makes durable and closes, so that an append never waits for the disk."""
        self._made = 0
        self._named = 0
        """The last file that was made, and the last whose name is on the disk too."""
        self.bytes_written = 0
        self.bytes_durable = 0
        """Of these, on the disk."""
        self.behind_since = 0.0
        """When the oldest byte that is not on the disk was written, at the earliest (``time.monotonic``)."""
        self.failures = 0
        """Writes that the disk did not take."""

    def append(
        self,
        predictions: Sequence[Prediction] = (),
        outcomes: Sequence[Outcome] = (),
        batches: Sequence[Batch] = (),
    ) -> None:
        """Write records; they survive the process from here on, and the machine after ``sync``.

        Raises Unavailable if the disk does not take them; nothing half-written is left for readers to trip on.
        """
        frames = b"".join(
            [_frame(2, batch) for batch in batches]
            + [_frame(k, given) for k, given in ((0, predictions), (1, outcomes)) if given]
        )
        try:
            if self._file < 0 or self._size > SEGMENT_BYTES or not self._there():
                self._open()
            written = os.write(self._file, frames)
            if written != len(frames):
                raise OSError(28, "No space left on device")  # noqa: TRY301 - half a frame is one failure with none
        except OSError as error:
            self.failures += 1
            self._cut_back()
            raise Unavailable(
                f"The prediction log cannot be written: {error.strerror}.",
                where=str(self._folder),
                todo="Make room on its disk; requests are refused until then, and none is lost.",
            ) from error
        self._size += len(frames)
        if self.bytes_written == self.bytes_durable:
            self.behind_since = time.monotonic()
        self.bytes_written += len(frames)

    def sync(self) -> None:
        """Bring what was appended before the call to the disk (fdatasync). Raises Unavailable."""
        before, began = self.bytes_written, time.monotonic()
        try:
            # First a copy of the file that is written to now: had it been left since the caller's append, that
            # would show below.
            with self._changing:
                descriptor = os.dup(self._file) if self._file >= 0 else -1
            try:
                if self._left or self._named < self._made:
                    with self._turning:
                        self._turn()
                if descriptor >= 0:
                    os.fdatasync(descriptor)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        except OSError as error:
            raise Unavailable(f"The prediction log cannot be synced: {error.strerror}.") from error
        if before > self.bytes_durable:
            # Another sync may have told of more meanwhile; what came after this one began is no older than it.
            self.bytes_durable, self.behind_since = before, began

    def _turn(self) -> None:
        while self._left:
            os.fdatasync(self._left[0])
            os.close(self._left.pop(0))
        made = self._made
        if self._named < made:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._named = made

    def close(self) -> None:
        """Sync and close."""
        if self._file >= 0:
            self._leave()
        self.sync()

    def _leave(self) -> None:
        with self._changing:
            self._left.append(self._file)
            self._file = -1

    def _there(self) -> bool:
        # A log folder that was removed under a running gateway is made again rather than written into the void.
        return os.fstat(self._file).st_nlink > 0

    def _open(self) -> None:
        if self._file >= 0:
            self._leave()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._part += 1
        path = self._folder / f"{self._name}-{self._part:04d}.seg"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        # Held until the file is closed, by whatever end: so compaction knows which files are still written to.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size = 0
        self._made = self._part

    def _cut_back(self) -> None:
        if self._file < 0:
            return
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self._leave()


def _frame(kind: int, content: object) -> bytes:
    payload = _encoder.encode((kind, content))
    return b"%s%s" % (_HEAD.pack(len(payload), zlib.crc32(payload)), payload)


def read_frames(
    path: Path, start: int, torn: list[str]
) -> Iterator[tuple[int, Sequence[Prediction], Sequence[Outcome]]]:
    """Give the records of each whole frame after ``start``, with the byte at which it ends.

    A frame that is cut off or changed ends the reading and is told in ``torn``. Raises FileNotFoundError.
    """
    for end, payload in _payloads(path, start, torn):
        content = _content(payload)
        if isinstance(content, Batch):
            yield end, content.expand(), ()
        else:
            yield end, *content


def _payloads(path: Path, start: int, torn: list[str]) -> Iterator[tuple[int, bytes]]:
    end = start
    with path.open("rb") as file:
        file.seek(start)
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                torn.append(f"{path.name} at byte {end}: the last frame is cut off")
                return
            length, crc = _HEAD.unpack(head)
            payload = file.read(length)
            if len(payload) < length:
                torn.append(f"{path.name} at byte {end}: the last frame is cut off")
                return
            if zlib.crc32(payload) != crc:
                torn.append(f"{path.name} at byte {end}: a frame does not match its checksum")
                return
            end += _HEAD.size + length
            yield end, payload


def _content(payload: bytes) -> Batch | tuple[Sequence[Prediction], Sequence[Outcome]]:
    if payload[1] == 2:
        return _batches.decode(payload)[1]
    if payload[1] == 0:
        return _predictions.decode(payload)[1], ()
    return (), _outcomes.decode(payload)[1]


class SegmentLog:
    """Reads a log folder: its segments, and those that became Parquet where a cursor is not past them.

    Implements ``keepwell.serving.log.columns.AnswerLog``. Whether a segment was compacted shows in nothing
    that is read. Records of one decision id may come twice, when a caller repeated a request whose answer was lost in a
    crash: the first one counts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = ManifestFile(folder)
        self._whole: set[str] = set()
        """Parts that were compared with their checksums."""

    def read(
        self,
        cursor: Mapping[str, int],
        *,
        limit: int = 50_000,
        until: Mapping[str, int] | None = None,
    ) -> LogBatch:
        """See ``keepwell.core.ports.predictionlog.PredictionLog``. Raises Corrupt if the manifest is damaged."""
        reading = _Records(dict(cursor), limit, until)
        self._read(reading)
        return LogBatch(
            predictions=tuple(reading.predictions),
            outcomes=tuple(reading.outcomes),
            cursor=reading.places,
            torn=tuple(reading.torn),
        )

    def read_columns(
        self,
        cursor: Mapping[str, int],
        *,
        wanted: Wanted,
        limit: int = 200_000,
        until: Mapping[str, int] | None = None,
    ) -> ColumnBatch:
        """See ``keepwell.serving.log.columns.AnswerLog``. Raises Corrupt if the manifest is damaged."""
        reading = _Columns(dict(cursor), limit, until, wanted)
        self._read(reading)
        return ColumnBatch(
            parts=tuple(reading.parts()),
            outcomes=tuple(reading.outcomes),
            cursor=reading.places,
            torn=tuple(reading.torn),
        )

    def _read(self, reading: _Reading) -> None:
        # The folder first: a segment that is removed later is in the manifest that is read after it.
        names = {path.name for path in self._folder.glob("*.seg")}
        held = self._manifest.read()
        for name in sorted(names | held.segments.keys()):
            start = reading.places.get(name, 0)
            if reading.count >= reading.limit:
                break
            if start >= reading.last(name):
                continue
            if name not in held.segments:
                try:
                    self._read_segment(name, start, reading)
                except FileNotFoundError:
                    held = self._manifest.read()
            if name in held.segments and held.segments[name] > start:
                self._read_compacted(name, start, held, reading)

    def past(self, time: Time) -> dict[str, int]:
        """See ``keepwell.core.ports.predictionlog.PredictionLog``: past the segments whose Parquet is all older."""
        held = self._manifest.read()
        needed = {name for part in held.parts if part.high >= time for name in part.segments}
        return {name: size for name, size in held.segments.items() if name not in needed}

    def count_since(self, time: Time) -> int:
        """See ``keepwell.core.ports.predictionlog.PredictionLog``: what is no Parquet yet by its size."""
        held = self._manifest.read()
        rows = sum(part.rows for part in held.parts if part.high >= time)
        raw = [path for path in self._folder.glob("*.seg") if path.name not in held.segments]
        size = 0
        for path in raw:
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return rows + size // RECORD_BYTES

    def _read_segment(self, name: str, start: int, reading: _Reading) -> None:
        path = self._folder / name
        if path.stat().st_size <= start:
            return
        reading.places[name] = start
        for end, payload in _payloads(path, start, reading.torn):
            if end > reading.last(name):
                break
            reading.take(_content(payload))
            reading.places[name] = end
            if reading.count >= reading.limit:
                break

    def _read_compacted(self, name: str, start: int, held: Manifest, reading: _Reading) -> None:
        from keepwell.serving.log import parts as tables  # noqa: PLC0415 - a gateway never reads, and starts without polars

        folder = self._manifest.folder
        found = [
            part
            for part in held.parts
            if name in part.segments and reading.endpoint in {None, part.endpoint}
        ]
        for part in [part for part in found if part.path not in self._whole]:
            if is_whole(folder / part.path, part):
                self._whole.add(part.path)
            else:
                reading.torn.append(
                    f"{name}: its compacted part {part.path} is not as it was written"
                )
                found.remove(part)
        most = reading.limit - reading.count
        ends = tables.read_places(folder, found, name, start)
        end = ends[most - 1] if len(ends) > most else held.segments[name]
        end = int(min(end, reading.last(name)))
        reading.take_compacted(folder, found, name, start, end)
        reading.places[name] = end


class _Reading:
    """What one call has read so far."""

    def __init__(self, places: dict[str, int], limit: int, until: Mapping[str, int] | None) -> None:
        self.places = places
        self.limit = limit
        self.count = 0
        """Records taken, of the ``limit``."""
        self.endpoint: str | None = None
        """The only one whose records are taken; None: all are."""
        self._until = until
        self.outcomes: list[Outcome] = []
        self.torn: list[str] = []

    def last(self, name: str) -> float:
        """Give the byte behind which nothing of a segment is wanted."""
        return math.inf if self._until is None else self._until.get(name, 0)

    def take(self, content: Batch | tuple[Sequence[Prediction], Sequence[Outcome]]) -> None:
        """Take in one frame."""
        raise NotImplementedError

    def take_compacted(
        self, folder: Path, parts: Sequence[Part], segment: str, start: int, end: int
    ) -> None:
        """Take in what the frames of a segment between two bytes held, from its parts."""
        raise NotImplementedError


class _Records(_Reading):
    """Takes in all, as records."""

    def __init__(self, places: dict[str, int], limit: int, until: Mapping[str, int] | None) -> None:
        super().__init__(places, limit, until)
        self.predictions: list[Prediction] = []

    def take(self, content: Batch | tuple[Sequence[Prediction], Sequence[Outcome]]) -> None:
        self._keep(*((content.expand(), ()) if isinstance(content, Batch) else content))

    def take_compacted(
        self, folder: Path, parts: Sequence[Part], segment: str, start: int, end: int
    ) -> None:
        from keepwell.serving.log.parts import read_records  # noqa: PLC0415 - it brings polars

        self._keep(*read_records(folder, parts, segment, start, end))

    def _keep(self, predictions: Sequence[Prediction], outcomes: Sequence[Outcome]) -> None:
        self.predictions.extend(predictions)
        self.outcomes.extend(outcomes)
        self.count += len(predictions) + len(outcomes)


class _Columns(_Reading):
    """Takes in what is wanted of one endpoint, as columns."""

    def __init__(
        self,
        places: dict[str, int],
        limit: int,
        until: Mapping[str, int] | None,
        wanted: Wanted,
    ) -> None:
        super().__init__(places, limit, until)
        self.endpoint = wanted.endpoint
        self._wanted = wanted
        self._parts: list[Columns] = []
        self._batches: list[Batch] = []
        """Batches that came one after the other, to become columns together."""

    def take(self, content: Batch | tuple[Sequence[Prediction], Sequence[Outcome]]) -> None:
        if isinstance(content, Batch):
            if content.endpoint == self.endpoint:
                self._batches.append(content)
                self.count += content.rows
            return
        predictions, outcomes = content
        if predictions:
            self._keep(columns_of_records(predictions, self._wanted))
            self.count += len(predictions)
        known = [each for each in outcomes if each.endpoint == self.endpoint]
        self.outcomes += known
        self.count += len(known)

    def take_compacted(
        self, folder: Path, parts: Sequence[Part], segment: str, start: int, end: int
    ) -> None:
        from keepwell.serving.log import parts as tables  # noqa: PLC0415 - it brings polars

        table = tables.read_table(folder, parts, segment, start, end)
        if table is not None:
            self._keep(columns_of_table(table, self._wanted))
            self.count += len(table)
        _, known = tables.read_records(
            folder, [part for part in parts if part.kind == "outcomes"], segment, start, end
        )
        self.outcomes += known
        self.count += len(known)

    def parts(self) -> list[Columns]:
        """Give what was taken in."""
        self._flush()
        return self._parts

    def _keep(self, part: Columns) -> None:
        self._flush()
        if len(part):
            self._parts.append(part)

    def _flush(self) -> None:
        if self._batches:
            waiting, self._batches = self._batches, []
            self._keep(columns_of_batches(waiting, self._wanted))
