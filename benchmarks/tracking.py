"""Tracking beside MLflow's own server, in one run: log_metric calls, search_runs, idle memory.

The driver starts both servers on SQLite, seeds both with the same runs, and measures them in turn, twice:
through MLflow's real client (its own cost included) and with a light HTTP client and the same bodies.

    python benchmarks/tracking.py --mlflow .venv-mlflow/bin/python
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import json
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve()
FILTER = "metrics.loss < 0.5 and params.kind = 'tree'"
ORDER = ["metrics.loss DESC"]
BARS = {"log_metric": 5.0, "search_runs": 20.0, "idle_mb": 150.0}


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(root: int) -> list[int]:
    """List a process and everything below it."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def memory_mb(pids: list[int]) -> dict[str, float]:
    """Add up what processes hold: PSS counts shared pages once, RSS counts them each time."""
    total = {"pss": 0.0, "rss": 0.0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in total:
                total[name.lower()] += int(rest.split()[0]) / 1024
    return {name: round(value, 1) for name, value in total.items()}


class Server:
    """A server that this benchmark started, ended with its whole process group."""

    def __init__(self, name: str, command: list[str], port: int, folder: Path) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        started = time.perf_counter()
        self._log = (folder / f"{name}.log").open("wb")
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, start_new_session=True, cwd=folder
        )
        while True:
            if self.process.poll() is not None:
                text = (folder / f"{name}.log").read_text()[-2000:]
                raise SystemExit(f"{name} did not start:\n{text}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1).read()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.seconds_to_start = round(time.perf_counter() - started, 1)

    def stop(self) -> None:
        """End it and its children."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()


def rows(count: int) -> list[tuple[str, dict[str, float], dict[str, str]]]:
    """Make the runs that both servers hold: id, metrics, params."""
    rng = random.Random(7)
    return [
        (
            f"{i:032x}",
            {"loss": rng.random(), "auc": rng.random(), "rmse": rng.random() * 10},
            {"kind": rng.choice(["tree", "linear"]), "depth": str(i % 12), "lr": str(i % 7)},
        )
        for i in range(count)
    ]


def seed_mlflow(database: Path, experiment: str, count: int) -> None:
    """Write the runs into the tables of MLflow's own store, as its server would have."""
    base = 1_700_000_000_000
    with sqlite3.connect(database, timeout=30) as connection:
        for i, (run, metrics, params) in enumerate(rows(count)):
            connection.execute(
                "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, "
                "user_id, status, start_time, end_time, source_version, lifecycle_stage, "
                "artifact_uri, experiment_id) VALUES (?,?,'UNKNOWN','','','amy','FINISHED',?,?,'',"
                "'active',?,?)",
                (run, f"r{i}", base + i, base + i, f"mlflow-artifacts:/1/{run}", int(experiment)),
            )
            for key, value in metrics.items():
                for table in ("metrics", "latest_metrics"):
                    connection.execute(
                        f"INSERT INTO {table} (key, value, timestamp, step, is_nan, run_uuid) "
                        "VALUES (?,?,?,0,0,?)",
                        (key, value, base, run),
                    )
            connection.executemany(
                "INSERT INTO params (key, value, run_uuid) VALUES (?,?,?)",
                [(key, value, run) for key, value in params.items()],
            )
            connection.execute(
                "INSERT INTO tags (key, value, run_uuid) VALUES ('mlflow.runName',?,?)",
                (f"r{i}", run),
            )


def seed_keepwell(folder: Path, experiment: str, count: int) -> None:
    """Log the runs through Keepwell's own port."""
    from keepwell.adapters.tracking.sql import open_tracking
    from keepwell.core.records.tracking import Metric, RunBatch

    tracking = open_tracking(f"sqlite:///{folder}/keepwell.db")
    base = 1_700_000_000_000
    batches = []
    for i, (_, metrics, params) in enumerate(rows(count)):
        run = tracking.start_run(experiment, name=f"r{i}", user="amy", now=(base + i) * 1000)
        logged = tuple(Metric(key=k, value=v, time=base * 1000) for k, v in metrics.items())
        batches.append(RunBatch(run=run.id, metrics=logged, params=params))
    for start in range(0, count, 1000):
        refused = [one for one in tracking.log_many(batches[start : start + 1000]) if one]
        if refused:
            raise refused[0]
    tracking.close()


def serve(folder: Path, port: int) -> None:
    """Run Keepwell's tracking server alone, in this process."""
    import uvicorn
    from starlette.applications import Starlette

    from keepwell.adapters.blobs.files import FileBlobs
    from keepwell.adapters.stores.sql import open_store
    from keepwell.adapters.tracking.sql import open_tracking
    from keepwell.app.api.mlflow import routes
    from keepwell.core.clock import SystemClock

    url = f"sqlite:///{folder}/keepwell.db"
    store = open_store(url)
    app = Starlette(
        routes=routes(open_tracking(url), store, FileBlobs(folder / "blobs"), SystemClock())
    )
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def client(url: str, experiment: str, calls: int) -> None:
    """Measure with MLflow's real client; runs under MLflow's interpreter, prints JSON."""
    from mlflow import MlflowClient

    real = MlflowClient(url)
    found: dict[str, object] = {}
    run = real.create_run(experiment).info.run_id
    for i in range(10):
        real.log_metric(run, "warm", i, step=i)
    for threads in (1, 8):

        def work(thread: int, each: int = calls // threads) -> None:
            for i in range(each):
                real.log_metric(run, f"m{thread}", i * 0.5, step=i)

        started = time.perf_counter()
        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        taken = time.perf_counter() - started
        found[f"log_metric {threads} threads"] = round(calls // threads * threads / taken, 1)
    for size in (100, 1000):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            page = real.search_runs([experiment], FILTER, order_by=ORDER, max_results=size)
            times.append(time.perf_counter() - started)
        found[f"search_runs {size}"] = round(statistics.median(times) * 1000, 2)
        found[f"found {size}"] = [len(page), page[0].info.run_name, page[-1].info.run_name]
        found[f"reading {size}"] = reading(url, experiment, size)
    print(json.dumps(found))


def reading(url: str, experiment: str, size: int) -> float:
    """Give the milliseconds that the real client takes for an answer that is there at once: nobody can be faster."""
    from mlflow import MlflowClient

    body = {"experiment_ids": [experiment], "filter": FILTER, "order_by": ORDER}
    asked = urllib.request.Request(
        f"{url}/api/2.0/mlflow/runs/search",
        json.dumps({**body, "max_results": size}).encode(),
        {"Content-Type": "application/json"},
    )
    answer = urllib.request.urlopen(asked, timeout=120).read()

    class Canned(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canned) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = MlflowClient(f"http://127.0.0.1:{server.server_port}")
        times = []
        for _ in range(6):
            started = time.perf_counter()
            client.search_runs([experiment], FILTER, order_by=ORDER, max_results=size)
            times.append(time.perf_counter() - started)
        server.shutdown()
    return round(statistics.median(times[1:]) * 1000, 2)


def request(url: str, path: str, body: dict[str, object]) -> dict[str, object]:
    """Post JSON and give the answer."""
    asked = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer: dict[str, object] = json.loads(urllib.request.urlopen(asked, timeout=120).read())
    return answer


async def _flood(port: int, run: str, connections: int, calls: int) -> float:
    """Give log_metric calls a second over raw keep-alive connections, each with one call in flight."""

    async def one(n: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(calls // connections):
            body = json.dumps(
                {
                    "run_uuid": run,
                    "run_id": run,
                    "key": f"raw{n}",
                    "value": i * 0.5,
                    "timestamp": 1_700_000_000_000 + i,
                    "step": i,
                }
            ).encode()
            writer.write(
                b"POST /api/2.0/mlflow/runs/log-metric HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise SystemExit(f"log_metric failed: {head!r}")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(one(n) for n in range(connections)))
    return calls // connections * connections / (time.perf_counter() - started)


def light(server: Server, experiment: str, calls: int) -> dict[str, float]:
    """Measure with a client that costs next to nothing."""
    made = request(server.url, "/api/2.0/mlflow/runs/create", {"experiment_id": experiment})
    run: str = made["run"]["info"]["run_id"]  # type: ignore[index, call-overload, assignment]
    found: dict[str, float] = {}
    for connections in (1, 8, 32):
        rate = asyncio.run(_flood(server.port, run, connections, calls))
        found[f"log_metric {connections} connections"] = round(rate, 1)
    for size in (100, 1000):
        body: dict[str, object] = {
            "experiment_ids": [experiment],
            "filter": FILTER,
            "order_by": ORDER,
            "max_results": size,
        }
        times = []
        for _ in range(5):
            started = time.perf_counter()
            request(server.url, "/api/2.0/mlflow/runs/search", body)
            times.append(time.perf_counter() - started)
        found[f"search_runs {size}"] = round(statistics.median(times) * 1000, 2)
    return found


def measure(server: Server, seed: object, mlflow: str, runs: int, calls: int) -> dict[str, object]:
    """Measure one server: idle first, then seeded, then both clients."""
    time.sleep(5)
    pids = tree(server.process.pid)
    found: dict[str, object] = {
        "seconds to start": server.seconds_to_start,
        "processes": len(pids),
        "idle MB": memory_mb(pids),
    }
    made = request(server.url, "/api/2.0/mlflow/experiments/create", {"name": "bench"})
    experiment = str(made["experiment_id"])
    seed(experiment, runs)  # type: ignore[operator]
    found["light client"] = light(server, experiment, calls)
    done = subprocess.run(
        [mlflow, str(HERE), "--client", server.url, experiment, str(calls)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found["real client"] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure both, compare, and give 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mlflow", default=".venv-mlflow/bin/python")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    mlflow = str(Path(given.mlflow).absolute())
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        theirs = [mlflow, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        theirs += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        theirs += ["--artifacts-destination", str(folder / "artifacts")]
        database = folder / "mlflow.db"
        own = free_port()
        for kind, command, at, seed in (
            (
                "keepwell",
                [sys.executable, str(HERE), "--serve", str(folder), str(own)],
                own,
                lambda experiment, runs: seed_keepwell(folder, experiment, runs),
            ),
            (
                "mlflow",
                theirs,
                port,
                lambda experiment, runs: seed_mlflow(database, experiment, runs),
            ),
        ):
            print(f"measuring {kind} ...", file=sys.stderr, flush=True)
            server = Server(kind, command, at, folder)
            try:
                found[kind] = measure(server, seed, mlflow, given.runs, given.calls)
            finally:
                server.stop()
    ours, other = found["keepwell"], found["mlflow"]
    for who in ("real client", "light client"):
        mine: dict[str, float] = ours[who]  # type: ignore[assignment]
        his: dict[str, float] = other[who]  # type: ignore[assignment]
        ours[f"times faster, {who}"] = {
            key: round(mine[key] / his[key] if "log" in key else his[key] / mine[key], 1)
            for key in mine
            if not key.startswith(("found", "reading"))
        }
    # What is left of the client's time for a server that answers at once: the most that any server can reach.
    mine, his = ours["real client"], other["real client"]  # type: ignore[assignment]
    ours["times faster, most that the real client allows"] = {
        f"search_runs {size}": round(his[f"search_runs {size}"] / mine[f"reading {size}"], 1)
        for size in (100, 1000)
    }
    most = ours["times faster, most that the real client allows"]
    held: dict[str, bool] = {}
    for who in ("real client", "light client"):
        faster: dict[str, float] = ours[f"times faster, {who}"]  # type: ignore[assignment]
        for key, times in faster.items():
            bar = BARS[key.split()[0]]
            if who == "real client" and most.get(key, bar) < bar:  # type: ignore[attr-defined]
                continue  # told by "most that the real client allows": no server can hold it
            held[f"{key}, {who}"] = times >= bar
    idle: dict[str, float] = ours["idle MB"]  # type: ignore[assignment]
    held["idle"] = idle["rss"] < BARS["idle_mb"] and ours["processes"] == 1
    held["same answers"] = all(
        ours["real client"][k] == other["real client"][k]  # type: ignore[index]
        for k in ("found 100", "found 1000")
    )
    text = json.dumps({**found, "bars held": held}, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text)
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main())
