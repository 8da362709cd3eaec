"""Storms: a real gateway under load while plans, workers, disks and models fail beneath it, counted to the last record.

The same functions make the long form (``make storm``, ``make soak``) and, with smaller numbers, tests of every run.

    python -m tests.serving.storms --json storm.json
    python -m tests.serving.storms --soak --minutes 10 --json soak.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec
from tests.serving.gateways import Gateway, arm, endpoint, linear, request, running

from keepwell import __version__
from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.log.segments import SegmentLog

ROW = {"x": 1.0, "flag": True, "dep delay": None}
WAIT_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")
Say = Callable[[str], object]


class Broken(Exception):
    """The connection ended before the answer."""


class Wire:
    """One client's connection, made again whenever the gateway said that it ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._rest = b""

    def ask(self, sent: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Send requests at once and give their answers in order. Raises Broken."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(b"".join(sent))
            return [self._answer() for _ in sent]
        except OSError as error:
            self.close()
            raise Broken(f"{type(error).__name__}: {error}") from error

    def _answer(self) -> tuple[int, bytes]:
        assert self._socket is not None
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._more()
        head = self._rest[:end]
        found = _LENGTH.search(head)
        assert found, head
        stop = end + 4 + int(found[1])
        while len(self._rest) < stop:
            self._more()
        body, self._rest = self._rest[end + 4 : stop], self._rest[stop:]
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), body

    def _more(self) -> None:
        if self._socket is None:
            raise ConnectionResetError("an earlier answer was said to be the last one")
        more = self._socket.recv(262_144)
        if not more:
            raise ConnectionResetError("closed before the answer")
        self._rest += more

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""


class Load:
    """Clients of four kinds that never stop: one after another, piled up, now and then, each on a new connection."""

    KINDS = (("steady", 1, 0.0), ("piled", 8, 0.002), ("now-and-then", 1, 0.05), ("fresh", 1, 0.0))

    def __init__(self, gateway: Gateway, name: str) -> None:
        self.gateway = gateway
        self.acknowledged: dict[str, tuple[int, float, int]] = {}
        """Version, prediction and plan by decision id."""
        self.arms: dict[tuple[int, str], set[str]] = {}
        """Which arms answered a unit under a plan."""
        self.refused: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.plan = 0
        self._name = name
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(kind, pile, pause), daemon=True)
            for kind, pile, pause in self.KINDS
        ]

    @property
    def failures(self) -> dict[str, int]:
        return dict(self.refused + self.broken)

    def _run(self, kind: str, pile: int, pause: float) -> None:
        wire = Wire(self.gateway.port)
        n = 0
        while not self._stop.is_set():
            names = [f"{self._name}-{kind}-{n + k}" for k in range(pile)]
            n += pile
            sent = [
                request(
                    msgspec.json.encode({"rows": [ROW | {"user": f"u{hash(i) % 97}"}], "ids": [i]})
                )
                for i in names
            ]
            units = [f"u{hash(i) % 97}" for i in names]
            try:
                answers = wire.ask(sent)
            except Broken as error:
                self.broken[f"{kind}: {error}"] += 1
                continue
            for (status, body), unit in zip(answers, units, strict=True):
                self._take(status, body, unit)
            if kind == "fresh":
                wire.close()
            if pause:
                time.sleep(pause)
        wire.close()

    def _take(self, status: int, body: bytes, unit: str) -> None:
        read = msgspec.json.decode(body)
        if status != 200:
            self.refused[f"{status}: {read['error'][:120]}"] += 1
            return
        (given,) = read["predictions"]
        plan = given["plan"]
        self.acknowledged[given["id"]] = (given["version"], given["prediction"], plan)
        self.arms.setdefault((plan, unit), set()).add(given["arm"])
        self.plan = max(self.plan, plan)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)


def until(true: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for something. Raises AssertionError naming it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)


def audit(log: Path, loads: Sequence[Load]) -> dict[str, int]:
    """Compare what clients were told with what the log holds."""
    records: Counter[str] = Counter()
    versions: dict[str, tuple[int, Any, int]] = {}
    reader, cursor, torn = SegmentLog(log), dict[str, int](), set[str]()
    while True:
        batch = reader.read(cursor, limit=100_000)
        torn |= set(batch.torn)
        if not (batch.predictions or batch.outcomes):
            break
        cursor = dict(batch.cursor)
        for each in batch.predictions:
            records[each.id] += 1
            versions[each.id] = (each.version, each.output, each.plan)
    told = {i: answer for load in loads for i, answer in load.acknowledged.items()}
    return {
        "acknowledged": len(told),
        "logged": sum(records.values()),
        "missing": sum(i not in records for i in told),
        "duplicates": sum(count - 1 for count in records.values()),
        "different": sum(versions.get(i) != answer for i, answer in told.items() if i in versions),
        "torn_files": len(torn),
    }


