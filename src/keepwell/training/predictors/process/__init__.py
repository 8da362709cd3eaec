"""Any Python in a process of its own: a class with ``save`` and ``load``, a scanned pickle, an MLflow folder.

``convert`` writes what the process needs; ``load`` starts a private one, as packaging does to prove it. In a gateway
the parent starts one for all workers (``keepwell.serving.runtimes``). ``program`` is what runs inside.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import pickle
import shutil
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

import keepwell
from keepwell.core.digest import canonical
from keepwell.core.errors import Corrupt, InvalidInput, Refused, Unavailable
from keepwell.core.records.models import Package, Signature
from keepwell.training.own import run_own
from keepwell.training.predictors.process import wire

FILE = "process.json"
MODEL, CODE = "model", "code"
"""Folders of an artefact: what the model saved, and the project's modules that it needs."""
PICKLE = "model.pkl"
START_SECONDS = 300.0
"""So long a private process may import and load; frameworks of gigabytes take their time from a cold disk."""
CALL_SECONDS = 600.0
_VARIABLE = "KEEPWELL_PYTHON_"


class Described(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``process.json``: how the process makes the model of its folder."""

    form: Literal["class", "pickle", "mlflow"]
    name: str = ""
    """``module:Class`` for the form ``class``."""


class Folder:
    """An MLflow model's folder, standing for an estimator: what it predicts is asked in a process."""

    def __init__(self, path: Path, *, package: Package) -> None:
        self.path = path
        self._package = package

    def outputs(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Predict rows as the folder lies there, before anything of it is packaged. Raises InvalidInput."""
        with tempfile.TemporaryDirectory(prefix="keepwell-") as temporary:
            place = Path(temporary)
            write(self, place)
            (place / "package.json").write_bytes(canonical(self._package))
            private = PrivateProcess(place, self._package)
            try:
                return private.predict(rows)
            finally:
                private.close()


def write(estimator: Any, folder: Path) -> None:
    """Write an estimator's files: by its own ``save`` or pickled; an MLflow folder is copied. Raises InvalidInput."""
    model = folder / MODEL
    if isinstance(estimator, Folder):
        shutil.copytree(estimator.path, model, ignore=shutil.ignore_patterns("__pycache__"))
        described = Described(form="mlflow")
    elif hasattr(estimator, "save") and hasattr(type(estimator), "load") and _own(type(estimator)):
        model.mkdir(parents=True)
        run_own(estimator.save, model, where=f"{type(estimator).__name__}.save()")
        if not any(path.is_file() for path in model.rglob("*")):
            raise InvalidInput(f"{type(estimator).__name__}.save() wrote nothing into its folder.")
        kind = type(estimator)
        described = Described(form="class", name=f"{kind.__module__}:{kind.__qualname__}")
    else:
        model.mkdir(parents=True)
        (model / PICKLE).write_bytes(pickle.dumps(estimator, protocol=5))
        described = Described(form="pickle")
    if _own(type(estimator)) and not isinstance(estimator, Folder):
        for name, source in own_code(type(estimator).__module__).items():
            place = folder / CODE / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source)
    (folder / FILE).write_bytes(canonical(described))


def _own(kind: type) -> bool:
    """Tell whether a class is of the project's code, not of an installed package."""
    return _file_of(kind.__module__) is not None


def _file_of(module: str) -> Path | None:
    found = sys.modules.get(module)
    path = getattr(found, "__file__", None)
    if path is None and found is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        path = spec.origin if spec is not None and spec.has_location else None
    if path is None or not str(path).endswith(".py"):
        return None
    place = Path(path).resolve()
    return None if any(place.is_relative_to(one) for one in _installed()) else place


def _installed() -> list[Path]:
    """List where packages and Keepwell itself lie: what is there is named by its version, not packed."""
    paths = sysconfig.get_paths()
    named: list[str | Path] = [paths[one] for one in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [
        Path(one).resolve()
        for one in [*named, *site.getsitepackages(), Path(keepwell.__file__).parent]
    ]


def own_code(module: str) -> dict[str, bytes]:
    """Give the project's own modules that a module needs, itself too: path by module name, and content.

    Imports are followed as they are written; what is imported by a computed name is not seen.
    """
    found: dict[str, bytes] = {}
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        place = _file_of(name)
        if place is None:
            continue
        content = place.read_bytes()
        package = place.name == "__init__.py"
        base = name.replace(".", "/")
        found[f"{base}/__init__.py" if package else f"{base}.py"] = content
        inside = name if package else parent
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                waiting += [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = inside
                for _ in range(node.level - 1):
                    start = start.rpartition(".")[0]
                whole = ".".join(filter(None, [start if node.level else "", node.module or ""]))
                waiting += [whole, *(f"{whole}.{one.name}" for one in node.names)]
    return found


def interpreter(environment: str) -> str:
    """Give the Python of a named environment. Raises InvalidInput if this machine does not say where it is."""
    if not environment:
        return sys.executable
    variable = _VARIABLE + environment.upper().replace("-", "_")
    path = os.environ.get(variable, "")
    if not path or not Path(path).is_file():
        raise InvalidInput(
            f"The environment {environment!r} is {f'not at {path}' if path else 'not known here'}.",
            todo=f"Set {variable} to the path of its python, which needs numpy and msgspec installed.",
        )
    return path


def requirements(environment: str) -> tuple[str, ...]:
    """List what is installed in an environment, with versions. Raises InvalidInput if it cannot be asked."""
    asked = (
        "import importlib.metadata as m;"
        "print(*sorted({f'{d.name}=={d.version}' for d in m.distributions()}), sep='\\n')"
    )
    try:
        said = subprocess.run(
            [interpreter(environment), "-I", "-c", asked],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput(
            f"The environment {environment!r} cannot be asked what it holds: {error}."
        ) from error
    return tuple(said.stdout.split())


def command(folder: Path, environment: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Give how the program is started for an artefact's folder: arguments and environment variables."""
    source = str(Path(keepwell.__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH", "")
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [before, source])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        variables.setdefault(name, "1")
    program = "keepwell.training.predictors.process.program"
    return [interpreter(environment), "-P", "-m", program, str(folder), *arguments], variables


class PrivateProcess:
    """A process for one caller, which ends with it: how packaging proves that the packed model answers."""

    def __init__(self, folder: Path, package: Package) -> None:
        """Start it and wait until it has loaded. Raises Refused, Corrupt, InvalidInput with what it said."""
        ours, theirs = socket.socketpair()
        status = Path(tempfile.mkdtemp(prefix="keepwell-")) / "status.json"
        arguments = ["--connected", str(theirs.fileno()), "--status", str(status), "--unproved"]
        called, variables = command(folder, package.environment, *arguments)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            called, env=variables, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self._said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        self._number = 0
        try:
            ours.settimeout(START_SECONDS)
            self._read()
        except (OSError, EOFError) as error:
            self.close()
            raise _problem(status) or Corrupt(
                f"The process of the model ended before it was ready: {self._last_words()}"
            ) from error
        finally:
            shutil.rmtree(status.parent, ignore_errors=True)
        ours.settimeout(CALL_SECONDS)

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """See ``keepwell.training.predictors.Predictor``.

        Raises Unavailable if the process died, InvalidInput if the model raised.
        """
        self._number += 1
        head, payload = wire.question(self._number, rows, 0.0)
        try:
            self._socket.sendall(head)
            self._socket.sendall(payload)
            kind, n, columns, content = self._read()
        except (OSError, EOFError) as error:
            self.close()
            raise Unavailable(f"The process of the model ended: {self._last_words()}") from error
        if kind != wire.VALUES:
            raise InvalidInput(f"The model raised in its process: {content.decode()}")
        return wire.values_of(n, columns, content)

    def _read(self) -> tuple[int, int, int, bytes]:
        size, _, n, columns, kind, _ = wire.HEAD.unpack(self._exactly(wire.HEAD.size))
        return kind, n, columns, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        made = bytearray(size)
        view, done = memoryview(made), 0
        while done < size:
            got = self._socket.recv_into(view[done:])
            if not got:
                raise EOFError
            done += got
        return bytes(made)

    def _last_words(self) -> str:
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 2000))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-2:])[:400] or f"exit status {self._process.returncode}"

    def close(self) -> None:
        """End the process: it ends by itself once nobody is connected."""
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None and self._process.returncode is None:
            self.close()
        if getattr(self, "_said", None) is not None:
            self._said.close()


def _problem(status: Path) -> Refused | Corrupt | None:
    """Read why a process did not get ready, where it could say so."""
    try:
        told = msgspec.json.decode(status.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return (Refused if told["code"] == "refused" else Corrupt)(told["problem"])


class _Process:
    """The kind ``process``."""

    def convert(
        self, estimator: Any, *, signature: Signature, folder: Path, sample: npt.NDArray[Any]
    ) -> bool:
        """See ``keepwell.training.predictors.Kind``."""
        del signature, sample
        try:
            write(estimator, folder)
        except (pickle.PicklingError, AttributeError, TypeError):
            return False
        return True

    def load(self, folder: Path, *, package: Package) -> PrivateProcess:
        """See ``keepwell.training.predictors.Kind``."""
        return PrivateProcess(folder, package)


KIND = _Process()
