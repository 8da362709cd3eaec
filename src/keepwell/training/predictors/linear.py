"""Linear models fused to one affine map in numpy: imputing, scaling and coefficients become one product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import Corrupt
from keepwell.core.records.models import Package, Signature

FILE = "linear.json"


class _Fused(msgspec.Struct, frozen=True, kw_only=True):
    fill: list[float | None]
    """Replaces a missing value; None where missing values pass through as NaN."""
    weights: list[float]
    intercept: float
    link: str


class LinearPredictor:
    """``link(fill(x) @ w + b)``."""

    def __init__(self, fused: _Fused) -> None:
        self._fill = np.array([np.nan if f is None else f for f in fused.fill])
        self._weights = np.array(fused.weights)
        self._intercept = fused.intercept
        self._logistic = fused.link == "logit"

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """See ``keepwell.training.predictors.Predictor``."""
        filled = np.where(np.isnan(rows), self._fill, rows)
        score = filled @ self._weights + self._intercept
        if not self._logistic:
            return np.asarray(score)
        # The two-sided form never overflows.
        small = np.exp(-np.abs(score))
        return np.asarray(np.where(score >= 0, 1.0, small) / (1.0 + small))


class _Linear:
    """The kind ``linear``."""

    def convert(
        self, estimator: Any, *, signature: Signature, folder: Path, sample: npt.NDArray[Any]
    ) -> bool:
        """See ``keepwell.training.predictors.Kind``: Pipelines of SimpleImputer, StandardScaler and a linear model."""
        del sample
        if not signature.numeric or signature.task == "multiclass":
            return False
        fused = _fuse(estimator, width=len(signature.inputs), task=signature.task)
        if fused is None:
            return False
        (folder / FILE).write_bytes(msgspec.json.encode(fused))
        return True

    def load(self, folder: Path, *, package: Package) -> LinearPredictor:
        """See ``keepwell.training.predictors.Kind``."""
        try:
            fused = msgspec.json.decode((folder / FILE).read_bytes(), type=_Fused)
        except (OSError, msgspec.DecodeError) as error:
            raise Corrupt(f"{FILE} cannot be read: {error}.", where=str(folder)) from error
        if len(fused.weights) != len(package.signature.inputs):
            raise Corrupt(f"{FILE} has {len(fused.weights)} weights for another signature.")
        return LinearPredictor(fused)


def _fuse(estimator: Any, *, width: int, task: str) -> _Fused | None:
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    last = steps[-1]
    allowed = (
        {"LogisticRegression"}
        if task == "binary"
        else {"LinearRegression", "Ridge", "Lasso", "ElasticNet"}
    )
    if type(last).__name__ not in allowed:
        return None
    weights = np.asarray(last.coef_, dtype=np.float64).reshape(-1)
    intercept = float(np.asarray(last.intercept_).reshape(-1)[0])
    fill: list[float | None] = [None] * width
    for step in reversed(steps[:-1]):
        name = type(step).__name__
        if name == "StandardScaler":
            scale = step.scale_ if step.scale_ is not None else np.ones(width)
            mean = step.mean_ if step.mean_ is not None else np.zeros(width)
            weights = weights / scale
            intercept -= float(weights @ mean)
        elif name == "SimpleImputer" and step.indicator_ is None and len(step.statistics_) == width:
            fill = [None if np.isnan(s) else float(s) for s in step.statistics_]
            if step is not steps[0] or any(f is None for f in fill):
                return None  # an imputer after a scaler fills in other units
        elif step not in (None, "passthrough"):
            return None
    if len(weights) != width:
        return None
    return _Fused(
        fill=fill,
        weights=weights.tolist(),
        intercept=intercept,
        link="logit" if task == "binary" else "identity",
    )


KIND = _Linear()
