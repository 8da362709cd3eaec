"""The fitted estimator itself, pickled: the way of last resort, loaded only by names that a model may have."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keepwell.checks.artefact.pickles import allowed_global, pickle_scan
from keepwell.core.errors import Corrupt, Refused
from keepwell.core.records.models import Package, Signature
from keepwell.training.predictors import estimator_output

FILE = "model.pkl"

_REBUILDERS = (
    "_reconstruct",
    "_frombuffer",
    "scalar",
    "__newobj__",
    "__pyx_unpickle",
    "__randomstate_ctor",
    "__generator_ctor",
    "__bit_generator_ctor",
)
"""Functions by which numpy, scikit-learn and copyreg put their objects together again."""


class _Restricted(pickle.Unpickler):
    """Refuses every global that is not a class of a known package or of the project's own module."""

    def __init__(self, file: io.BytesIO, *, own: tuple[str, ...]) -> None:
        super().__init__(file)
        self._own = own

    def find_class(self, module: str, name: str) -> Any:
        if not allowed_global(module, name, own=self._own):
            raise Refused(
                f"The model's pickle names {module}.{name}.",
                todo="A model may be made of scikit-learn, numpy, scipy, LightGBM and XGBoost classes only.",
            )
        found = super().find_class(module, name)
        harmless = isinstance(found, type | np.ufunc) or name.startswith(_REBUILDERS)
        if module not in self._own and not harmless:
            # A known package also holds functions that open files and load libraries.
            raise Refused(
                f"The model's pickle calls the function {module}.{name}.",
                todo="A model may be made of classes only.",
            )
        return found


class NativePredictor:
    """Calls the estimator's own predict, with a polars frame if it was fitted with one."""

    def __init__(self, estimator: Any, *, signature: Signature) -> None:
        self._estimator = estimator
        self._signature = signature
        self._framed = hasattr(estimator, "feature_names_in_") or not signature.numeric

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """See ``keepwell.training.predictors.Predictor``."""
        # Estimators may go on in the precision that they are given; they were judged in the double one.
        given: Any = rows.astype(np.float64) if rows.dtype == np.float32 else rows
        if self._framed:
            given = frame_of(rows, signature=self._signature)
        return estimator_output(self._estimator, given, signature=self._signature)


def frame_of(rows: npt.NDArray[Any], *, signature: Signature) -> Any:
    """Rebuild the polars frame that an estimator was fitted with from rows in the signature's order."""
    import polars as pl  # noqa: PLC0415 - only estimators fitted with frames need it

    columns = {}
    for i, column in enumerate(signature.inputs):
        values = rows[:, i]
        if column.dtype == "string":
            columns[column.name] = pl.Series(
                [None if v is None else str(v) for v in values], dtype=pl.String
            )
        else:
            columns[column.name] = pl.Series(
                np.array([np.nan if v is None else v for v in values], dtype=np.float64)
            )
    return pl.DataFrame(columns)


def unpickled(content: bytes, *, own: tuple[str, ...], name: str) -> Any:
    """Load a pickle of an estimator after the scan, by the same names again. Raises Refused, Corrupt."""
    scan = pickle_scan(content, own=own)
    if scan.verdict != "pass":
        raise Refused(f"The pickle is refused: {scan.message}.", where=name)
    try:
        return _Restricted(io.BytesIO(content), own=own).load()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes happen to meet
        raise Corrupt(f"The pickle cannot be loaded: {error}.", where=name) from error


class _Native:
    """The kind ``native``."""

    def convert(
        self, estimator: Any, *, signature: Signature, folder: Path, sample: npt.NDArray[Any]
    ) -> bool:
        """See ``keepwell.training.predictors.Kind``: anything that pickle holds."""
        del signature, sample
        try:
            content = pickle.dumps(estimator, protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError):
            return False
        (folder / FILE).write_bytes(content)
        return True

    def load(self, folder: Path, *, package: Package) -> NativePredictor:
        """See ``keepwell.training.predictors.Kind``."""
        try:
            content = (folder / FILE).read_bytes()
        except OSError as error:
            raise Corrupt(f"{FILE} cannot be read: {error}.", where=str(folder)) from error
        estimator = unpickled(content, own=tuple(package.own_modules), name=str(folder / FILE))
        return NativePredictor(estimator, signature=package.signature)


KIND = _Native()
