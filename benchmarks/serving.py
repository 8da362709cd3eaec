"""The gateway beside the field's servers, in one run: the same model, the same rows, one worker, 32 connections.

Every server has one core and the load generator (wrk) has the other. Contestants take turns, round by round, and
the medians of the rounds are reported, because whoever else uses the machine is never quiet. Requests a second of
the server's own processor time are reported too: they hardly depend on the others.

    python benchmarks/serving.py --quick --json serving.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".bench"
COLUMNS = [f"feature_{i:02d}" for i in range(16)]
TREES = 100
DIFFERENT_ROWS = 64
CORES = {"server": "1", "load": "0"} if (os.cpu_count() or 1) > 1 else {"server": "0", "load": "0"}

LOAD = """
local paths = {}
local requests = {}
local place = 0
local varied = %(varied)s
for line in io.lines("%(bodies)s") do
  local headers = {["content-type"] = "application/json"}
  if varied then headers["traceparent"] = string.format("00-%%032x-%%016x-01", #requests + 1, #requests) end
  requests[#requests + 1] = {line, headers}
end
local binary = "%(binary)s"
local made = {}
function init(args)
  if binary ~= "" then
    local file = io.open(binary, "rb")
    local body = file:read("*a")
    file:close()
    made[1] = wrk.format("POST", "%(path)s", {%(headers)s}, body)
    return
  end
  for i, each in ipairs(requests) do made[i] = wrk.format("POST", "%(path)s", each[2], each[1]) end
end
function request()
  place = place %% #made + 1
  return made[place]
end
function done(summary, latency, requests)
  io.write(string.format("RESULT %%d %%d %%d %%d %%.0f %%.0f\\n", summary.requests, summary.duration,
    summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass
class Contestant:
    """A server under load."""

    name: str
    mode: str
    model: str
    port: int
    path: str
    bodies: list[bytes]
    pids: Any
    rows: int = 1
    varied: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    binary: bytes = b""
    read: Any = None
    """From an answer's bytes to its predictions."""
    versions: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list)
    memory: float = 0.0
    resident: float = 0.0


def take_priority(nice: int) -> None:
    """Let everything that is started from here on have a priority, in a session of its own."""
    if not nice:
        return
    os.nice(nice)
    try:
        os.setsid()
    except PermissionError:
        print("already a session's leader: its priority goes for all of it", file=sys.stderr)
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(nice))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(root: int) -> list[int]:
    """List a process and everything below it."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def processor_seconds(pids: list[int]) -> float:
    """Add up what processes used of the processor."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def memory_mb(pids: list[int], kind: str = "Pss") -> float:
    """Add up memory: ``Pss`` counts pages that processes share once, ``Rss`` each time."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{kind}:"):
                    total += int(line.split()[1])
        except OSError:
            continue
    return round(total / 1024, 1)


def make_model(folder: Path) -> tuple[list[list[float]], list[float]]:
    """Train the model, write both its forms, and give rows with the estimator's own answers to them."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier

    from keepwell.core.records.data import Column
    from keepwell.core.records.models import Package, Signature
    from keepwell.training.predictors import onnx

    rng = np.random.default_rng(7)
    table = rng.normal(size=(20_000, len(COLUMNS))).round(4)
    label = table[:, 0] + table[:, 1] * table[:, 2] + rng.normal(size=len(table)) > 0
    estimator = HistGradientBoostingClassifier(
        max_iter=TREES, early_stopping=False, random_state=7
    ).fit(table, label.astype(int))
    signature = Signature(
        inputs=tuple(Column(name=n, dtype="float64", nullable=True) for n in COLUMNS), task="binary"
    )
    (folder / "model.pkl").write_bytes(pickle.dumps(estimator, protocol=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not onnx.KIND.convert(estimator, signature=signature, folder=folder, sample=table[:10]):
            raise SystemExit("the model does not convert to ONNX")
    package = Package(
        model="bench",
        candidate="boosting",
        predictor="onnx",
        signature=signature,
        python=platform.python_version(),
        requirements=(),
        code="",
        revision="",
        training_set="",
        seed=7,
        params={},
    )
    rows = table[:DIFFERENT_ROWS]
    finish(folder, package, rows)
    make_linear(folder.parent / "linear", package, rows)
    return rows.tolist(), estimator.predict_proba(rows)[:, 1].tolist()


def make_linear(folder: Path, package: Any, rows: Any) -> None:
    """Write a linear model of the same inputs: next to nothing to compute, so that the rest shows."""
    import msgspec

    from keepwell.core.digest import canonical

    folder.mkdir()
    fused = {
        "fill": [0.0] * len(COLUMNS),
        "weights": [0.1] * len(COLUMNS),
        "intercept": 0.5,
        "link": "logit",
    }
    (folder / "linear.json").write_bytes(canonical(fused))
    finish(folder, msgspec.structs.replace(package, predictor="linear"), rows)


def finish(folder: Path, package: Any, rows: Any) -> None:
    """Write what a package says of itself, and its golden rows."""
    from keepwell.core.digest import canonical
    from keepwell.training.predictors import load_predictor

    (folder / "package.json").write_bytes(canonical(package))
    predictor, _ = load_predictor(folder)
    golden = {
        "rows": rows[:5].tolist(),
        "predictions": predictor.predict(rows[:5]).tolist(),
        "tolerance": 1e-6,
    }
    (folder / "golden.json").write_bytes(canonical(golden))


def python_of(name: str) -> str:
    """Give the interpreter of a peer's own environment, made from its requirements if need be."""
    home = CACHE / name
    wanted = HERE / "peers" / f"{name}.in"
    stamp = home / ".ready"
    interpreter = home / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        print(f"making the environment of {name} ...", file=sys.stderr, flush=True)
        if not interpreter.exists():
            venv.create(home, with_pip=False)
        subprocess.run(
            [Path(sys.executable).parent / "uv", "pip", "install", "-q", "--python", interpreter, "-r", wanted],
            check=True,
        )  # fmt: skip
        stamp.write_text(wanted.read_text())
    return str(interpreter)


def version_of(python: str, package: str) -> str:
    said = subprocess.run(
        [python, "-c", f"import importlib.metadata as m; print(m.version('{package}'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return f"{package} {said.stdout.strip()}"


class Peer:
    """A peer's server, started as its users start it, on the server's core."""

    def __init__(self, name: str, command: list[str], *, folder: Path, env: dict[str, str]) -> None:
        self._log = (folder / f"{name}.log").open("wb")
        self._file = folder / f"{name}.log"
        self.name = name
        self.process = subprocess.Popen(
            ["taskset", "-c", CORES["server"], *command],
            env={
                **os.environ,
                "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
                **env,
            },
            cwd=HERE / "peers",
            stdout=self._log,
            stderr=self._log,
            process_group=0,  # and the driver's session: Linux shares the processor among sessions first
        )

    def pids(self) -> list[int]:
        return tree(self.process.pid)

    def wait(self, contestant: Contestant) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                ask(contestant)
            except (OSError, ValueError) as error:
                if self.process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.25)
                    continue
                said = self._file.read_text()[-3000:]
                raise RuntimeError(f"{self.name} did not answer: {error}\n{said}") from error
            return

    def stop(self) -> None:
        pids = self.pids()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids:  # what it started and left behind
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._log.close()


def ask(contestant: Contestant, place: int = 0) -> Any:
    """Ask one contestant once and give its predictions."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{contestant.port}{contestant.path}",
        data=contestant.binary or contestant.bodies[place],
        headers={"content-type": "application/json", **contestant.headers},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return contestant.read(answer.read())


def check(contestant: Contestant, expected: list[float]) -> None:
    """See that a contestant answers with the model's own predictions."""
    for place in range(0, DIFFERENT_ROWS, 7):
        given = ask(contestant, place)
        wanted = expected[place] if contestant.rows == 1 else expected[0]
        if not math.isclose(given[0], wanted, abs_tol=1e-5):
            raise SystemExit(
                f"{contestant.name} ({contestant.mode}) answers {given[0]}, not {wanted}"
            )


def load(contestant: Contestant, *, seconds: float, connections: int, folder: Path) -> None:
    """Put one contestant under load for a round."""
    bodies = folder / "bodies.txt"
    bodies.write_bytes(b"\n".join(contestant.bodies) + b"\n")
    binary = folder / "body.bin"
    binary.write_bytes(contestant.binary)
    script = folder / "load.lua"
    script.write_text(
        LOAD
        % {
            "varied": str(contestant.varied).lower(),
            "bodies": bodies,
            "path": contestant.path,
            "binary": binary if contestant.binary else "",
            "headers": ", ".join(f'["{k}"] = "{v}"' for k, v in contestant.headers.items()),
        }
    )
    pids = contestant.pids()
    before = processor_seconds(pids)
    said = subprocess.run(
        ["taskset", "-c", CORES["load"], "wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s",
         "-s", str(script), f"http://127.0.0.1:{contestant.port}"],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    used = processor_seconds(contestant.pids()) - before
    contestant.memory = max(contestant.memory, memory_mb(contestant.pids()))
    contestant.resident = max(contestant.resident, memory_mb(contestant.pids(), "Rss"))
    result = next(line for line in said.stdout.splitlines() if line.startswith("RESULT")).split()
    requests, microseconds, refused, broken, p50, p99 = (float(v) for v in result[1:])
    contestant.rounds.append(
        {
            "requests_per_second": (requests - refused) / (microseconds / 1e6),
            "requests_per_processor_second": (requests - refused) / used if used else math.nan,
            "processor_share": used / (microseconds / 1e6),
            "p50_ms": p50 / 1000,
            "p99_ms": p99 / 1000,
            "errors": refused + broken,
        }
    )


def row(contestant: Contestant, connections: int) -> dict[str, Any]:
    """Report the medians of a contestant's rounds."""
    middle = {
        key: statistics.median(one[key] for one in contestant.rounds)
        for key in contestant.rounds[0]
    }
    return {
        "contestant": contestant.name,
        "mode": contestant.mode,
        "model": contestant.model,
        "connections": connections,
        "rows_per_request": contestant.rows,
        "requests_per_second": round(middle["requests_per_second"]),
        "requests_per_processor_second": round(middle["requests_per_processor_second"]),
        "processor_share": round(middle["processor_share"], 2),
        "p50_ms": round(middle["p50_ms"], 2),
        "p99_ms": round(middle["p99_ms"], 2),
        "memory_mb": contestant.memory,
        "resident_mb": contestant.resident,
        "errors": int(sum(one["errors"] for one in contestant.rounds)),
        "versions": contestant.versions,
        "rounds": [
            {key: round(value, 3) for key, value in one.items()} for one in contestant.rounds
        ],
    }


class Keepwell:
    """One gateway with one worker and an endpoint a mode: the full path, log and all."""

    def __init__(self, artefact: Path, folder: Path) -> None:
        from keepwell.adapters.blobs.files import FileBlobs
        from keepwell.core.records.traffic import BUCKETS, Arm
        from keepwell.serving.editions import Edition, EndpointEdition, Shelf
        from keepwell.serving.pool import Pool
        from keepwell.serving.sockets import bind
        from keepwell.training.artefacts import pack_folder, unpack_artefact

        shelf = Shelf(folder / "editions")
        blobs = FileBlobs(folder / "blobs")
        digests = []
        for place, kind in enumerate(("artefact", "artefact", "linear")):
            made = folder / f"made-{place}"
            shutil.copytree(artefact.parent / kind, made)
            (made / "which").write_text(str(place))  # the challenger is a model of its own
            digests.append(pack_folder(made, blobs=blobs))
            unpack_artefact(digests[-1], shelf.artefact_folder(digests[-1]), blobs=blobs)

        def arm(version: int, weight: int) -> Arm:
            return Arm(
                name=f"v{version}",
                model="bench",
                version=version,
                artefact=digests[version - 1],
                weight=weight,
            )

        def endpoint(name: str, **fields: Any) -> EndpointEdition:
            given: dict[str, Any] = {
                "log": "group", "unit": "", "arms": (arm(1, BUCKETS),), "mirrors": (),
            }  # fmt: skip
            return EndpointEdition(
                name=name, model="bench", time="", plan=1, salt="bench", fallback="", **(given | fields)
            )  # fmt: skip

        shelf.publish(
            Edition(
                number=1,
                endpoints=(
                    endpoint("group"),
                    endpoint("sync", log="sync"),
                    endpoint("line", arms=(arm(3, BUCKETS),)),
                    endpoint("shadow", mirrors=(arm(2, 0),)),
                    endpoint("split", unit="user", arms=(arm(1, BUCKETS // 2), arm(2, BUCKETS // 2))),
                ),
            )
        )  # fmt: skip
        listening = bind("127.0.0.1", 0)
        self.port = int(listening.getsockname()[1])
        self.log = folder / "log"
        self.pool = Pool(
            listening, editions=shelf.folder, log=self.log, meters=folder / "meters", workers=1
        )
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {int(CORES["server"])})  # children inherit it
        try:
            self.pool.tend()
        finally:
            os.sched_setaffinity(0, mine)
        self._listening = listening

    def pids(self) -> list[int]:
        return self.pool.pids()

    def contestants(self, rows: list[list[float]], versions: str) -> list[Contestant]:
        named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        plain = [json.dumps({"rows": [row]}).encode() for row in named]
        hundred = [json.dumps({"rows": (named * 2)[:100]}).encode()] * DIFFERENT_ROWS
        split = [
            json.dumps({"rows": [row | {"user": f"user-{i}"}]}).encode()
            for i, row in enumerate(named)
        ]

        def made(mode: str, endpoint: str, bodies: list[bytes], **fields: Any) -> Contestant:
            return Contestant(
                name="Keepwell",
                mode=mode,
                model="onnx",
                port=self.port,
                path=f"/v1/endpoints/{endpoint}/predict",
                bodies=bodies,
                pids=self.pids,
                read=lambda answer: [p["prediction"] for p in json.loads(answer)["predictions"]],
                versions=versions,
                **fields,
            )

        def tensor(mode: str, endpoint: str, model: str) -> Contestant:
            raw = struct.pack(
                f"<{100 * len(COLUMNS)}f", *(v for row in (rows * 2)[:100] for v in row)
            )
            head = json.dumps({
                "inputs": [{"name": "rows", "datatype": "FP32", "shape": [100, len(COLUMNS)],
                            "parameters": {"binary_data_size": len(raw)}}],
                "outputs": [{"name": "prediction", "parameters": {"binary_data": True}}],
            }).encode()  # fmt: skip
            return Contestant(
                name="Keepwell",
                mode=mode,
                model=model,
                port=self.port,
                path=f"/v2/models/{endpoint}/infer",
                bodies=[b""],
                binary=head + raw,
                headers={
                    "content-type": "application/octet-stream",
                    "inference-header-content-length": str(len(head)),
                },
                pids=self.pids,
                read=lambda answer: list(struct.unpack("<100d", answer[-800:])),
                versions=versions,
                rows=100,
            )

        return [
            made("group", "group", plain),
            made("sync", "sync", plain),
            made("group, every request with a head of its own", "group", plain, varied=True),
            made("group, all shadowed by a challenger", "shadow", plain),
            made("group, two arms by unit", "split", split),
            made("group, 100 rows as JSON", "group", hundred, rows=100),
            tensor("group, 100 rows as binary tensors", "group", "onnx"),
            tensor("group, 100 rows as binary tensors, linear model", "line", "linear"),
        ]

    def clear(self) -> None:
        """Drop the segments that are full: what is being measured is not the size of this disk."""
        for path in sorted(self.log.glob("*.seg"))[:-1]:
            path.unlink()

    def stop(self) -> None:
        self.pool.stop()
        self._listening.close()


def peers(
    folder: Path, rows: list[list[float]], *, quick: bool
) -> list[tuple[str, str, str, Any, Any]]:
    """List the peers: name, environment, form of the model, how to start, how to talk."""
    named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    by_name = [json.dumps({"rows": [row]}).encode() for row in named]
    as_lists = [json.dumps({"rows": [row]}).encode() for row in rows]
    single = [json.dumps({"row": row}).encode() for row in rows]
    split = [
        json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [row]}}).encode()
        for row in rows
    ]
    # MLflow's ONNX flavour takes one tensor by its name.
    tensor = [json.dumps({"inputs": {"rows": [row]}}).encode() for row in rows]
    v2 = {
        form: [
            json.dumps({
                "inputs": [{"name": "predict", "shape": [1, len(row)], "datatype": datatype, "data": row,
                            "parameters": {"content_type": "np"}}],
                "outputs": [{"name": "predict_proba"}],
            }).encode()
            for row in rows
        ]
        for form, datatype in (("native", "FP64"), ("onnx", "FP32"))
    }  # fmt: skip
    uvicorn = ["-m", "uvicorn", "--workers", "1", "--loop", "uvloop", "--http", "httptools",
               "--no-access-log", "--log-level", "warning", "--host", "127.0.0.1"]  # fmt: skip
    found: list[tuple[str, str, str, Any, Any]] = [
        ("uvicorn", "asgi", "onnx",
         lambda python, port, _: [python, *uvicorn, "--port", str(port), "asgi_app:app"],
         ("/predict", by_name, lambda a: json.loads(a)["predictions"], "uvicorn")),
        ("FastAPI", "asgi", "onnx",
         lambda python, port, _: [python, *uvicorn, "--port", str(port), "fastapi_app:app"],
         ("/predict", by_name, lambda a: json.loads(a)["predictions"], "fastapi")),
    ]  # fmt: skip
    if quick:
        return found

    def mlserver(python: str, port: int, form: str) -> list[str]:
        place = folder / f"mlserver-{form}"
        place.mkdir(exist_ok=True)
        (place / "settings.json").write_text(
            json.dumps({"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
                        "parallel_workers": 0, "debug": False, "logging_settings": None})
        )  # fmt: skip
        native = form == "native"
        kind = "mlserver_sklearn.SKLearnModel" if native else "mlserver_app.OnnxModel"
        (place / "model-settings.json").write_text(
            json.dumps({"name": "bench", "implementation": kind,
                        "parameters": {"uri": str(folder / "artefact" / "model.joblib")}})
        )  # fmt: skip
        return [python, str(Path(python).parent / "mlserver"), "start", str(place)]

    def mlflow(python: str, port: int, form: str) -> list[str]:
        place = folder / f"mlflow-{form}"
        if not place.exists():
            subprocess.run(
                [python, "mlflow_save.py", str(place)], check=True, cwd=HERE / "peers",
                env={**os.environ, **model_env(folder, form)}, capture_output=True,
            )  # fmt: skip
        return [python, "-m", "mlflow", "models", "serve", "-m", str(place), "-p", str(port), "-h", "127.0.0.1",
                "--env-manager", "local", "--workers", "1"]  # fmt: skip

    for form in ("native", "onnx"):
        found += [
            ("MLServer", "mlserver", form, mlserver,
             ("/v2/models/bench/infer", v2[form],
              lambda a: json.loads(a)["outputs"][0]["data"][-1:], "mlserver")),
            ("mlflow models serve", "mlflow", form, mlflow,
             ("/invocations", split if form == "native" else tensor,
              lambda a: _last(json.loads(a)["predictions"]), "mlflow")),
            ("BentoML", "bentoml", form,
             lambda python, port, _: [python, "-m", "bentoml", "serve", "bento_app:Model", "--port", str(port),
                                         "--host", "127.0.0.1"],
             ("/predict", as_lists, json.loads, "bentoml")),
            ("LitServe", "litserve", form,
             lambda python, port, _: [python, "litserve_app.py", str(port)],
             ("/predict", single, lambda a: [json.loads(a)["prediction"]], "litserve")),
            ("Ray Serve", "ray", form,
             lambda python, port, _: [python, "ray_app.py", str(port)],
             ("/predict", as_lists, lambda a: json.loads(a)["predictions"], "ray")),
        ]  # fmt: skip
    return found


def _last(predictions: Any) -> list[float]:
    """Take the probability of the positive class out of what MLflow's flavours answer."""
    if isinstance(predictions, dict):
        predictions = predictions["probability"]
    return [predictions[0][-1]]


def model_env(folder: Path, form: str) -> dict[str, str]:
    return {
        "MODEL_FORM": form,
        "MODEL_PICKLE": str(folder / "artefact" / "model.pkl"),
        "MODEL_ONNX": str(folder / "artefact" / "model.onnx"),
        "MODEL_COLUMNS": ",".join(COLUMNS),
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Keepwell, uvicorn and FastAPI only")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--seconds", type=float, default=4, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default="", help="a part of the names of the peers to run")
    parser.add_argument(
        "--modes", default="", help="a part of the names of Keepwell's modes to run"
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="of all servers and the load, for a busy machine (below 0: as root)",
    )
    given = parser.parse_args()
    take_priority(given.nice)
    if shutil.which("wrk") is None:
        raise SystemExit("The load generator is missing: apt-get install wrk.")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as name:
        report = run(given, Path(name))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    artefact = folder / "artefact"
    artefact.mkdir()
    rows, expected = make_model(artefact)
    shutil.copy(artefact / "model.pkl", artefact / "model.joblib")
    versions = ", ".join(
        version_of(sys.executable, package)
        for package in ("keepwell", "onnxruntime", "uvloop", "msgspec", "numpy")
    )
    gateway = Keepwell(artefact, folder / "keepwell")
    report: dict[str, Any] = {
        "machine": {
            "processor": next(
                (
                    line.split(":")[1].strip()
                    for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if line.startswith("model name")
                ),
                platform.processor(),
            ),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_before": os.getloadavg(),
        },
        "model": f"HistGradientBoostingClassifier, {TREES} trees, {len(COLUMNS)} features",
        "seconds_a_round": given.seconds,
        "rows": [],
    }  # fmt: skip
    try:
        ours = gateway.contestants(rows, versions)
        wait_for(ours[0])
        ours = [one for one in ours if given.modes in one.mode]
        for one in ours:
            if one.model == "onnx":
                check(one, expected)
        measure(
            ours, peers(folder, rows, quick=given.quick), given, folder, expected, gateway, report
        )
    finally:
        gateway.stop()
    report["machine"]["load_after"] = os.getloadavg()
    return report


def wait_for(contestant: Contestant) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            ask(contestant)
        except (OSError, urllib.error.HTTPError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def measure(
    ours: list[Contestant],
    others: list[tuple[str, str, str, Any, Any]],
    given: argparse.Namespace,
    folder: Path,
    expected: list[float],
    gateway: Keepwell,
    report: dict[str, Any],
) -> None:
    def turn(contestant: Contestant) -> None:
        load(contestant, seconds=given.seconds, connections=given.connections, folder=folder)
        gateway.clear()

    def tell(contestant: Contestant, beside: Contestant | None = None) -> None:
        said = row(contestant, given.connections)
        if beside is not None:
            pairs = zip(beside.rounds[-len(contestant.rounds) :], contestant.rounds, strict=True)
            ratios = [a["requests_per_second"] / b["requests_per_second"] for a, b in pairs]
            said["keepwell_group_is_times"] = round(statistics.median(ratios), 2)
            busy = statistics.median(o["requests_per_processor_second"] for o in beside.rounds)
            said["keepwell_group_is_times_by_processor_time"] = round(
                busy / said["requests_per_processor_second"], 2
            )
        report["rows"].append(said)
        print(
            f"{said['contestant']:<20} {said['mode']:<46} {said['model']:<7}"
            f" {said['requests_per_second']:>8,}/s {said['requests_per_processor_second']:>8,}/cpu s"
            f"  p50 {said['p50_ms']:>7.2f}  p99 {said['p99_ms']:>7.2f} ms {said['memory_mb']:>7.1f} MB"
            f"  errors {said['errors']}  {said.get('keepwell_group_is_times', '')}",
            flush=True,
        )

    reference = ours[0]
    standing: list[tuple[Peer, Contestant]] = []
    try:
        for peer in [p for p in others if p[1] == "asgi" and given.only in p[0]]:
            standing.append(begin(peer, folder, expected))
        for _ in range(given.rounds):
            for contestant in [*ours, *(c for _, c in standing)]:
                turn(contestant)
    finally:
        for server, _ in standing:
            server.stop()
    for contestant in ours:
        tell(contestant)
    for _, contestant in standing:
        tell(contestant, reference)
    for peer in [p for p in others if p[1] != "asgi" and given.only in p[0]]:
        try:
            server, contestant = begin(peer, folder, expected)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            report["rows"].append(
                {"contestant": peer[0], "model": peer[2], "failed": str(error)[:500]}
            )
            continue
        try:
            for _ in range(given.rounds):
                turn(reference)
                turn(contestant)
        finally:
            server.stop()
        tell(contestant, reference)


def begin(
    peer: tuple[str, str, str, Any, Any], folder: Path, expected: list[float]
) -> tuple[Peer, Contestant]:
    name, environment, form, command, (path, bodies, read, package) = peer
    python = python_of(environment)
    port = free_port()
    server = Peer(
        f"{environment}-{package}-{form}", command(python, port, form),
        folder=folder, env=model_env(folder, form),
    )  # fmt: skip
    contestant = Contestant(
        name=name,
        mode="one row",
        model=form,
        port=port,
        path=path,
        bodies=bodies,
        pids=server.pids,
        read=read,
        versions=", ".join(
            version_of(python, one) for one in (package, "onnxruntime", "scikit-learn")
        ),
    )
    try:
        server.wait(contestant)
        check(contestant, expected)
    except BaseException:
        server.stop()
        raise
    return server, contestant


if __name__ == "__main__":
    main()
