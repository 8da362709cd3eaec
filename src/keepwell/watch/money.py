"""What the non-ML baseline would have said of logged decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from keepwell.core.errors import InvalidInput
from keepwell.core.project import ModelDeclaration
from keepwell.core.records.models import Signature
from keepwell.training.own import Floats, checked, run_own


def baseline_of(
    model: ModelDeclaration, features: npt.NDArray[Any], signature: Signature
) -> Floats:
    """Give the baseline rule's predictions for logged features, shape (n, d), columns as in the signature.

    Raises InvalidInput as ``keepwell.training.own.money_of``.
    """
    if model.baseline_function is None:
        raise InvalidInput("The model declares no baseline.", where=f"model {model.name!r}")
    where = f"the baseline of model {model.name!r}"
    predictions = run_own(model.baseline_function, frame_of(features, signature), where=where)
    return checked(predictions, len(features), where=where, flat=False)


def frame_of(features: npt.NDArray[Any], signature: Signature) -> pl.DataFrame:
    """Give logged features as the polars frame that the project's functions expect."""
    columns: dict[str, pl.Series] = {}
    for i, column in enumerate(signature.inputs):
        values = features[:, i]
        if column.dtype == "string":
            texts = [None if v is None else str(v) for v in values]
            columns[column.name] = pl.Series(texts, dtype=pl.String)
        else:
            columns[column.name] = pl.Series(
                np.array([np.nan if v is None else v for v in values], dtype=np.float64)
                if values.dtype == object
                else np.ascontiguousarray(values)
            )
    return pl.DataFrame(columns)
