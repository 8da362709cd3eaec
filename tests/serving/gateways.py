"""Real worker processes on a real socket, with editions published by the test instead of a store."""

from __future__ import annotations

import pickle
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.core.digest import canonical
from keepwell.core.errors import KeepwellError
from keepwell.core.records.data import Column, Dtype
from keepwell.core.records.models import Package, Signature
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import BUCKETS, HOLDOUT, Arm
from keepwell.serving.application import HttpApplication
from keepwell.serving.editions import Edition, EndpointEdition, Shelf
from keepwell.serving.log.segments import SegmentLog
from keepwell.serving.pool import Pool
from keepwell.serving.sockets import bind, reserve
from keepwell.serving.terms import Terms
from keepwell.serving.transport.tls import trust
from keepwell.training.artefacts import pack_folder, unpack_artefact
from keepwell.training.predictors import estimator_output, load_predictor
from keepwell.training.predictors.native import frame_of
from keepwell.training.predictors.process import Folder, write

PATIENCE = 60.0
"""Seconds that a test waits for what takes a moment, on a machine that does much else."""
COLUMNS: dict[str, Dtype] = {"x": "float64", "flag": "bool", "dep delay": "float64"}


def signature_of(columns: dict[str, Dtype]) -> Signature:
    inputs = tuple(Column(name=n, dtype=d, nullable=True) for n, d in columns.items())
    return Signature(inputs=inputs, task="regression")


def _put(
    shelf: Shelf,
    kind: str,
    files: dict[str, bytes],
    columns: dict[str, Dtype],
    rows: list[list[Any]],
    signature: Signature | None = None,
) -> str:
    signature = signature or signature_of(columns)
    package = Package(
        model="m", candidate="c", predictor=kind, signature=signature, python="3.11", requirements=(),
        code="", revision="", training_set="", seed=0, params={}, own_modules=("tests.serving.models",),
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(dir=shelf.folder))
    for name, content in {**files, "package.json": canonical(package)}.items():
        (folder / name).write_bytes(content)
    predictor, _ = load_predictor(folder)
    matrix = np.array(rows, dtype=np.float64 if signature.numeric else object)
    golden = predictor.predict(matrix).tolist()
    content = canonical({"rows": rows, "predictions": golden, "tolerance": 1e-6})
    (folder / "golden.json").write_bytes(content)
    return lay_out(shelf, folder)


def lay_out(shelf: Shelf, made: Path) -> str:
    """Put a made folder where the workers look for it, as if it had been unpacked there, and give its digest."""
    blobs = FileBlobs(shelf.folder / "blobs")
    digest = pack_folder(made, blobs=blobs)
    unpack_artefact(digest, shelf.artefact_folder(digest), blobs=blobs)
    return digest


def linear(shelf: Shelf, intercept: float, columns: dict[str, Dtype] | None = None) -> str:
    """Unpack a linear model ``x + intercept`` (a missing x counts 100) and give its digest."""
    columns = columns or COLUMNS
    fused = {
        "fill": [100.0] * len(columns),
        "weights": [1.0] + [0.0] * (len(columns) - 1),
        "intercept": intercept,
        "link": "identity",
    }
    rows = [[float(i)] * len(columns) for i in range(3)]
    return _put(shelf, "linear", {"linear.json": canonical(fused)}, columns, rows)


def native(
    shelf: Shelf,
    estimator: object,
    signature: Signature | None = None,
    rows: list[list[Any]] | None = None,
) -> str:
    """Unpack a pickled estimator of the tests' own module and give its digest."""
    columns = {c.name: c.dtype for c in signature.inputs} if signature else COLUMNS
    rows = rows or [[1.0] * len(columns)]
    content = {"model.pkl": pickle.dumps(estimator, protocol=5)}
    return _put(shelf, "native", content, columns, rows, signature)


def process(
    shelf: Shelf,
    estimator: object,
    signature: Signature | None = None,
    rows: list[list[Any]] | None = None,
    environment: str = "",
) -> str:
    """Unpack a model with a process of its own and give its digest."""
    signature = signature or signature_of(COLUMNS)
    folder = Path(tempfile.mkdtemp(dir=shelf.folder))
    package = Package(
        model="m", candidate="c", predictor="process", signature=signature, python="3.11", requirements=(),
        code="", revision="", training_set="", seed=0, params={}, own_modules=("tests.serving.models",),
        environment=environment,
    )  # fmt: skip
    write(Folder(estimator, package=package) if isinstance(estimator, Path) else estimator, folder)
    (folder / "package.json").write_bytes(canonical(package))
    rows = rows or [[1.0] * len(signature.inputs), [7.0] * len(signature.inputs)]
    matrix = np.array(rows, dtype=np.float64 if signature.numeric else object)
    if isinstance(estimator, Path):
        golden = Folder(estimator, package=package).outputs(matrix)
    else:
        frame = frame_of(matrix, signature=signature)
        golden = estimator_output(estimator, frame, signature=signature)
    content = canonical({"rows": rows, "predictions": golden.tolist(), "tolerance": 1e-6})
    (folder / "golden.json").write_bytes(content)
    return lay_out(shelf, folder)