def mixed(loads: Sequence[Load]) -> int:
    """Count units that one plan gave to more than one arm."""
    arms: dict[tuple[int, str], set[str]] = {}
    for load in loads:
        for key, seen in load.arms.items():
            arms.setdefault(key, set()).update(seen)
    return sum(len(seen) > 1 for seen in arms.values())


def two_arms(gateway: Gateway, plan: int) -> Any:
    """Make a plan of two arms whose versions and weights differ from those of the plan before."""
    first, second = 1 + plan % 7, 8 + plan % 5
    weight = 1000 + 997 * plan % 8000
    return endpoint(
        arms=[
            arm(first, linear(gateway.shelf, 10.0 * first), BUCKETS - weight),
            arm(second, linear(gateway.shelf, 10.0 * second), weight),
        ],
        plan=plan,
        log="group",
    )


def storm_of_swaps(folder: Path, *, plans: int, workers: int, say: Say) -> dict[str, Any]:
    """Swap routes and models, then workers, under load: no request may fail, no answer may be mixed."""
    with running(folder, workers=2) as gateway:
        gateway.publish(two_arms(gateway, 1))
        began = time.monotonic()
        with Load(gateway, "swaps") as load:
            for plan in range(2, plans + 2):
                gateway.publish(two_arms(gateway, plan), wait=False)
                until(lambda: load.plan >= plan, f"an answer under plan {plan}")  # noqa: B023 - called at once
                if plan % 100 == 0:
                    say(
                        f"  {plan} plans, {len(load.acknowledged):,} answers, {sum(load.failures.values())} failed"
                    )
            plan_seconds = time.monotonic() - began
            replaced: list[int] = []
            while len(replaced) < workers:
                replaced += gateway.pool.pids()
                gateway.pool.swap()
                if len(replaced) % 20 == 0:
                    say(
                        f"  {len(replaced)} workers, {len(load.acknowledged):,} answers, {sum(load.failures.values())} failed"
                    )
        seconds = time.monotonic() - began
        found = audit(gateway.log, [load])
        wrong = sum(
            value != 1.0 + 10.0 * version for version, value, _ in load.acknowledged.values()
        )
        return {
            "plan_swaps": plans,
            "plans_seen": len({plan for _, _, plan in load.acknowledged.values()}),
            "worker_swaps": len(set(replaced)),
            "failed": sum(load.failures.values()),
            "failures": load.failures,
            "mixed_answers": wrong,
            "units_of_two_arms": mixed([load]),
            "plan_seconds": round(plan_seconds, 1),
            "seconds": round(seconds, 1),
            **found,
        }  # fmt: skip


def storm_of_kills(folder: Path, *, kills: int, seed: int, say: Say) -> dict[str, Any]:
    """End workers by SIGKILL under load: whatever was acknowledged must be in the log, once."""
    chance = random.Random(seed)
    with running(folder, workers=2) as gateway:
        gateway.publish(
            endpoint(arms=[arm(1, linear(gateway.shelf, 10.0))]),
            endpoint("other", arms=[arm(1, linear(gateway.shelf, 10.0))]),
        )
        with Load(gateway, "kills") as load:
            for n in range(1, kills + 1):
                time.sleep(chance.uniform(0.1, 0.6))
                victim = chance.choice(gateway.pool.pids())
                os.kill(victim, signal.SIGKILL)
                until(gateway.pool.tend, "the parent notices")
                until(lambda: gateway.pool.serving() == 2, "another worker serves")
                assert victim not in gateway.pool.pids()
                say(f"  {n} kills, {len(load.acknowledged):,} answers")
        found = audit(gateway.log, [load])
        return {
            "kills": kills,
            "broken_connections": sum(load.broken.values()),
            "refused": dict(load.refused),
            **found,
        }


