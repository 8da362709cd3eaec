"""What decisions were worth by the project's own KPI, and what the non-ML baseline would have earned on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from keepwell.core.errors import InvalidInput, KeepwellError, users_line
from keepwell.core.project import ModelDeclaration
from keepwell.core.records.models import Signature

Floats = npt.NDArray[np.float64]


def money_of(model: ModelDeclaration, predictions: Floats, outcomes: Floats) -> Floats:
    """Give what each decision was worth, shape (n,), in ``model.kpi_unit``.

    predictions: shape (n,) or (n, k); outcomes: shape (n,). Raises InvalidInput with the user's own line if
    the KPI function raises, gives another shape or values that are not finite.
    """
    if model.kpi_function is None:
        raise InvalidInput("The model declares no KPI.", where=f"model {model.name!r}")
    where = f"the KPI of model {model.name!r}"
    money = _run(model.kpi_function, predictions, outcomes, where=where)
    return _checked(money, len(outcomes), where=where, flat=True)


def baseline_of(
    model: ModelDeclaration, features: npt.NDArray[Any], signature: Signature
) -> Floats:
    """Give the baseline rule's predictions for logged features, shape (n, d), columns as in the signature.

    Raises InvalidInput as ``money_of``.
    """
    if model.baseline_function is None:
        raise InvalidInput("The model declares no baseline.", where=f"model {model.name!r}")
    where = f"the baseline of model {model.name!r}"
    predictions = _run(model.baseline_function, frame_of(features, signature), where=where)
    return _checked(predictions, len(features), where=where, flat=False)


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


def _run(function: Callable[..., Any], *arguments: Any, where: str) -> Any:
    # The user's code is an outer door: whatever it raises becomes an error that names its line.
    try:
        return function(*arguments)
    except KeepwellError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"It raised {type(error).__name__}: {error}",
            where=f"{where} ({users_line(error)})",
            todo="Mend the function; the windows after that are counted again.",
        ) from error


def _checked(result: Any, rows: int, *, where: str, flat: bool) -> Floats:
    try:
        array = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"It gave no numbers: {error}", where=where) from error
    if array.shape[:1] != (rows,) or (flat and array.ndim != 1):
        raise InvalidInput(
            f"It gave shape {array.shape} for {rows:,} rows.",
            where=where,
            todo="Give one value a row.",
        )
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InvalidInput(
            f"{bad:,} of {array.size:,} values are NaN or infinite.",
            where=where,
            todo="Give a finite number for every row.",
        )
    return array
