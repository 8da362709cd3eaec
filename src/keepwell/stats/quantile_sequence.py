"""Bounds for a quantile, as the 99th percentile of latency, that hold at every look at once.

Whether a quantile exceeds a fixed limit needs no bounds: count the requests slower than the limit
and give them to `rate_limit`, whose limit is then 1 - probability.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats._normal_mixture import precision
from keepwell.stats.histogram import Histogram


@dataclass(frozen=True, kw_only=True)
class QuantileBounds:
    """A quantile and its bounds now, in the unit of the values; infinite where rows are too few."""

    probability: float
    estimate: float
    lower: float
    upper: float
    alpha: float
    rows: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds now."""
        return not self.lower <= value <= self.upper


@dataclass(frozen=True, kw_only=True)
class QuantileDifference:
    """Treatment's quantile less control's, and bounds for that; in the unit of the values."""

    estimate: float
    lower: float
    upper: float
    alpha: float
    treatment: QuantileBounds
    control: QuantileBounds

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds now."""
        return not self.lower <= value <= self.upper


def quantile_ranks(
    rows: int, probability: float, *, alpha: float, tuned_for: float
) -> tuple[int, int]:
    """Ranks, from 1, of the sorted values that bound a quantile at every number of rows.

    If q is the quantile, the number of values up to q is a sum of independent events of chance
    `probability` or more, that of values below q of such events of that chance or less. A bet on
    each, averaged over a beta distribution of chances on the losing side of `probability`, exceeds
    2/alpha ever with chance alpha/2. The ranks are where neither bet has won. Exact for any
    distribution, ties included. Rank 0 stands for no lower, rank rows + 1 for no upper bound.

    Weak at: extreme quantiles of few rows; requests that are slow together.

    rows >= 0. probability, alpha: in (0, 1). tuned_for: rows at which the bounds should be
    narrowest, >= 2. Raises ValueError otherwise.
    Source: Howard and Ramdas 2022, Sequential estimation of quantiles (1906.09712), the beta-
    binomial mixture; Robbins 1970.

    >>> quantile_ranks(1000, 0.9, alpha=0.05, tuned_for=1000)
    (870, 928)
    """
    _arrays.at_least("rows", rows, 0)
    p = _arrays.inside("probability", probability, 0, 1)
    _arrays.inside("alpha", alpha, 0, 1)
    _arrays.at_least("tuned_for", tuned_for, 2)
    weight = precision(alpha / 2, tuned_for, "lower")
    limit = math.log(2 / alpha)

    def too_many(k: int) -> bool:
        return _log_bet(k, rows, p, weight) >= limit

    def enough(k: int) -> bool:
        return _log_bet(rows - k, rows, 1 - p, weight) < limit

    return _first(enough, rows), _first(too_many, rows)


def quantile_bounds(
    values: npt.ArrayLike, probability: float, *, alpha: float, tuned_for: float
) -> QuantileBounds:
    """Estimate a quantile of independent values, with bounds that hold at all looks together.

    Call it at any look with all values so far: with chance 1 - alpha no call ever misses.

    Weak at: as `quantile_ranks`; all values must be kept (else `quantile_bounds_binned`).

    values: shape (n,), n >= 0, any unit. Raises ValueError for NaN and as `quantile_ranks`.
    Source: Howard and Ramdas 2022 (1906.09712).

    >>> milliseconds = np.random.default_rng(0).lognormal(3, 0.5, size=2000)
    >>> bounds = quantile_bounds(milliseconds, 0.95, alpha=0.05, tuned_for=2000)
    >>> round(bounds.lower, 1), round(bounds.estimate, 1), round(bounds.upper, 1)
    (41.9, 44.7, 48.1)
    """
    x = np.sort(_arrays.vector("values", values, least=0))
    low, high = quantile_ranks(x.size, probability, alpha=alpha, tuned_for=tuned_for)
    return QuantileBounds(
        probability=probability,
        estimate=float(x[_rank(x.size, probability) - 1]) if x.size else math.nan,
        lower=float(x[low - 1]) if 1 <= low <= x.size else -math.inf,
        upper=float(x[high - 1]) if high <= x.size else math.inf,
        alpha=alpha,
        rows=x.size,
    )


def quantile_bounds_binned(
    histogram: Histogram, probability: float, *, alpha: float, tuned_for: float
) -> QuantileBounds:
    """Bound a quantile from counts between fixed edges, as replicas keep and add them.

    As `quantile_bounds`, each bound widened to the edge of its bin: never narrower than on the
    rows, so on the safe side.

    Weak at: wide bins; a quantile in an outer bin, which has no edge.

    histogram: of values, missing ones not counted. Raises ValueError as `quantile_ranks`.
    Source: Howard and Ramdas 2022 (1906.09712).

    >>> from keepwell.stats.histogram import count
    >>> milliseconds = np.random.default_rng(0).lognormal(3, 0.5, size=2000)
    >>> kept = count(milliseconds, edges=tuple(range(0, 200, 5)))
    >>> bounds = quantile_bounds_binned(kept, 0.95, alpha=0.05, tuned_for=2000)
    >>> bounds.lower, bounds.estimate, bounds.upper
    (40.0, 45.0, 50.0)
    """
    reached = np.cumsum(histogram.counts)
    rows = int(reached[-1])
    low, high = quantile_ranks(rows, probability, alpha=alpha, tuned_for=tuned_for)
    # Bin i lies between edges i - 1 and i; the outer bins are open.
    left = (-math.inf, *histogram.edges)
    right = (*histogram.edges, math.inf)

    def bin_of(rank: int) -> int:
        return int(np.searchsorted(reached, rank))

    return QuantileBounds(
        probability=probability,
        estimate=float(right[bin_of(_rank(rows, probability))]) if rows else math.nan,
        lower=float(left[bin_of(low)]) if 1 <= low <= rows else -math.inf,
        upper=float(right[bin_of(high)]) if high <= rows else math.inf,
        alpha=alpha,
        rows=rows,
    )


def quantile_difference(
    treatment: npt.ArrayLike,
    control: npt.ArrayLike,
    probability: float,
    *,
    alpha: float,
    tuned_for: float,
) -> QuantileDifference:
    """Difference of two arms' quantiles, as latencies, with bounds that hold at all looks together.

    Each arm's bounds have alpha / 2; their extremes bound the difference. A canary is slower when
    `lower` is above 0.

    Weak at: it is wider than one test of the difference would be, by up to a factor of 1.4 with
    arms of one size. A shift of the whole distribution is found sooner by `outcome_comparison` of
    "slower than control's quantile was before the rollout".

    treatment, control: shapes (n,), (m,), all values so far. tuned_for: rows of each arm.
    Raises ValueError as `quantile_bounds`.
    Source: Howard and Ramdas 2022 (1906.09712); Lindon, Sanden and Shirikian 2022, Rapid
    regression detection in software deployments through sequential testing (2205.14762).

    >>> rng = np.random.default_rng(0)
    >>> slower, now = rng.lognormal(3.3, 0.5, size=3000), rng.lognormal(3, 0.5, size=3000)
    >>> quantile_difference(slower, now, 0.9, alpha=0.05, tuned_for=3000).lower > 0
    True
    """
    each = [
        quantile_bounds(values, probability, alpha=alpha / 2, tuned_for=tuned_for)
        for values in (treatment, control)
    ]
    ours, theirs = each
    return QuantileDifference(
        estimate=ours.estimate - theirs.estimate,
        lower=ours.lower - theirs.upper,
        upper=ours.upper - theirs.lower,
        alpha=alpha,
        treatment=ours,
        control=theirs,
    )


def _log_bet(events: int, rows: int, chance: float, weight: float) -> float:
    """Log gain of betting that events are likelier than `chance`, mixed over beta above it."""
    a, b = weight * chance, weight * (1 - chance)
    after = special.betaincc(a + events, b + rows - events, chance)
    if after <= 0:
        return -math.inf
    return float(
        special.betaln(a + events, b + rows - events)
        + math.log(after)
        - special.betaln(a, b)
        - math.log(special.betaincc(a, b, chance))
        - events * math.log(chance)
        - (rows - events) * math.log1p(-chance)
    )


def _first(holds: Callable[[int], bool], rows: int) -> int:
    """Give the least k in [0, rows] for which it holds, as from there on; rows + 1 if none."""
    low, high = 0, rows + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _rank(rows: int, probability: float) -> int:
    return min(max(math.ceil(probability * rows), 1), rows)
