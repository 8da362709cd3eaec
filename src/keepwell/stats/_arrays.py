"""Turns what a caller passes into checked arrays, so that each formula starts from clean input."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def vector(
    name: str, values: npt.ArrayLike, *, least: int = 1, missing: bool = False
) -> FloatArray:
    """Return `values` as float64 of shape (n,); NaN and infinities pass only if `missing`.

    Raises ValueError for another shape, fewer than `least` values, or values that do not count.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        message = f"{name} must have shape (n,), received shape {array.shape}"
        raise ValueError(message)
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        message = f"{name} must be numbers, received {array.dtype}"
        raise ValueError(message) from error
    if array.size < least:
        message = f"{name} must have at least {least} value(s), received {array.size}"
        raise ValueError(message)
    if not missing and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        message = f"{name} must be finite, received {bad} NaN or infinite of {array.size} values"
        raise ValueError(message)
    return array


def counts(name: str, values: npt.ArrayLike, *, least: int = 1) -> FloatArray:
    """Return `values` as float64 of shape (k,), each a finite count of zero or more."""
    array = vector(name, values, least=least)
    if (array < 0).any():
        message = f"{name} must be counts of zero or more, received {array.min():g}"
        raise ValueError(message)
    return array


def probabilities(name: str, values: npt.ArrayLike) -> FloatArray:
    """Return `values` as float64 of shape (n,), each within [0, 1]."""
    array = vector(name, values)
    if ((array < 0) | (array > 1)).any():
        message = (
            f"{name} must be probabilities within [0, 1], "
            f"received values from {array.min():g} to {array.max():g}"
        )
        raise ValueError(message)
    return array


def labels(name: str, values: npt.ArrayLike) -> FloatArray:
    """Return `values` as float64 of shape (n,), each exactly 0 or 1."""
    array = vector(name, values)
    if not np.isin(array, (0.0, 1.0)).all():
        odd = array[~np.isin(array, (0.0, 1.0))][0]
        message = f"{name} must be labels 0 or 1, received {odd:g}"
        raise ValueError(message)
    return array


def keys(name: str, values: npt.ArrayLike, length: int) -> tuple[npt.NDArray[np.generic], IntArray]:
    """Return the distinct keys, sorted, and for each of `length` rows the position of its key."""
    array = np.asarray(values)
    if array.shape != (length,):
        message = f"{name} must have shape ({length},), one key a row, received {array.shape}"
        raise ValueError(message)
    if array.dtype == object:
        kinds = {type(key) for key in array}
        if len(kinds) > 1:
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            message = f"{name} must hold keys of one type, received {found}"
            raise ValueError(message)
    if array.dtype.kind == "f" and np.isnan(array).any():
        message = f"{name} must have a key for every row, received {np.isnan(array).sum()} NaN"
        raise ValueError(message)
    distinct, position = np.unique(array, return_inverse=True)
    return distinct, position.astype(np.int64)


def choices(name: str, values: npt.ArrayLike, rows: int, arms: int) -> IntArray:
    """Return `values` as int64 of shape (rows,), each an arm from 0 to arms - 1."""
    array = np.asarray(values)
    if array.shape != (rows,) or (rows and array.dtype.kind not in "iu"):
        message = (
            f"{name} must be whole numbers of shape ({rows},), "
            f"received {array.dtype} of shape {array.shape}"
        )
        raise ValueError(message)
    taken = array.astype(np.int64)
    if rows and (taken.min() < 0 or taken.max() >= arms):
        message = f"{name} must be within [0, {arms - 1}], received {taken.min()} to {taken.max()}"
        raise ValueError(message)
    return taken


def same_length(**arrays: npt.NDArray[np.generic]) -> None:
    """Raise ValueError unless all arrays, passed by name, have one length."""
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        message = "lengths must be equal, received " + ", ".join(
            f"{k}={v}" for k, v in sizes.items()
        )
        raise ValueError(message)


def inside(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if low < value < high (both excluded), else raise ValueError."""
    if not low < value < high:
        message = f"{name} must be between {low:g} and {high:g}, both excluded, received {value!r}"
        raise ValueError(message)
    return float(value)


def share(name: str, value: float) -> float:
    """Return `value` if it is within [0, 1], else raise ValueError."""
    if not 0 <= value <= 1:
        message = f"{name} must be within [0, 1], received {value!r}"
        raise ValueError(message)
    return float(value)


def at_least(name: str, value: float, low: float) -> float:
    """Return `value` if it is `low` or more and finite, else raise ValueError."""
    if not low <= value < np.inf:
        message = f"{name} must be {low:g} or more and finite, received {value!r}"
        raise ValueError(message)
    return float(value)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is among `allowed`, else raise ValueError."""
    if value not in allowed:
        message = f"{name} must be one of {', '.join(allowed)}, received {value!r}"
        raise ValueError(message)
    return value