def storm_of_failures(folder: Path, *, rounds: int, say: Say) -> dict[str, Any]:
    """Let the disk fill up, the log's and the counters' folders go, and models be corrupt, under load."""
    with running(folder, workers=1) as gateway:
        good = linear(gateway.shelf, 10.0)
        gateway.publish(endpoint(arms=[arm(1, good)]))
        (worker,) = gateway.pool.pids()
        recovered = 0
        with Load(gateway, "failures") as load:
            for n in range(1, rounds + 1):
                until(lambda: len(load.acknowledged) > 50, "load")
                size = max((p.stat().st_size for p in gateway.log.glob("*.seg")), default=0)
                # The kernel refuses more bytes a file, and cuts the last write short: as a full disk does.
                resource.prlimit(
                    worker, resource.RLIMIT_FSIZE, (size + 3000, resource.RLIM_INFINITY)
                )
                refused = sum(load.refused.values())
                until(lambda: sum(load.refused.values()) > refused + 5, "requests are refused")  # noqa: B023
                resource.prlimit(
                    worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                )
                before = len(load.acknowledged)
                until(lambda: len(load.acknowledged) > before + 20, "answers again")  # noqa: B023
                recovered += 1
                broken = linear(gateway.shelf, 1000.0 + n)
                file = gateway.shelf.artefact_folder(broken) / "linear.json"
                file.chmod(0o644)
                content = file.read_bytes()
                file.write_bytes([b"{}", b"", content[:-9], content.replace(b"0", b"1", 1)][n % 4])
                gateway.publish(endpoint(arms=[arm(2, broken)], plan=2 * n), wait=False)
                until(lambda: gateway.application.request("GET", "/ready")[0] == 503, "it is told")
                gateway.publish(endpoint(arms=[arm(1, good)], plan=2 * n + 1))
                shutil.rmtree(folder / "meters", ignore_errors=True)
                say(
                    f"  {n} rounds, {len(load.acknowledged):,} answers, {sum(load.refused.values())} refused"
                )
        found = audit(gateway.log, [load])
        # What the folder held is gone with it, so nothing of before is compared behind this.
        shutil.rmtree(gateway.log)
        status, _ = gateway.post({"rows": [ROW], "ids": ["after"]})
        logged = [p.id for p in gateway.records()[0]]
        return {
            "rounds": rounds,
            "recovered": recovered,
            "same_process": gateway.pool.pids() == [worker],
            "broken_connections": sum(load.broken.values()),
            "refused": dict(load.refused),
            "answered_by_a_corrupt_model": sum(v == 2 for v, _, _ in load.acknowledged.values()),
            "log_folder_made_again": (status, logged) == (200, ["after"]),
            **found,
        }  # fmt: skip


def storm_of_sameness(folder: Path, *, units: int, restarts: int) -> dict[str, Any]:
    """Ask the same under the same plan of every worker, and after restarts of everything."""
    rows = [ROW | {"user": f"unit {n}"} for n in range(units)]
    plans = (17, 18)
    told: dict[int, list[list[Any]]] = {plan: [] for plan in plans}
    writers: set[str] = set()
    for _ in range(restarts):
        with running(folder, workers=2) as gateway:
            gateway.number = gateway.shelf.generation()
            for plan in plans:
                gateway.publish(two_arms(gateway, plan))
                seen: set[str] = set()
                for _ in range(200):
                    status, answer = gateway.post({"rows": rows})
                    assert status == 200, answer
                    told[plan].append(
                        [(p["arm"], p["version"], p["prediction"]) for p in answer["predictions"]]
                    )
                    seen.add(answer["predictions"][0]["id"].split("-")[1])
                    if len(seen) == 2 and len(told[plan]) > 4:
                        break
                writers |= seen
    return {
        "units": units,
        "restarts": restarts,
        "workers": len(writers),
        "asked": sum(map(len, told.values())),
        "different": sum(each != answers[0] for answers in told.values() for each in answers),
        "arms_used": len({arm for answers in told.values() for arm, _, _ in answers[0]}),
    }  # fmt: skip


def memory_of(pid: int) -> float:
    """Give the resident megabytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def processor_of(pid: int) -> float:
    """Give the processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Paced:
    """Clients that pile requests up on open connections, together so many a second; 0: as many as are answered."""

    def __init__(self, port: int, *, clients: int, pile: int) -> None:
        self._port = port
        self._pile = pile
        self.rate = 0.0
        self.answered = 0
        self.rows = 0
        self.problems: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def _run(self, number: int) -> None:
        wire = Wire(self._port)
        chance = random.Random(number)
        # Made beforehand: the clients share the machine with the worker.
        piles = [
            [
                kind(chance)
                for kind in chance.choices(
                    (_plain, _tensor, _frame, _look), (90, 5, 4, 1), k=self._pile
                )
            ]
            for _ in range(200)
        ]
        due = time.monotonic()
        while not self._stop.is_set():
            made = chance.choice(piles)
            try:
                answers = wire.ask([each for each, _ in made])
            except Broken as error:
                self.problems[str(error)] += 1
                continue
            with self._lock:
                self.answered += len(answers)
                for (status, body), (_, rows) in zip(answers, made, strict=True):
                    if status == 200:
                        self.rows += rows
                    else:
                        self.problems[f"{status}: {body[:120]!r}"] += 1
            if self.rate:
                due = max(due + self._pile * len(self._threads) / self.rate, time.monotonic() - 1.0)
                self._stop.wait(max(due - time.monotonic(), 0.0))
            else:
                due = time.monotonic()
        wire.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)


