"""Thompson sampling: each arm gets the chance that it is the best one, given its rewards so far.

That chance is computed, not drawn, so it may be written into a traffic plan and logged as the true
propensity. Simulations that choose one request at a time use the `_choice` functions.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats.exploration import with_floor

# Pieces end at these quantiles of every arm; within a piece each density is smooth, so ten nodes of
# Gauss and Legendre leave an error under 1e-9 (tests compare with adaptive quadrature).
_TAIL = (1e-12, 1e-8, 1e-5, 1e-3, 0.01, 0.05, 0.15, 0.3)
_LEVELS = np.array([*_TAIL, 0.5, *(1 - level for level in reversed(_TAIL))])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


def thompson_beta(
    successes: npt.ArrayLike,
    failures: npt.ArrayLike,
    *,
    prior: tuple[float, float] = (1.0, 1.0),
    floor: float = 0.0,
) -> _arrays.FloatArray:
    """Chance of each arm to have the largest rate, under Beta posteriors; shape (K,).

    Weak at: rewards that are not within [0, 1]; a world that changes (pass discounted or recent
    sums); by quadrature it takes about a millisecond for four arms, 20 for sixteen.

    successes, failures: shape (K,), sums of 0 or more, fractions allowed. prior: both 0.5 or more.
    floor: as `with_floor`. Raises ValueError otherwise.
    Source: Thompson 1933; Chapelle and Li 2011; Kaufmann, Korda and Munos 2012 (1205.4217) for its
    optimality.

    >>> thompson_beta([10, 15], [90, 85]).round(3).tolist()
    [0.147, 0.853]
    """
    a, b = _posterior(successes, failures, prior)

    # On the scale of log-odds the density has no poles at 0 and 1.
    with np.errstate(divide="ignore"):
        breaks = special.logit(special.betaincinv(a[:, None], b[:, None], _LEVELS))

    def density(z: _arrays.FloatArray) -> _arrays.FloatArray:
        log = a[:, None] * special.log_expit(z) + b[:, None] * special.log_expit(-z)
        dense: _arrays.FloatArray = np.exp(log - special.betaln(a, b)[:, None])
        return dense

    def below(z: _arrays.FloatArray) -> _arrays.FloatArray:
        chance: _arrays.FloatArray = special.betainc(a[:, None], b[:, None], special.expit(z))
        return chance

    return with_floor(_best(np.clip(breaks, -700, 700), density, below), floor)


def thompson_gaussian(
    counts: npt.ArrayLike,
    means: npt.ArrayLike,
    squares: npt.ArrayLike,
    *,
    floor: float = 0.0,
) -> _arrays.FloatArray:
    """Chance of each arm to have the largest mean, under normal posteriors; shape (K,).

    The noise is the spread within arms, pooled. The prior of each mean is worth one reward: the
    mean of all rewards, with the variance of all rewards, so it has the scale of the data.

    Weak at: arms whose rewards spread very differently; heavy tails (a few large orders), where
    means move late; before two rewards are known all arms are equal.

    counts, means, squares: shape (K,), number, mean and sum of squared deviations of the rewards,
    as `ArmRewards` holds them. floor: as `with_floor`. Raises ValueError otherwise.
    Source: Agrawal and Goyal 2017 (1209.3353) for the normal form; Kass and Wasserman 1995 for the
    unit-information prior.

    >>> thompson_gaussian([50, 50], [3.0, 3.4], [49.0, 49.0]).round(3).tolist()
    [0.024, 0.976]
    """
    mean, scale = _normal(counts, means, squares)

    def density(z: _arrays.FloatArray) -> _arrays.FloatArray:
        t = (z - mean[:, None]) / scale[:, None]
        dense: _arrays.FloatArray = np.exp(-(t**2) / 2) / (np.sqrt(2 * np.pi) * scale[:, None])
        return dense

    def below(z: _arrays.FloatArray) -> _arrays.FloatArray:
        chance: _arrays.FloatArray = special.ndtr((z - mean[:, None]) / scale[:, None])
        return chance

    breaks = mean[:, None] + scale[:, None] * special.ndtri(_LEVELS)
    return with_floor(_best(breaks, density, below), floor)


def thompson_beta_choice(
    successes: npt.ArrayLike,
    failures: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    prior: tuple[float, float] = (1.0, 1.0),
) -> _arrays.IntArray:
    """Choose the arm whose draw from its Beta posterior is largest; shapes (..., K) -> (...).

    Weak at: the propensity of a single draw is not known; log `thompson_beta`.

    Raises ValueError and source: as `thompson_beta`.

    >>> thompson_beta_choice([[900, 1]] * 3, [[100, 99]] * 3, np.random.default_rng(0)).tolist()
    [0, 0, 0]
    """
    a, b = _posterior(successes, failures, prior)
    return np.asarray(rng.beta(a, b).argmax(axis=-1), dtype=np.int64)


def thompson_gaussian_choice(
    counts: npt.ArrayLike,
    means: npt.ArrayLike,
    squares: npt.ArrayLike,
    rng: np.random.Generator,
) -> _arrays.IntArray:
    """Choose the arm whose draw from its normal posterior is largest; shapes (..., K) -> (...).

    Weak at: the propensity of a single draw is not known; log `thompson_gaussian`.

    Raises ValueError and source: as `thompson_gaussian`.

    >>> rng = np.random.default_rng(0)
    >>> thompson_gaussian_choice([90, 90], [3.0, 9.0], [89.0, 89.0], rng).tolist()
    1
    """
    mean, scale = _normal(counts, means, squares)
    return np.asarray(rng.normal(mean, scale).argmax(axis=-1), dtype=np.int64)


def _posterior(
    successes: npt.ArrayLike, failures: npt.ArrayLike, prior: tuple[float, float]
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    won = np.asarray(successes, dtype=np.float64)
    lost = np.asarray(failures, dtype=np.float64)
    if won.shape != lost.shape or won.ndim < 1 or won.shape[-1] < 2:
        message = (
            "successes and failures must have one shape (..., K), K >= 2, "
            f"received {won.shape} and {lost.shape}"
        )
        raise ValueError(message)
    # A discounted sum may be -1e-17 by rounding.
    if not ((won > -1e-9) & (won < np.inf) & (lost > -1e-9) & (lost < np.inf)).all():
        message = "successes and failures must be sums of 0 or more of rewards within [0, 1]"
        raise ValueError(message)
    for each in prior:
        _arrays.at_least("prior", each, 0.5)
    return np.maximum(won, 0) + prior[0], np.maximum(lost, 0) + prior[1]


def _normal(
    counts: npt.ArrayLike, means: npt.ArrayLike, squares: npt.ArrayLike
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    n = np.asarray(counts, dtype=np.float64)
    m = np.asarray(means, dtype=np.float64)
    s = np.asarray(squares, dtype=np.float64)
    if not n.shape == m.shape == s.shape or n.ndim < 1 or n.shape[-1] < 2:
        message = (
            "counts, means and squares must have one shape (..., K), K >= 2, "
            f"received {n.shape}, {m.shape} and {s.shape}"
        )
        raise ValueError(message)
    if not (np.isfinite(m) & (n >= 0) & (n < np.inf) & (s >= 0) & (s < np.inf)).all():
        message = "counts and squares must be 0 or more, means finite"
        raise ValueError(message)
    arms = n.shape[-1]
    total = n.sum(axis=-1, keepdims=True)
    overall = np.divide(
        (n * m).sum(axis=-1, keepdims=True), total, out=np.zeros_like(total), where=total > 0
    )
    within = s.sum(axis=-1, keepdims=True)
    around = within + (n * (m - overall) ** 2).sum(axis=-1, keepdims=True)
    spread = around / np.maximum(total - 1, 1)
    noise = np.where(total > arms, within / np.maximum(total - arms, 1), spread)
    noise = np.where(noise > 0, noise, spread)
    # One reward's worth of prior at the mean of all, with the variance of all; both times the noise.
    known = spread > 0
    worth = np.divide(noise, spread, out=np.ones_like(spread), where=known)
    mean = (n * m + overall * worth) / (n + worth)
    # While all rewards are equal nothing tells the arms apart: equal draws of any width.
    scale = np.where(known, np.sqrt(noise / (n + worth)), 1.0)
    return mean, scale


def _best(
    breaks: _arrays.FloatArray,
    density: Callable[[_arrays.FloatArray], _arrays.FloatArray],
    below: Callable[[_arrays.FloatArray], _arrays.FloatArray],
) -> _arrays.FloatArray:
    """Integrate density_k * product of the others' distribution functions over all pieces."""
    edges = np.unique(breaks)
    half = np.diff(edges)[:, None] / 2
    nodes = (edges[:-1, None] + half * (1 + _NODES)).ravel()
    weights = (half * _WEIGHTS).ravel()
    chances = below(nodes)
    ones = np.ones((1, nodes.size))
    # Products of the others without division, which an arm surely worse would make 0 / 0.
    before = np.concatenate([ones, chances[:-1]]).cumprod(axis=0)
    after = np.concatenate([ones, chances[:0:-1]]).cumprod(axis=0)[::-1]
    best = (density(nodes) * before * after) @ weights
    shares: _arrays.FloatArray = best / best.sum()
    return shares
