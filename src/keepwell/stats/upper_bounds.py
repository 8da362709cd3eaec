"""Optimism in the face of uncertainty: the arm with the largest upper bound gets the traffic."""

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats.exploration import with_floor


def ucb1(
    counts: npt.ArrayLike, means: npt.ArrayLike, *, spread: float = 1.0, floor: float = 0.0
) -> _arrays.FloatArray:
    """All but the floor to the largest `mean + spread * sqrt(2 log t / n)`; shapes (..., K).

    t is the sum of the counts. Arms without a reward come first; ties share.

    Weak at: rare events, where the bound is far too wide (five times Thompson's regret and more at
    rates of 5%); batches and late rewards, during which one arm gets all.

    counts, means: shape (..., K), K >= 2. spread: range of the rewards, > 0. floor: as `with_floor`.
    Raises ValueError otherwise. Source: Auer, Cesa-Bianchi and Fischer 2002.

    >>> ucb1([100, 10], [0.5, 0.4], floor=0.1).round(3).tolist()
    [0.05, 0.95]
    """
    n, m = _known(counts, means)
    _arrays.inside("spread", spread, 0, np.inf)
    log = np.log(np.maximum(n.sum(axis=-1, keepdims=True), 1))
    bound = m + spread * np.sqrt(2 * log / np.where(n > 0, n, 1))
    return with_floor(_largest(np.where(n > 0, bound, np.inf)), floor)


def kl_ucb(
    counts: npt.ArrayLike, means: npt.ArrayLike, *, floor: float = 0.0
) -> _arrays.FloatArray:
    """All but the floor to the largest q with `n KL(mean, q) <= log t`; shapes (..., K).

    KL is that of events, so the bound is as narrow as rates allow; it holds for all rewards within
    [0, 1]. Arms without a reward come first; ties share.

    Weak at: batches and late rewards, as `ucb1`.

    counts, means: shape (..., K), means within [0, 1]. floor: as `with_floor`.
    Raises ValueError otherwise. Source: Garivier and Cappe 2011 (1102.2490), with c = 0.

    >>> kl_ucb([100, 10], [0.5, 0.4], floor=0.1).round(3).tolist()
    [0.05, 0.95]
    """
    n, m = _known(counts, means)
    if ((m < 0) | (m > 1)).any():
        message = f"means must be within [0, 1], received {m.min():g} to {m.max():g}"
        raise ValueError(message)
    log = np.log(np.maximum(n.sum(axis=-1, keepdims=True), 1))
    allowed = log / np.where(n > 0, n, 1)
    low, high = m.copy(), np.ones_like(m)
    for _ in range(50):  # bisection to the last bit
        middle = (low + high) / 2
        inside = _divergence(m, middle) <= allowed
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return with_floor(_largest(np.where(n > 0, low, np.inf)), floor)


def _known(
    counts: npt.ArrayLike, means: npt.ArrayLike
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    n = np.asarray(counts, dtype=np.float64)
    m = np.asarray(means, dtype=np.float64)
    if n.shape != m.shape or n.ndim < 1 or n.shape[-1] < 2:
        message = (
            "counts and means must have one shape (..., K), K >= 2, "
            f"received {n.shape} and {m.shape}"
        )
        raise ValueError(message)
    if not (np.isfinite(m) & (n >= 0) & (n < np.inf)).all():
        message = "counts must be 0 or more and means finite"
        raise ValueError(message)
    return n, m


def _largest(bound: _arrays.FloatArray) -> _arrays.FloatArray:
    best = bound == bound.max(axis=-1, keepdims=True)
    shares: _arrays.FloatArray = best / best.sum(axis=-1, keepdims=True)
    return shares


def _divergence(p: _arrays.FloatArray, q: _arrays.FloatArray) -> _arrays.FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        won = np.where(p > 0, p * np.log(p / q), 0.0)
        lost = np.where(p < 1, (1 - p) * np.log((1 - p) / (1 - q)), 0.0)
    total: _arrays.FloatArray = won + lost
    return total
