"""The program of a runtime: loads one model of an artefact's folder and answers the workers that connect.

Runs under any interpreter that has numpy and msgspec (and polars for classes and pickles, mlflow for MLflow folders).
One call at a time, in the order in which they came; what the model prints goes where the starter let it go.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import importlib
import os
import selectors
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.checks.artefact.pickles import scan_files
from keepwell.core.errors import Corrupt, InvalidInput, KeepwellError, Refused
from keepwell.core.records.models import Package, Signature
from keepwell.training.artefacts import check_folder
from keepwell.training.predictors import estimator_output, golden_problem
from keepwell.training.predictors.native import frame_of, unpickled
from keepwell.training.predictors.process import CODE, FILE, MODEL, PICKLE, Described, wire

Predict = Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]]

_PR_SET_PDEATHSIG = 1
PEER_SECONDS = 10.0
"""A worker that takes or sends nothing for so long in the middle of a frame is not waited for."""
JOINT_ROWS = 10_000
"""Questions of several workers that have more rows together are answered one by one."""
SAID_BYTES = 1024 * 1024
"""What a model prints is kept up to here, then begun anew."""


class Answering:
    """A model with the ``predict`` of a predictor."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict


def load(folder: Path) -> Answering:
    """Make the model of an artefact's folder, after the scan. Raises Refused, Corrupt, InvalidInput."""
    package = msgspec.json.decode((folder / "package.json").read_bytes(), type=Package)
    described = msgspec.json.decode((folder / FILE).read_bytes(), type=Described)
    own = tuple(package.own_modules)
    scan = scan_files(folder / MODEL, own=own)
    if scan.verdict != "pass":
        raise Refused(f"The model's files are refused: {scan.message}.", where=str(folder))
    if (folder / CODE).is_dir():
        # Before the project's folder: what answers is the code that was packaged, not what was written since.
        sys.path.insert(0, str(folder / CODE))
    signature = package.signature
    if described.form == "mlflow":
        return Answering(_mlflow(folder / MODEL, signature))
    if described.form == "pickle":
        estimator = unpickled((folder / MODEL / PICKLE).read_bytes(), own=own, name=PICKLE)
    else:
        module, _, name = described.name.partition(":")
        kind = reduce(getattr, name.split("."), importlib.import_module(module))
        estimator = kind.load(folder / MODEL)

    def predict(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return estimator_output(estimator, frame_of(rows, signature=signature), signature=signature)

    return Answering(predict)


def _mlflow(folder: Path, signature: Signature) -> Predict:
    import mlflow.pyfunc  # noqa: PLC0415 - only such models need it
    import pandas as pd  # noqa: PLC0415
    from mlflow.models import Model  # noqa: PLC0415

    loader = str(Model.load(str(folder)).flavors["python_function"]["loader_module"])
    if not loader.startswith("mlflow."):
        # MLflow imports and calls whatever module stands there.
        raise Refused(
            f"The MLflow model is loaded by the module {loader!r}, which is not MLflow's own.",
            todo="Save it with one of MLflow's flavours, or from code: python_model='FILE.py'.",
        )
    model = mlflow.pyfunc.load_model(str(folder))
    names = list(signature.names)

    def predict(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        frame = pd.DataFrame(rows, columns=names)
        if rows.dtype == object:
            kinds = {
                c.name: object if c.dtype == "string" else np.float64 for c in signature.inputs
            }
            frame = frame.astype(kinds)
        given = model.predict(frame)
        values = np.asarray(
            given.to_numpy() if hasattr(given, "to_numpy") else given, dtype=np.float64
        )
        if signature.task == "binary" and values.ndim == 2 and values.shape[1] == 2:
            return values[:, 1]
        if signature.task == "multiclass":
            return values
        if values.size != len(rows):
            raise InvalidInput(f"It gave shape {values.shape} for {len(rows):,} rows.")
        return values.reshape(-1)

    return predict


class Question(NamedTuple):
    """What one worker asks."""

    peer: socket.socket
    number: int
    rows: npt.NDArray[Any]


class Program:
    """Answers one round of questions after the other: at most one of each worker."""

    def __init__(self, model: Answering, *, seconds: float) -> None:
        self._model = model
        self._seconds = seconds
        self._selector = selectors.DefaultSelector()
        self._listening: socket.socket | None = None
        self._peers: set[socket.socket] = set()
        self._ending = False
        self._leaving = False

    def listen(self, listening: socket.socket) -> None:
        """Take workers in; end on SIGTERM once none is left, and send them elsewhere on SIGUSR1."""
        self._listening = listening
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)
        heard, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(heard, selectors.EVENT_READ)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGUSR1, self._told)
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the parent hears it too, and drains the workers first

    def _told(self, number: int, frame: object) -> None:
        del frame
        self._ending = True
        self._leaving = self._leaving or number == signal.SIGUSR1

    def enter(self, peer: socket.socket) -> None:
        """Tell a worker that the model is ready."""
        peer.settimeout(PEER_SECONDS)
        try:
            peer.sendall(wire.said(0, wire.HELLO, str(os.getpid())))
        except OSError:
            peer.close()
            return
        self._peers.add(peer)
        self._selector.register(peer, selectors.EVENT_READ)

    def run(self) -> None:
        """Answer until nobody is connected and nobody is to be awaited."""
        while self._peers or (self._listening is not None and not self._ending):
            if self._ending and self._listening is not None:
                self._selector.unregister(self._listening)
                self._listening.close()
                self._listening = None
            if self._leaving:
                self._leaving = False
                for peer in list(self._peers):
                    self._send(peer, wire.said(0, wire.BYE))
            asked: list[Question] = []
            for key, _ in self._selector.select():
                if isinstance(key.fileobj, int):
                    with contextlib.suppress(BlockingIOError):
                        os.read(key.fileobj, 512)
                elif key.fileobj is self._listening:
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        self.enter(self._listening.accept()[0])
                elif key.fileobj in self._peers:
                    asked += self._read(key.fileobj)
            self._answer(asked)

    def _read(self, peer: socket.socket) -> list[Question]:
        try:
            size, number, n, columns, kind, deadline = wire.HEAD.unpack(
                _exactly(peer, wire.HEAD.size)
            )
            payload = _exactly(peer, size)
        except (EOFError, OSError):
            self._leave(peer)
            return []
        if deadline and time.monotonic() > deadline:
            self._send(peer, wire.said(number, wire.LATE))
            return []
        return [Question(peer, number, wire.rows_of(kind, n, columns, payload))]

    def _answer(self, asked: list[Question]) -> None:
        """Answer what several workers asked at once by one call; where that fails, each by its own."""
        if len(asked) > 1 and sum(len(one.rows) for one in asked) <= JOINT_ROWS:
            joint = np.concatenate([one.rows for one in asked])
            with contextlib.suppress(Exception):
                # Whatever it raises comes out again when each question is tried alone.
                values = self._computed(joint)
                if values.ndim in {1, 2} and len(values) == len(joint):
                    start = 0
                    for one in asked:
                        stop = start + len(one.rows)
                        self._send(one.peer, wire.answer(one.number, values[start:stop]))
                        start = stop
                    return
        for one in asked:
            try:
                made = wire.answer(one.number, self._computed(one.rows))
            except Exception as error:  # noqa: BLE001 - the user's code may raise anything; the caller is told
                made = wire.said(one.number, wire.FAILED, f"{type(error).__name__}: {error}"[:600])
            self._send(one.peer, made)

    def _computed(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        if self._seconds:
            # The kernel ends a process that hangs, whatever holds the interpreter's lock.
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
        try:
            return np.asarray(self._model.predict(rows), dtype=np.float64)
        finally:
            if self._seconds:
                signal.setitimer(signal.ITIMER_REAL, 0)
            _trim()

    def _send(self, peer: socket.socket, content: bytes) -> None:
        try:
            peer.sendall(content)
        except OSError:
            self._leave(peer)

    def _leave(self, peer: socket.socket) -> None:
        if peer in self._peers:
            self._peers.discard(peer)
            self._selector.unregister(peer)
        peer.close()


def _exactly(peer: socket.socket, size: int) -> bytearray:
    made = bytearray(size)
    view, done = memoryview(made), 0
    while done < size:
        got = peer.recv_into(view[done:])
        if not got:
            raise EOFError
        done += got
    return made


def _trim() -> None:
    told = os.fstat(1)
    if stat.S_ISREG(told.st_mode) and told.st_size > SAID_BYTES:
        sys.stdout.flush()
        os.ftruncate(1, 0)  # opened to append, so the next line is the first


def main() -> None:
    """Run one runtime."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--listen", type=int, default=-1, help="a listening socket")
    parser.add_argument(
        "--connected", type=int, default=-1, help="a socket whose other end is the only caller"
    )
    parser.add_argument(
        "--status", type=Path, required=True, help="where to write why it cannot be ready"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="a call that takes longer ends the process"
    )
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--artefact", default="", help="digest that the folder must still have")
    parser.add_argument("--unproved", action="store_true", help="there are no golden rows yet")
    given = parser.parse_args()
    if given.parent:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != given.parent:
            raise SystemExit(0)  # the parent died before the kernel was asked
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # shows where a model hung, and then ends
    try:
        if given.artefact:
            check_folder(given.artefact, given.folder)
        model = load(given.folder)
        if not given.unproved:
            package = msgspec.json.decode(
                (given.folder / "package.json").read_bytes(), type=Package
            )
            problem = golden_problem(model, given.folder, numeric=package.signature.numeric)
            if problem:
                raise Corrupt(f"{problem[0].upper()}{problem[1:]}.")  # noqa: TRY301 - told like the others
    except Exception as error:
        # Importing and loading run the user's code.
        known = isinstance(error, KeepwellError)
        told = {
            "code": error.code if isinstance(error, KeepwellError) else "error",
            "problem": str(error) if known else f"It raised {type(error).__name__}: {error}"[:600],
        }
        given.status.write_bytes(msgspec.json.encode(told))
        if known:
            raise SystemExit(1) from error
        raise
    program = Program(model, seconds=given.seconds)
    if given.listen >= 0:
        program.listen(socket.socket(fileno=given.listen))
        given.status.write_bytes(b'{"code":"ready","problem":""}')
    else:
        program.enter(socket.socket(fileno=given.connected))
    program.run()


if __name__ == "__main__":
    main()
