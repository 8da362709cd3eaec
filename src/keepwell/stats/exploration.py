"""From a bandit's wishes to traffic: the floor that keeps a log evaluable, buckets, and draws."""

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays


def with_floor(probabilities: npt.ArrayLike, floor: float) -> _arrays.FloatArray:
    """Mix probabilities with even ones: each arm keeps at least floor / K.

    An arm that is never chosen can never be evaluated, nor found to have become the best one.

    Weak at: its price, which is `floor` times the mean gap, for ever.

    probabilities: shape (..., K), sums of 1 along the last axis. floor: within [0, 1].
    Raises ValueError for other values. Source: Auer, Cesa-Bianchi, Freund and Schapire 2002, Exp3.

    >>> with_floor([1.0, 0.0], 0.5).tolist()
    [0.75, 0.25]
    """
    p = _simplex(probabilities)
    share = _arrays.share("floor", floor)
    mixed: _arrays.FloatArray = (1 - share) * p + share / p.shape[-1]
    return mixed


def buckets(probabilities: npt.ArrayLike, total: int = 10_000) -> _arrays.IntArray:
    """Round probabilities to whole buckets that sum to `total`, by largest remainder.

    The propensity to log is then `buckets / total`, exactly. An arm with any probability keeps at
    least one bucket, taken from the largest. Ties fall to the earlier arm.

    Weak at: probabilities below 1 / total, which are lifted to it.

    probabilities: shape (K,), sum 1, K <= total. Raises ValueError otherwise.
    Source: Hamilton's method of apportionment 1792; Balinski and Young 1982.

    >>> buckets([0.5, 0.33333, 0.16667]).tolist(), buckets([0.999, 0.001, 0.0], 100).tolist()
    ([5000, 3333, 1667], [99, 1, 0])
    """
    p = _simplex(probabilities)
    if p.ndim != 1 or p.size > total:
        message = f"probabilities must have shape (K,), K <= {total}, received {p.shape}"
        raise ValueError(message)
    whole = np.floor(p * total)
    left = round(total - whole.sum())
    whole[np.argsort(-(p * total - whole), kind="stable")[:left]] += 1
    starved = (p > 0) & (whole == 0)
    for arm in np.flatnonzero(starved):
        whole[whole.argmax()] -= 1
        whole[arm] = 1
    return whole.astype(np.int64)


def choose(probabilities: npt.ArrayLike, rng: np.random.Generator) -> _arrays.IntArray:
    """Draw an arm for each row of probabilities, shape (..., K) -> (...).

    Weak at: nothing but size: it draws one number a row.

    Raises ValueError for rows that do not sum to 1. Source: inversion, Devroye 1986, chapter 3.

    >>> choose([[0.0, 1.0], [1.0, 0.0]], np.random.default_rng(0)).tolist()
    [1, 0]
    """
    p = _simplex(probabilities)
    edges = p.cumsum(axis=-1)
    u = rng.random((*p.shape[:-1], 1)) * edges[..., -1:]  # sums of 1 - 1e-16 stay inside
    return np.asarray((u >= edges[..., :-1]).sum(axis=-1), dtype=np.int64)


def _simplex(probabilities: npt.ArrayLike) -> _arrays.FloatArray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim < 1 or p.shape[-1] < 2:
        message = f"probabilities must have shape (..., K), K >= 2, received {p.shape}"
        raise ValueError(message)
    if not ((p >= 0).all() and (np.abs(p.sum(axis=-1) - 1) < 1e-9).all()):
        message = "probabilities must be 0 or more and sum to 1 along the last axis"
        raise ValueError(message)
    return p
