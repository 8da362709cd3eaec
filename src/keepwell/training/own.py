"""Calls the project's own baseline and KPI: whatever they do wrong becomes an error with the user's own line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from keepwell.core.errors import InvalidInput, users_own
from keepwell.core.project import ModelDeclaration

Floats = npt.NDArray[np.float64]


def money_of(model: ModelDeclaration, predictions: Floats, outcomes: Floats) -> Floats:
    """Give what each decision was worth, shape (n,), in ``model.kpi_unit``.

    predictions: shape (n,) or (n, k); outcomes: shape (n,). Raises InvalidInput with the user's own line if
    the KPI function raises, gives another shape or values that are not finite.
    """
    if model.kpi_function is None:
        raise InvalidInput("The model declares no KPI.", where=f"model {model.name!r}")
    where = f"the KPI of model {model.name!r}"
    money = run_own(model.kpi_function, predictions, outcomes, where=where)
    return checked(money, len(outcomes), where=where, flat=True)


def run_own(function: Callable[..., Any], *arguments: Any, where: str) -> Any:
    """Call a function of the project. Raises InvalidInput for whatever it raises."""
    with users_own(where, todo="Mend the function."):
        return function(*arguments)


def checked(result: Any, rows: int, *, where: str, flat: bool) -> Floats:
    """Take what a function gave as finite numbers, one a row. Raises InvalidInput."""
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
