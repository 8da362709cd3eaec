"""Adjusts p-values when many questions are asked at once."""

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays


def holm(p_values: npt.ArrayLike) -> tuple[float, ...]:
    """Adjust p-values so that the chance of any false alarm is the level they are read at.

    Uniformly better than Bonferroni and as general: no assumption on dependence.

    Weak at: hundreds of questions, where it sees little; `benjamini_hochberg` sees more.

    p_values: shape (k,), k may be 0; the result keeps the order.
    Raises ValueError for a value outside [0, 1] or NaN.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03])
    (0.03, 0.06, 0.06)
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return tuple(float(value) for value in adjusted)


def benjamini_hochberg(p_values: npt.ArrayLike) -> tuple[float, ...]:
    """Adjust p-values so that the expected share of false ones among the alarms is the level.

    For wide questions, as drift of each of a hundred features.

    Weak at: it promises a share, not that no alarm is false; valid under independence and
    positive dependence.

    p_values: shape (k,), k may be 0; the result keeps the order.
    Raises ValueError for a value outside [0, 1] or NaN.
    Source: Benjamini and Hochberg 1995, Controlling the false discovery rate.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    (0.03, 0.04, 0.04)
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")[::-1]
    scaled = p[order] * (p.size / np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return tuple(float(value) for value in adjusted)


def _p_values(values: npt.ArrayLike) -> _arrays.FloatArray:
    array = _arrays.vector("p_values", values, least=0)
    return _arrays.probabilities("p_values", array) if array.size else array