def _plain(chance: random.Random) -> tuple[bytes, int]:
    n = 1 if chance.random() < 0.98 else 10
    row = b'{"x":%d.5,"flag":true,"dep delay":null,"user":"u%d"}' % (
        chance.randrange(99),
        chance.randrange(9999),
    )
    return request(b'{"rows":[%s]}' % b",".join([row] * n)), n  # fmt: skip


def _tensor(chance: random.Random) -> tuple[bytes, int]:
    n = chance.choice((1, 3, 10))
    raw = msgspec.json.encode(
        {"inputs": [{"name": "all", "datatype": "FP64", "shape": [n, 3], "data": [1.0] * (3 * n)}]}
    )
    return request(raw, path="/v2/models/e/infer"), n


def _frame(chance: random.Random) -> tuple[bytes, int]:
    n = chance.choice((1, 5))
    data = [[1.0, True, None]] * n
    raw = msgspec.json.encode(
        {"dataframe_split": {"columns": ["x", "flag", "dep delay"], "data": data}}
    )
    return request(raw, path="/v1/endpoints/e/invocations", extra="content-type: application/json\r\n"), n  # fmt: skip


def _look(chance: random.Random) -> tuple[bytes, int]:
    path = chance.choice(("/metrics", "/ready", "/v1/endpoints", "/v2/models/e"))
    return request(b"", method="GET", path=path), 0


