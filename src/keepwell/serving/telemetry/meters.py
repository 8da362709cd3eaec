"""What a worker counts, and how the counts of all workers come together: a file a worker, one for those that ended."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from keepwell.serving.telemetry.footprint import Footprint, is_alive

BOUNDS_US = (
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
)  # fmt: skip
"""Upper bounds of the histograms of time, microseconds."""
BOUNDS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
"""Upper bounds of the histograms of how much is computed together."""
GONE = "gone"
"""Name of the file with what ended workers had counted."""
SPENT = "spent.json"
"""Name of the file, in the project's state folder, with the model calls of gateways that have ended."""
REMEMBERED = 200
"""Ended workers whose names are kept, so that a reader who meets their file once more does not count it twice."""


def worker_name(number: int, pid: int) -> str:
    """Name a worker so that no two processes ever share a name."""
    return f"w{number}p{pid}"


class Work(msgspec.Struct, frozen=True):
    """The model calls of one version at one endpoint. A call computes all rows of a tick."""

    calls: int = 0
    spent: int = 0
    """Nanoseconds."""
    failed: int = 0
    failed_spent: int = 0
    rows: int = 0
    last: int = 0
    """When the last call succeeded, milliseconds since 1970."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker stands when it shares its counters."""

    footprint: Footprint
    ready: bool
    edition: int
    plans: dict[str, int] = {}
    """Revision of the traffic plan in force, by endpoint."""
    arms: list[tuple[str, str, int, float, bool]] = []
    """Endpoint, arm, version, share of the traffic, and whether it only mirrors."""
    connections: int = 0
    pending: int = 0
    """Requests that wait for their tick."""
    pending_bytes: int = 0
    unsynced: int = 0
    """Bytes of the log that are written and not on the disk yet."""
    unsynced_seconds: float = 0.0
    """How long the oldest of them has waited, at most."""
    certificate_expires: float | None = None
    """Seconds since 1970, where there is TLS."""


class Counts(msgspec.Struct, kw_only=True):
    """What is only ever added to. A histogram is a list: a count a bucket, one without a bound, and the sum."""

    rows: dict[str, int] = {}
    """Answered rows, by ``key_of(endpoint, arm, version, status)``."""
    latency: dict[str, list[int]] = {}
    """Microseconds, by endpoint, arm and version."""
    calls: dict[str, list[int]] = {}
    """The fields of ``Work``, by endpoint and version."""
    tick_rows: dict[str, list[int]] = {}
    tick_requests: dict[str, list[int]] = {}
    refusals: dict[str, int] = {}
    sheds: dict[str, int] = {}
    """By endpoint and reason."""
    errors: dict[str, int] = {}
    """Answers that are no success, by status."""
    syncs: list[int] = []
    """Microseconds."""
    plain: dict[str, int] = {}
    """Counters without labels, by their names."""

    def add(self, other: Counts) -> None:
        """Add another worker's counts."""
        for field in self.__struct_fields__:
            mine, theirs = getattr(self, field), getattr(other, field)
            if field == "syncs":
                self.syncs = _summed(mine, theirs)
                continue
            for key, value in theirs.items():
                if isinstance(value, int):
                    mine[key] = mine.get(key, 0) + value
                else:
                    sums = _summed(mine.get(key, []), value)
                    if field == "calls" and key in mine:
                        sums[5] = max(mine[key][5], value[5])
                    mine[key] = sums


class Shared(msgspec.Struct, kw_only=True):
    """What a worker writes where the others read it."""

    counts: Counts
    standing: Standing | None = None


class Gone(msgspec.Struct, kw_only=True):
    """What workers that have ended had counted, and how many there should be."""

    counts: Counts
    names: list[str] = []
    wanted: int = 0
    deaths: int = 0
    """Workers that ended without being told to."""


def _summed(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)] if a and b else list(a or b)


def key_of(*parts: object) -> str:
    """Join what a count is told apart by; whatever the parts hold, they come apart again."""
    return msgspec.json.encode(parts).decode()


def parts_of(key: str) -> list[str]:
    """Give back the parts that ``key_of`` joined, as texts."""
    return [str(part) for part in msgspec.json.decode(key)]