def arm(version: int, artefact: str, weight: int = BUCKETS) -> Arm:
    return Arm(name=f"v{version}", model="m", version=version, artefact=artefact, weight=weight)


def hold(weight: int, *, version: int = 1, artefact: str = "sha256:0") -> Arm:
    return Arm(name=HOLDOUT, model="m", version=version, artefact=artefact, weight=weight)


def endpoint(name: str = "e", *, arms: Sequence[Arm], **fields: Any) -> EndpointEdition:
    given: dict[str, Any] = {
        "model": "m", "unit": "user", "time": "", "log": "sync", "plan": 1, "salt": "s", "fallback": "", "mirrors": (),
    }  # fmt: skip
    return EndpointEdition(name=name, arms=tuple(arms), **{**given, **fields})


class Gateway:
    """A pool on a free port."""

    def __init__(
        self, folder: Path, *, workers: int, grpc: bool = False, terms: Terms | None = None
    ) -> None:
        self.shelf = Shelf(folder / "editions")
        self.log = folder / "log"
        self._listening = bind("127.0.0.1", 0)
        self.port = int(self._listening.getsockname()[1])
        self._held = reserve("127.0.0.1", 0) if grpc else None
        self.grpc = f"127.0.0.1:{self._held.getsockname()[1]}" if self._held else ""
        self.pool = Pool(
            self._listening,
            editions=self.shelf.folder,
            log=self.log,
            meters=folder / "meters",
            workers=workers,
            grpc=self.grpc,
            terms=terms,
        )
        certificate = terms.tls_certificate if terms else ""
        self.application = HttpApplication(
            f"http{'s' if certificate else ''}://127.0.0.1:{self.port}",
            timeout=60,
            trust=lambda: trust(Path(certificate)),
        )
        self.number = 0

    def publish(self, *endpoints: EndpointEdition, wait: bool = True) -> None:
        self.number += 1
        self.shelf.publish(Edition(number=self.number, endpoints=endpoints))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until every worker answers from the newest edition, as it says itself and is seen on fresh connections."""
        deadline = time.monotonic() + PATIENCE
        self.pool.tend()
        while self.pool.serving(self.number) < len(self.pool.pids()):
            assert time.monotonic() < deadline, (
                "the workers did not load the newest edition in time"
            )
            time.sleep(0.01)
            self.pool.tend()
        seen = 0
        while seen < 6 * len(self.pool.pids()):
            try:
                answer = msgspec.json.decode(self.application.request("GET", "/ready")[1])
                fresh = answer["ready"] and answer["edition"] == self.number
            except KeepwellError:
                fresh = False
            seen = seen + 1 if fresh else 0
            if not fresh:
                assert time.monotonic() < deadline, "the workers were not ready in time"
                time.sleep(0.02)

    def wait_for_counters(self) -> None:
        """Wait until every worker has shared what it has counted until now; it does so twice a second."""
        now = time.time_ns()
        deadline = time.monotonic() + PATIENCE
        for pid in self.pool.pids():
            (path,) = (self.log.parent / "meters").glob(f"w*p{pid}.json")
            while path.stat().st_mtime_ns <= now:
                assert time.monotonic() < deadline, "a worker did not share its counters"
                time.sleep(0.02)

    def post(self, body: Any, endpoint: str = "e") -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        status, answer = self.application.request(
            "POST", f"/v1/endpoints/{endpoint}/predict", content
        )
        return status, msgspec.json.decode(answer)

    def raw(self, content: bytes, *, half_close: bool = False, timeout: float = PATIENCE) -> bytes:
        """Send bytes and read until the gateway closes, or nothing more comes for so many seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(content)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while more := connection.recv(65536):
                    answer += more
            except (TimeoutError, ConnectionResetError):
                pass
            return answer

    def records(self) -> tuple[list[Prediction], list[Outcome], tuple[str, ...]]:
        batch = SegmentLog(self.log).read({}, limit=10_000_000)
        return list(batch.predictions), list(batch.outcomes), batch.torn

    def close(self) -> None:
        self.pool.stop()
        self._listening.close()
        if self._held:
            self._held.close()


@contextmanager
def running(
    folder: Path, *, workers: int = 1, grpc: bool = False, terms: Terms | None = None
) -> Iterator[Gateway]:
    gateway = Gateway(folder, workers=workers, grpc=grpc, terms=terms)
    try:
        yield gateway
    finally:
        gateway.close()


def request(
    body: bytes, *, path: str = "/v1/endpoints/e/predict", method: str = "POST", extra: str = ""
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body
