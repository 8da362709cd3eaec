"""The access log: a line of JSON a request, written beside the event loop, never in the way of an answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import msgspec

from keepwell.core.errors import Unavailable
from keepwell.serving.telemetry.notes import Note, Part, parent_of

STDOUT = "-"
GATHER_SECONDS = 0.02
"""Lines of so long go into one write: one a tick would wake the writing thread a thousand times a second."""
MAX_WAITING = 4 * 1024 * 1024
"""Bytes of lines that may wait for a slow disk or pipe; what comes beyond is dropped, and counted."""
MAX_IDS = 10
MAX_TEXT = 200
CLOSE_SECONDS = 2.0


class _Line(msgspec.Struct, omit_defaults=True):
    """One request. What does not apply is left out."""

    time: dt.datetime
    """When it was read."""
    method: str
    path: str
    status: int
    seconds: float
    """Until its answer was handed to the connection."""
    bytes_in: int
    bytes_out: int
    client: str = ""
    endpoint: str = ""
    rows: int = 0
    ids: list[str] = []
    """The first decision ids."""
    arm: str = ""
    version: int = 0
    arms: dict[str, int] = {}
    """Rows by arm, where several answered."""
    plan: int = 0
    shed: str = ""
    trace: str = ""


_encoder = msgspec.json.Encoder()


def check_place(place: str) -> None:
    """See at the start whether the log can be written. Raises Unavailable."""
    if place != STDOUT:
        os.close(_opened(Path(place)))


class AccessLog:
    """Writes to a file that may be moved away at any time (it is made anew), or to standard output.

    Several workers write to one file: each write is a whole number of lines, appended at once.
    """

    def __init__(self, place: str, loop: asyncio.AbstractEventLoop) -> None:
        self.lines = 0
        """Lines that were made, dropped ones too."""
        self.dropped = 0
        """Lines that found no room or no disk."""
        self._path = None if place == STDOUT else Path(place)
        self._loop = loop
        self._lines: list[bytes] = []
        self._gathered = 0
        self._handed = 0
        self._written = 0
        self._flush: asyncio.TimerHandle | None = None
        self._file = 1 if self._path is None else -1
        self._queue: SimpleQueue[list[bytes] | None] = SimpleQueue()
        self._thread = Thread(target=self._write_all, name="access log", daemon=True)
        self._thread.start()

    def saw(self, note: Note) -> None:
        """See ``Listener``."""
        self.lines += 1
        line = _encoder.encode(_line(note))
        if self._gathered + self._handed - self._written + len(line) >= MAX_WAITING:
            self.dropped += 1
            return
        self._lines.append(line)
        self._gathered += len(line) + 1
        if self._flush is None:
            self._flush = self._loop.call_later(GATHER_SECONDS, self._hand_over)

    def _hand_over(self) -> None:
        self._flush = None
        lines, self._lines = self._lines, []
        self._handed += self._gathered
        self._gathered = 0
        self._queue.put(lines)

    def counts(self) -> dict[str, int]:
        """See ``Listener``."""
        return {"access_log_lines": self.lines, "access_log_dropped": self.dropped}

    def close(self) -> None:
        """See ``Listener``. A pipe that nobody reads is waited for ``CLOSE_SECONDS``."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _write_all(self) -> None:
        while (lines := self._queue.get()) is not None:
            content = b"\n".join([*lines, b""])
            if lines and not self._write(content):
                self.dropped += len(lines)
            self._written += len(content)

    def _write(self, content: bytes) -> bool:
        try:
            if self._path is None:
                while content:
                    content = content[os.write(1, content) :]
                return True
            if self._file < 0 or self._was_moved(self._path):
                if self._file >= 0:
                    os.close(self._file)
                    self._file = -1
                self._file = _opened(self._path)
            return os.write(self._file, content) == len(content)
        except (OSError, Unavailable):
            return False  # told by the counter: there may be no other place to tell it

    def _was_moved(self, path: Path) -> bool:
        try:
            there = path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(self._file)
        return (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise Unavailable(
            f"The access log cannot be written: {error.strerror}.",
            where=str(path),
            todo="Mend access_log under [server] in keepwell.toml; its folder must exist.",
        ) from error


def _line(note: Note) -> _Line:
    # Every request pays for this on the loop's thread: what is common takes the short way.
    path = note.path
    line = _Line(
        dt.datetime.fromtimestamp(time.time() - time.perf_counter() + note.began, dt.UTC),
        note.method,
        path if len(path) <= MAX_TEXT else path[:MAX_TEXT],
        note.status,
        round(note.ended - note.began, 6),
        note.size,
        note.sent,
        note.client,
    )
    parent = parent_of(note) if note.parent else None
    if parent is not None:
        line.trace = parent[0]
    ask = note.ask
    if ask is None:
        return line
    name = ask.endpoint
    line.endpoint = name if len(name) <= MAX_TEXT else name[:MAX_TEXT]
    line.shed = ask.shed
    part = ask.part
    if part is None:
        line.rows = len(ask.rows) if ask.rows is not None else 0
        return line
    batch = part.batch
    line.plan = batch.plan
    line.rows = rows = part.stop - part.start
    if rows == 1 and not batch.ids:
        line.ids = [f"{batch.prefix}{batch.first + part.start:x}"]
    else:
        found = batch.identities(part.start, min(part.stop, part.start + MAX_IDS))
        line.ids = [identity[:MAX_TEXT] for identity in found]
    places = answered_by(part)
    if len(places) == 1:
        by = batch.answerers[next(iter(places))]
        line.arm, line.version = by.arm, by.version
    else:
        line.arms = {batch.answerers[place].arm: rows for place, rows in sorted(places.items())}
    return line


def answered_by(part: Part) -> Mapping[int, int]:
    """Count a request's rows by the place of the arm that answered them."""
    column = part.batch.answered or part.batch.chosen
    if not column:
        return {0: part.stop - part.start}
    places = memoryview(column)[2 * part.start : 2 * part.stop]
    return Counter(int.from_bytes(places[k : k + 2], "little") for k in range(0, len(places), 2))
