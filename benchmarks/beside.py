"""What it costs to compute beside a worker, and behind an ASGI server: `python benchmarks/beside.py [--seconds 2]`.

Contestants take turns under wrk (one thread, 32 connections, one row a request, log level group). For each: requests a
second, requests a second of its own processor time, p50 and p99 in ms, and the memory of all its processes (Pss, MB).
The models are small on purpose: what is measured is the way to them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import msgspec

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

from tests.serving.gateways import Gateway, arm, endpoint, linear, native, process  # noqa: E402
from tests.serving.models import Doubling, Saved, SpinningSaved  # noqa: E402
from tests.serving.test_asgi import uvicorn  # noqa: E402

from benchmarks.serving import memory_mb, processor_seconds, tree  # noqa: E402 - found by the path above
from keepwell.serving.terms import Terms  # noqa: E402

ROW = {"x": 1.0, "flag": True, "dep delay": None}
LUA = """
wrk.method = "POST"
wrk.body = '%s'
function done(summary, latency)
  io.write(string.format("RESULT %%d %%d %%d %%.0f %%.0f\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


def load(port: int, script: Path, seconds: float) -> tuple[float, ...]:
    said = subprocess.run(
        ["wrk", "-t1", "-c32", f"-d{seconds:.0f}s", "-s", script, f"http://127.0.0.1:{port}/v1/endpoints/e/predict"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return tuple(float(n) for n in said.rpartition("RESULT")[2].split())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="keepwell-beside-"))
    script = folder / "post.lua"
    script.write_text(LUA % msgspec.json.encode({"row": ROW}).decode())
    contestants: dict[str, tuple[int, Callable[[], list[int]]]] = {}
    with ExitStack() as stack:

        @contextmanager
        def served(name: str, make, workers: int = 1, **terms):
            gateway = Gateway(
                folder / name.replace(" ", "-"), workers=workers, terms=Terms(max_wait=0, **terms)
            )
            try:
                gateway.publish(endpoint(arms=[arm(1, make(gateway.shelf))], log="group"))
                contestants[name] = (
                    gateway.port,
                    lambda: [*gateway.pool.pids(), *gateway.pool.runtimes.pids()],
                )
                yield gateway
            finally:
                gateway.close()

        def quick(shelf):
            return process(shelf, Saved(1.0))

        def spinning(shelf):
            return process(shelf, SpinningSaved(1.0))

        own = stack.enter_context(served("own server", lambda shelf: linear(shelf, 1.0)))
        (folder / "asgi").mkdir()
        (folder / "asgi/editions").symlink_to(own.shelf.folder)
        server = stack.enter_context(uvicorn(folder / "asgi"))
        server.wait(own.number)
        contestants["uvicorn, asgi"] = (server.port, lambda: tree(server.process.pid))
        stack.enter_context(served("in the worker", lambda shelf: native(shelf, Doubling())))
        stack.enter_context(served("in a process", quick))
        for name, workers, processes in (
            ("one worker", 1, 1),
            ("two workers share one", 2, 1),
            ("two workers, one each", 2, 2),
        ):
            stack.enter_context(served(name, spinning, workers, runtime_processes=processes))
        rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in contestants}
        for _ in range(given.rounds):
            for name, (port, pids) in contestants.items():
                before = processor_seconds(pids())
                done, micros, errors, p50, p99 = load(port, script, given.seconds)
                spent = processor_seconds(pids()) - before
                assert not errors, (name, errors)
                rounds[name].append((done / micros * 1e6, done / spent, p50 / 1000, p99 / 1000))
        for name, (_, pids) in contestants.items():
            rate, work, p50, p99 = (median(column) for column in zip(*rounds[name], strict=True))
            memory = memory_mb(pids())
            print(f"| {name} | {rate:,.0f} | {work:,.0f} | {p50:.2f} | {p99:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