class Meters:
    """Counters of one worker, shared with the others through a file a worker."""

    def __init__(self, folder: Path, *, worker: str) -> None:
        self._folder = folder
        self._path = folder / f"{worker}.json"
        self.standing: Callable[[], Standing] | None = None
        """Tells how the worker stands."""
        self.counts: dict[tuple[str, str, int, str], int] = {}
        self.latency: dict[tuple[str, str, int], list[int]] = {}
        self.ticks: dict[str, tuple[list[int], list[int]]] = {}
        """Requests and rows of the ticks, by endpoint."""
        self.refusals: dict[str, int] = {}
        self.calls: dict[tuple[str, int], list[int]] = {}
        self.sheds: dict[tuple[str, str], int] = {}
        self.errors: dict[int, int] = {}
        self.syncs = [0] * (len(BOUNDS_US) + 2)
        self.sync_failures = 0
        self.append_failures = 0
        self.written = 0
        """Bytes of the log."""
        self.connected = 0
        self.dropped = 0
        self.outcomes = 0
        self.listeners: dict[str, int] = {}
        """What listeners have counted."""

    def answered(
        self,
        endpoint: str,
        arm: str,
        version: int,
        status: str,
        latencies: list[int],
        rows: list[int] | None = None,
    ) -> None:
        """Count what one arm answered in a tick: a latency (microseconds) a request, and its rows if not one."""
        key = (endpoint, arm, version, status)
        n = len(latencies) if rows is None else sum(rows)
        self.counts[key] = self.counts.get(key, 0) + n
        buckets = self.latency.get(key[:3])
        if buckets is None:
            buckets = self.latency[key[:3]] = [0] * (len(BOUNDS_US) + 2)
        place = bisect_left(BOUNDS_US, min(latencies))
        if rows is None and place == bisect_left(BOUNDS_US, max(latencies)):
            # The requests of one tick mostly took alike.
            buckets[-1] += sum(latencies)
            buckets[place] += n
            return
        for latency, count in zip(latencies, rows or [1] * n, strict=True):
            buckets[-1] += latency * count
            buckets[bisect_left(BOUNDS_US, latency)] += count

    def ticked(self, endpoint: str, requests: int, rows: int) -> None:
        """Count one tick at an endpoint: how many requests were computed together, and their rows."""
        found = self.ticks.get(endpoint)
        if found is None:
            size = len(BOUNDS_ROWS) + 2
            found = self.ticks[endpoint] = ([0] * size, [0] * size)
        of_requests, of_rows = found
        of_requests[bisect_left(BOUNDS_ROWS, requests)] += 1
        of_requests[-1] += requests
        of_rows[bisect_left(BOUNDS_ROWS, rows)] += 1
        of_rows[-1] += rows

    def refused(self, endpoint: str) -> None:
        """Count one request with bad input."""
        self.refusals[endpoint] = self.refusals.get(endpoint, 0) + 1

    def shed(self, endpoint: str, reason: str) -> None:
        """Count one request that was not computed for want of time."""
        self.sheds[endpoint, reason] = self.sheds.get((endpoint, reason), 0) + 1

    def failed(self, status: int) -> None:
        """Count one answer that is no success."""
        self.errors[status] = self.errors.get(status, 0) + 1

    def synced(self, seconds: float, *, failed: bool) -> None:
        """Count one wait for the disk."""
        spent = int(seconds * 1e6)
        self.syncs[bisect_left(BOUNDS_US, spent)] += 1
        self.syncs[-1] += spent
        self.sync_failures += failed

    def ran(self, endpoint: str, version: int, *, rows: int, spent: int, failed: bool) -> None:
        """Count one model call that took ``spent`` nanoseconds."""
        work = self.calls.setdefault((endpoint, version), [0] * len(Work.__struct_fields__))
        place = 2 if failed else 0
        work[place] += 1
        work[place + 1] += spent
        if not failed:
            work[4] += rows
            work[5] = time.time_ns() // 1_000_000

    def work(self) -> dict[tuple[str, int], Work]:
        """Sum the model calls of all workers since the gateway started, by endpoint and version."""
        found = self.total()[0].calls
        named = {tuple(msgspec.json.decode(key)): Work(*values) for key, values in found.items()}
        return {(str(endpoint), int(version)): work for (endpoint, version), work in named.items()}

    def _own(self) -> Shared:
        counts = Counts(
            rows={key_of(*key): value for key, value in self.counts.items()},
            latency={key_of(*key): value for key, value in self.latency.items()},
            calls={key_of(*key): value for key, value in self.calls.items()},
            tick_requests={name: each[0] for name, each in self.ticks.items()},
            tick_rows={name: each[1] for name, each in self.ticks.items()},
            refusals=self.refusals,
            sheds={key_of(*key): value for key, value in self.sheds.items()},
            errors={str(status): value for status, value in self.errors.items()},
            syncs=self.syncs,
            plain={
                "outcomes": self.outcomes,
                "dropped": self.dropped,
                "connected": self.connected,
                "written": self.written,
                "sync_failures": self.sync_failures,
                "append_failures": self.append_failures,
                **self.listeners,
            },
        )
        return Shared(counts=counts, standing=self.standing() if self.standing else None)

    def share(self) -> None:
        """Write the counters where the other workers read them."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        _write(self._path, self._own())

    def total(self) -> tuple[Counts, dict[str, Standing], Gone]:
        """Sum the counts of all workers since the gateway started, the own ones as they are now.

        Besides: how the workers that live stand, by their names, and what the parent says of the others.
        """
        found = {self._path.stem: self._own()}
        for path, given in _read(self._folder, Shared):
            found.setdefault(path.stem, given)
        # After the workers' files: what was folded meanwhile is named there, and what is named is not counted twice.
        gone = read_gone(self._folder)
        for name in gone.names:
            if name != self._path.stem:
                found.pop(name, None)
        counts = Counts()
        counts.add(gone.counts)
        for given in found.values():
            counts.add(given.counts)
        standing = {
            name: given.standing
            for name, given in sorted(found.items())
            if given.standing is not None and is_alive(given.standing.footprint)
        }
        return counts, standing, gone


class Spent(msgspec.Struct, kw_only=True):
    """The model calls of all gateways that have ended. It outlives their counters."""

    calls: dict[str, list[int]] = {}
    """The fields of ``Work``, by endpoint and version."""
    counted: list[tuple[str, int]] = []
    """Name and time (ns) of the files that the last gateway left: a crash before they went counts nothing twice."""


def retire(folder: Path, kept: Path) -> None:
    """Add what an earlier gateway's workers counted to what is ``kept`` of model calls, and remove their files."""
    spent = read_spent(kept)
    sums = Counts(calls=spent.calls)
    files = {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))}
    gone = read_gone(folder)
    for path, at in files.items():
        if (path.stem, at) in spent.counted or path.stem in gone.names:
            continue
        if path.stem == GONE:
            sums.add(Counts(calls=gone.counts.calls))
        else:
            try:
                shared = msgspec.json.decode(path.read_bytes(), type=Shared)
            except (OSError, msgspec.DecodeError):
                continue
            sums.add(Counts(calls=shared.counts.calls))
    if files:
        counted = [(path.stem, at) for path, at in files.items()]
        _write(kept, Spent(calls=sums.calls, counted=counted))
    for path in files:
        path.unlink(missing_ok=True)