def soak(folder: Path, *, seconds: float, share: float, say: Say) -> dict[str, Any]:
    """Hold a share of a worker's core busy for a long time: flat memory, no error, every row in the log."""
    with running(folder, workers=1) as gateway:
        gateway.publish(
            endpoint(
                arms=[
                    arm(1, linear(gateway.shelf, 10.0), 7000),
                    arm(2, linear(gateway.shelf, 20.0), 3000),
                ],
                mirrors=(arm(3, linear(gateway.shelf, 30.0), 0),),
                log="group",
            )
        )
        (worker,) = gateway.pool.pids()
        samples: list[tuple[float, float, int]] = []
        with Paced(gateway.port, clients=2, pile=64) as load:
            warm = min(10.0, seconds / 6)
            time.sleep(warm / 2)
            before, used, at = load.answered, processor_of(worker), time.monotonic()
            time.sleep(warm)
            spent = time.monotonic() - at
            fastest = (load.answered - before) / spent
            full = (processor_of(worker) - used) / spent
            # Clients that share the machine may not bring a worker to its limit: then it is its core that is shared.
            load.rate = fastest * min(share / full, 1.0)
            say(
                f"  at its fastest {fastest:,.0f} requests/s with {full:.2f} of a core; now {load.rate:,.0f}"
            )
            time.sleep(min(2.0, seconds / 10))
            before, used, began = load.answered, processor_of(worker), time.monotonic()
            last, last_at = used, began
            while time.monotonic() < began + seconds:
                time.sleep(min(2.0, seconds / 20))
                # Whoever else uses the machine takes from the worker too: the pace follows what it really is.
                now, now_at = processor_of(worker), time.monotonic()
                busy = max((now - last) / (now_at - last_at), 0.01)
                load.rate = min(load.rate * min(max(share / busy, 0.9), 1.1), 2 * fastest)
                last, last_at = now, now_at
                files = sum(1 for _ in Path(f"/proc/{worker}/fd").iterdir())
                samples.append((time.monotonic() - began, memory_of(worker), files))
                if len(samples) % 15 == 0:
                    say(
                        f"  {samples[-1][0]:.0f} s, {load.answered:,} answers, {samples[-1][1]:.1f} MB, {files} files"
                    )
            spent = time.monotonic() - began
            rate = (load.answered - before) / spent
            busy = (processor_of(worker) - used) / spent
        same = gateway.pool.pids() == [worker] and gateway.pool.tend() == 0
        logged, mirrored, cursor = 0, 0, dict[str, int]()
        reader, quiet = SegmentLog(gateway.log), time.monotonic()
        # Mirrors answer behind the callers; a frame that is being written is no torn one.
        while (batch := reader.read(cursor, limit=50_000)).predictions or (
            mirrored < logged and time.monotonic() < quiet + 2.0
        ):
            if batch.predictions:
                quiet = time.monotonic()
            else:
                time.sleep(0.05)
            mirrored += sum(p.mirror for p in batch.predictions)
            logged += sum(not p.mirror for p in batch.predictions)
            cursor = dict(batch.cursor)
        torn = len(batch.torn)
        third = len(samples) // 3
        early = sorted(mb for _, mb, _ in samples[third // 2 : third + 1])
        late = sorted(mb for _, mb, _ in samples[-third:])
        return {
            "seconds": round(spent, 1),
            "share": share,
            "fastest_per_second": round(fastest),
            "per_second": round(rate),
            "processor_at_fastest": round(full, 2),
            "processor": round(busy, 2),
            "answered": load.answered,
            "errors": dict(load.problems),
            "rows": load.rows,
            "logged": logged,
            "missing": load.rows - logged,
            "torn": torn,
            "memory_start_mb": round(early[len(early) // 2], 1),
            "memory_end_mb": round(late[len(late) // 2], 1),
            "memory_most_mb": round(max(mb for _, mb, _ in samples), 1),
            "memory_slope_mb_an_hour": round(slope(samples[third // 2 :]) * 3600, 2),
            "files_most": max(files for _, _, files in samples),
            "same_process": same,
        }  # fmt: skip


def slope(samples: Sequence[tuple[float, float, int]]) -> float:
    """Give the slope of memory over time by least squares, MB a second."""
    n = len(samples)
    middle = sum(t for t, _, _ in samples) / n
    spread = sum((t - middle) ** 2 for t, _, _ in samples)
    return sum((t - middle) * mb for t, mb, _ in samples) / spread if spread else 0.0


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="keepwell-storm-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verdict(found: Mapping[str, Any], must: Mapping[str, Any]) -> list[str]:
    """Say what is not as it must be."""
    return [f"{name} is {found[name]!r}, not {want!r}" for name, want in must.items() if found[name] != want]  # fmt: skip


MUST: dict[str, dict[str, Any]] = {
    "swaps": {"failed": 0, "mixed_answers": 0, "units_of_two_arms": 0, "missing": 0, "duplicates": 0, "different": 0, "torn_files": 0},
    "kills": {"missing": 0, "duplicates": 0, "different": 0},
    "failures": {
        "missing": 0, "duplicates": 0, "different": 0, "torn_files": 0, "same_process": True, "broken_connections": 0,
        "answered_by_a_corrupt_model": 0, "log_folder_made_again": True,
    },
    "sameness": {"different": 0},
    "fuzz": {"wrong": [], "same_process": True, "torn_files": 0, "missing": 0},
    "soak": {"errors": {}, "missing": 0, "torn": 0, "same_process": True},
}  # fmt: skip


def main() -> int:
    """Run the long form and write what was found."""
    from tests.serving.fuzzing import storm_of_requests

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--soak", action="store_true", help="only the soak")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak (default: 10)")
    parser.add_argument(
        "--share",
        type=float,
        default=0.7,
        help="of a core, that the worker is kept busy (default: 0.7)",
    )
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument(
        "--only", action="append", default=[], choices=[name for name in MUST if name != "soak"]
    )
    parser.add_argument("--json", type=Path, help="write the summary there")
    given = parser.parse_args()  # fmt: skip
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )

    def say(line: str) -> None:
        print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)

    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "swaps": lambda f: storm_of_swaps(f, plans=given.plans, workers=given.workers, say=say),
        "kills": lambda f: storm_of_kills(f, kills=given.kills, seed=given.seed, say=say),
        "failures": lambda f: storm_of_failures(f, rounds=given.rounds, say=say),
        "sameness": lambda f: storm_of_sameness(f, units=2000, restarts=4),
        "fuzz": lambda f: storm_of_requests(f, count=given.requests, seed=given.seed, say=say),
    }
    if given.soak:
        parts = {"soak": lambda f: soak(f, seconds=given.minutes * 60, share=given.share, say=say)}
    summary: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "keepwell": __version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "command": " ".join(sys.argv[1:]),
    }
    bad: list[str] = []
    for name, run in parts.items():
        if given.only and name not in given.only:
            continue
        say(name)
        began = time.monotonic()
        with scratch() as folder:
            found = run(folder)
        found["took_seconds"] = round(time.monotonic() - began, 1)
        summary[name] = found
        problems = verdict(found, MUST[name])
        bad += [f"{name}: {each}" for each in problems]
        say(f"{name}: {problems or 'good'}\n{json.dumps(found, indent=2)}")
    summary["bad"] = bad
    if given.json:
        given.json.write_text(json.dumps(summary, indent=2) + "\n")
    say("nothing was lost" if not bad else "; ".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
