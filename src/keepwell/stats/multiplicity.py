"""Adjusts p-values, and evidence of sequential tests, when many questions are asked at once."""

import math

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


def e_benjamini_hochberg(log_evidence: npt.ArrayLike) -> tuple[float, ...]:
    """Turn evidence of many tests into levels at which the expected share of false alarms holds.

    For a rollout with many metrics, looked at whenever one likes: a metric counts as changed where
    its adjusted level is at most the share that is allowed (0.05). Unlike p-values', the promise
    needs nothing of how the metrics hang together, and it holds at any stopping time.

    Weak at: it asks for more evidence than `benjamini_hochberg` (of k equal ones, 1/level each).

    log_evidence: shape (k,), k may be 0, in nats, as `log_evidence` of the sequential tests *now*,
    not at their peak; -inf allowed. The result keeps the order.
    Raises ValueError for NaN or another shape.
    Source: Wang and Ramdas 2022, False discovery rate control with e-values (2009.02824).

    >>> levels = e_benjamini_hochberg([math.log(100), math.log(8), math.log(50)])
    >>> [round(level, 3) for level in levels]
    [0.03, 0.125, 0.03]
    """
    found = np.asarray(log_evidence, dtype=np.float64)
    if found.ndim != 1 or np.isnan(found).any():
        message = f"log_evidence must have shape (k,) without NaN, received {found!r}"
        raise ValueError(message)
    order = np.argsort(-found, kind="stable")
    rank = np.arange(1, found.size + 1)
    # Rejected at a level: the most evident j with evidence of at least k / (level j) each.
    log_level = math.log(max(found.size, 1)) - np.log(rank) - found[order]
    adjusted = np.empty_like(found)
    adjusted[order] = np.exp(np.minimum(np.minimum.accumulate(log_level[::-1])[::-1], 0.0))
    return tuple(float(value) for value in adjusted)


def _p_values(values: npt.ArrayLike) -> _arrays.FloatArray:
    array = _arrays.vector("p_values", values, least=0)
    return _arrays.probabilities("p_values", array) if array.size else array
