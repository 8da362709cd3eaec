"""Predictors: what executes. One file a kind, each with both halves: ``convert`` at packaging, ``load`` at serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.catalog import Catalog
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.records.models import Package, Signature

PREDICTORS = Catalog(
    "predictor",
    {
        "linear": "keepwell.training.predictors.linear:KIND",
        "onnx": "keepwell.training.predictors.onnx:KIND",
        "native": "keepwell.training.predictors.native:KIND",
        "process": "keepwell.training.predictors.process:KIND",
    },
)


class Predictor(Protocol):
    """Executes a model. Safe to call from one thread at a time; does no I/O after loading."""

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Predict rows, shape (n, d), in the order of the signature.

        Rows are float64 (float32 where the caller sent tensors in single precision) with NaN for missing where
        every input is a number, objects with None otherwise.
        Gives shape (n,) for regression and binary tasks (probability of the positive class), (n, k) for
        multiclass.
        """
        ...


class Kind(Protocol):
    """What a module of this folder offers."""

    def convert(
        self, estimator: Any, *, signature: Signature, folder: Path, sample: npt.NDArray[Any]
    ) -> bool:
        """Write the predictor's files; False if this kind cannot hold this estimator."""
        ...

    def load(self, folder: Path, *, package: Package) -> Predictor:
        """Load the predictor. Raises Corrupt, InvalidInput."""
        ...


def read_package_file(folder: Path) -> Package:
    """Read what an unpacked artefact says of itself. Raises Corrupt."""
    try:
        return msgspec.json.decode((folder / "package.json").read_bytes(), type=Package)
    except (OSError, msgspec.DecodeError) as error:
        raise Corrupt(f"package.json cannot be read: {error}.", where=str(folder)) from error


def load_predictor(folder: Path) -> tuple[Predictor, Package]:
    """Load the predictor of an unpacked artefact. Raises Corrupt, NotFound for an unknown kind."""
    package = read_package_file(folder)
    module = PREDICTORS.load(package.predictor)
    predictor: Predictor = module.load(folder, package=package)
    return predictor, package


def golden_problem(predictor: Predictor, folder: Path, *, numeric: bool) -> str:
    """Let a freshly loaded predictor answer its golden rows; say what is wrong, or nothing."""
    try:
        golden = msgspec.json.decode((folder / "golden.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        return f"golden.json cannot be read: {error}"
    rows = golden["rows"]
    if not rows:
        return ""
    matrix = np.array(rows, dtype=np.float64 if numeric else object)
    worst = float(np.max(np.abs(predictor.predict(matrix) - np.array(golden["predictions"]))))
    return "" if worst <= golden["tolerance"] else f"its golden rows differ by {worst:.3g}"


def estimator_output(
    estimator: Any, frame: Any, *, signature: Signature
) -> npt.NDArray[np.float64]:
    """Give what a fitted estimator predicts, in the form that a predictor gives it. Raises InvalidInput."""
    if signature.task == "regression":
        return np.asarray(estimator.predict(frame), dtype=np.float64).reshape(-1)
    probabilities = np.asarray(estimator.predict_proba(frame), dtype=np.float64)
    if probabilities.ndim != 2 or (signature.task == "binary" and probabilities.shape[1] != 2):
        raise InvalidInput(
            f"predict_proba() gave shape {probabilities.shape}.",
            todo="Give a probability for each class: two columns for a binary task.",
        )
    return probabilities[:, 1] if signature.task == "binary" else probabilities