def read_spent(kept: Path) -> Spent:
    """Read what ``retire`` has kept; nothing before a gateway has ended."""
    try:
        return msgspec.json.decode(kept.read_bytes(), type=Spent)
    except (OSError, msgspec.DecodeError):
        return Spent()


def model_calls(folder: Path, kept: Path) -> dict[tuple[str, int], Work]:
    """Sum the model calls of all gateways of a project, ended and running, by endpoint and version."""
    sums = Counts(calls=read_spent(kept).calls)
    sums.add(Counts(calls=Meters(folder, worker="").total()[0].calls))
    named = {tuple(parts_of(key)): Work(*values) for key, values in sums.calls.items()}
    return {(endpoint, int(version)): work for (endpoint, version), work in named.items()}


def _write(path: Path, content: object) -> None:
    temporary = path.with_suffix(".new")
    try:
        temporary.write_bytes(msgspec.json.encode(content))
        temporary.replace(path)
    except OSError:
        # A full disk must not end a worker that still answers: the next call shares them all again.
        temporary.unlink(missing_ok=True)


def _read(folder: Path, kind: type[Shared]) -> Iterator[tuple[Path, Shared]]:
    for path in folder.glob("*.json"):
        if path.stem != GONE:
            try:
                yield path, msgspec.json.decode(path.read_bytes(), type=kind)
            except (OSError, msgspec.DecodeError):
                continue  # a worker that ends right now


def read_gone(folder: Path) -> Gone:
    """Read what the parent has written of workers that ended; nothing before it has."""
    try:
        return msgspec.json.decode((folder / f"{GONE}.json").read_bytes(), type=Gone)
    except (OSError, msgspec.DecodeError):
        return Gone(counts=Counts())


def fold(folder: Path, names: Sequence[str], *, wanted: int, deaths: int = 0) -> None:
    """Put the counts of workers that have ended into one file, so that however many end, a few files are read.

    The parent alone does this. A worker's file goes after its counts and its name are in the other one.
    """
    gone = read_gone(folder)
    files = [folder / f"{name}.json" for name in names]
    for path in files:
        try:
            gone.counts.add(msgspec.json.decode(path.read_bytes(), type=Shared).counts)
        except (OSError, msgspec.DecodeError):
            continue  # it ended before it counted anything
    gone.names = [*gone.names, *names][-REMEMBERED:]
    gone.wanted = wanted
    gone.deaths += deaths
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    _write(folder / f"{GONE}.json", gone)
    if read_gone(folder).names == gone.names:
        for path in files:
            path.unlink(missing_ok=True)
