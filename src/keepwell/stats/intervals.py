"""Intervals for a mean, a difference and a share, from a sample of a size fixed in advance.

Read once, at the planned end. Whoever looks as the rows come in uses `confidence_sequence`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays

# Below this many clusters the interval of a mean by cluster covers visibly less than it says
# (Cameron, Gelbach and Miller 2008); it is still given, and `Interval.clusters` tells.
FEW_CLUSTERS = 10


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the range that covers the true value with the stated level.

    `standard_error` is in the unit of the estimate; `clusters` equals `rows` where rows are
    taken as independent.
    """

    estimate: float
    lower: float
    upper: float
    level: float
    standard_error: float
    rows: int
    clusters: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.lower <= value <= self.upper


@dataclass(frozen=True, kw_only=True)
class ClusterTotals:
    """Rows summed by cluster: all that clustered formulas need. Shapes (g,), clusters sorted."""

    clusters: tuple[object, ...]
    totals: tuple[float, ...]
    sizes: tuple[int, ...]


def cluster_totals(values: npt.ArrayLike, clusters: npt.ArrayLike) -> ClusterTotals:
    """Sum values by cluster.

    values, clusters: shape (n,), a key a row. Raises ValueError for NaN or unequal lengths.

    >>> cluster_totals([1.0, 2.0, 3.0], ["mon", "tue", "tue"])
    ClusterTotals(clusters=('mon', 'tue'), totals=(1.0, 5.0), sizes=(1, 2))
    """
    x = _arrays.vector("values", values)
    distinct, position = _arrays.keys("clusters", clusters, x.size)
    return ClusterTotals(
        clusters=tuple(distinct.tolist()),
        totals=tuple(np.bincount(position, weights=x).tolist()),
        sizes=tuple(np.bincount(position).tolist()),
    )


def mean_interval(values: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's t interval of a mean of independent rows.

    Weak at: correlated rows (use `clustered_mean_interval`), few rows of a skewed quantity, and
    being read more than once.

    values: shape (n,), n >= 2, any unit. Raises ValueError for NaN, n < 2 or a level not in (0, 1).
    Source: Student 1908.

    >>> interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    >>> round(interval.lower, 2), round(interval.upper, 2)
    (0.45, 4.55)
    """
    x = _arrays.vector("values", values, least=2)
    error = float(x.std(ddof=1) / np.sqrt(x.size))
    return _student(float(x.mean()), error, freedom=x.size - 1, level=level, rows=x.size)


def paired_difference_interval(
    treatment: npt.ArrayLike, control: npt.ArrayLike, *, level: float = 0.95
) -> Interval:
    """Interval of the mean of treatment minus control, both measured on the same rows.

    What both share (an easy day, a hard case) cancels, so it is far narrower than comparing two
    separate means.

    Weak at: as `mean_interval`.

    treatment, control: shape (n,), n >= 2. Raises ValueError for NaN or unequal lengths.
    Source: Student 1908.

    >>> paired_difference_interval([2.0, 3.0, 4.5], [1.0, 2.0, 3.0]).excludes(0.0)
    True
    """
    a = _arrays.vector("treatment", treatment, least=2)
    b = _arrays.vector("control", control, least=2)
    _arrays.same_length(treatment=a, control=b)
    return mean_interval(a - b, level=level)


def clustered_mean_interval(
    values: npt.ArrayLike, clusters: npt.ArrayLike, *, level: float = 0.95
) -> Interval:
    """Interval of the mean of all rows when rows of one cluster resemble one another.

    Flights of a day share its weather: a thousand of them are not a thousand pieces of evidence.
    The variance is that of the clusters' total deviations, so any correlation within a cluster is
    allowed for; t with (clusters - 1) degrees of freedom.

    Weak at: fewer than about ten clusters, or one cluster that holds most rows, where it covers
    less than it says; correlation between clusters (choose larger ones).

    values: shape (n,); clusters: shape (n,), a key a row, at least two distinct.
    Raises ValueError for NaN, unequal lengths, or a single cluster.
    Source: Liang and Zeger 1986; Cameron and Miller 2015, A practitioner's guide to
    cluster-robust inference.

    >>> rng = np.random.default_rng(0)
    >>> day = np.repeat(np.arange(20), 50)
    >>> values = rng.normal(size=20)[day] + rng.normal(size=1000)
    >>> alone, grouped = mean_interval(values), clustered_mean_interval(values, day)
    >>> round(grouped.standard_error / alone.standard_error, 1)
    4.7
    """
    x = _arrays.vector("values", values, least=2)
    distinct, position = _arrays.keys("clusters", clusters, x.size)
    groups = distinct.size
    if groups < 2:
        message = "clusters must have at least two distinct keys, received one"
        raise ValueError(message)
    mean = float(x.mean())
    deviations = np.bincount(position, weights=x - mean)
    error = float(np.sqrt(groups / (groups - 1) * (deviations**2).sum()) / x.size)
    return _student(mean, error, freedom=groups - 1, level=level, rows=x.size, clusters=groups)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Interval of a share of independent trials, good for rare events and few trials.

    Weak at: correlated trials; it covers the level on average over shares, not for each.

    successes within [0, trials], trials >= 1. Raises ValueError otherwise.
    Source: Wilson 1927; Brown, Cai and DasGupta 2001.

    >>> interval = wilson_interval(0, 100)
    >>> interval.lower, round(interval.upper, 3)
    (0.0, 0.037)
    """
    _arrays.at_least("trials", trials, 1)
    if not 0 <= successes <= trials:
        message = f"successes must be within [0, {trials}], received {successes}"
        raise ValueError(message)
    z = float(special.ndtri((1 + _arrays.inside("level", level, 0, 1)) / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    half = float(z * spread / (1 + z**2 / trials))
    return Interval(
        estimate=share,
        # At the ends the bounds are exactly 0 and 1; rounding may miss by 1e-18.
        lower=0.0 if successes == 0 else max(centre - half, 0.0),
        upper=1.0 if successes == trials else min(centre + half, 1.0),
        level=level,
        standard_error=float(np.sqrt(share * (1 - share) / trials)),
        rows=int(trials),
        clusters=int(trials),
    )


def bootstrap_interval(
    values: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    statistic: Callable[[_arrays.FloatArray], float] | None = None,
    clusters: npt.ArrayLike | None = None,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of a statistic (the mean by default), by row or by whole cluster.

    Weak at: small samples (it covers less than it says), extremes such as a maximum, and heavy
    tails; its bounds carry the noise of the draws.

    values: shape (n,), n >= 2; `statistic` takes an array of shape (k,) and returns a number;
    `rng` decides the draws, so a seed repeats them.
    Raises ValueError for NaN, n < 2, fewer than 2 clusters, or draws < 100.
    Source: Efron 1979; Davison and Hinkley 1997, section 3.8, for clusters.

    >>> interval = bootstrap_interval([1.0, 2.0, 3.0, 10.0], np.random.default_rng(1),
    ...                               statistic=np.median)
    >>> interval.estimate, interval.lower, interval.upper
    (2.5, 1.0, 10.0)
    """
    x = _arrays.vector("values", values, least=2)
    _arrays.inside("level", level, 0, 1)
    _arrays.at_least("draws", draws, 100)
    _, position = _arrays.keys(
        "clusters", np.arange(x.size) if clusters is None else clusters, x.size
    )
    groups = int(position.max()) + 1
    if groups < 2:
        message = "clusters must have at least two distinct keys, received one"
        raise ValueError(message)
    if statistic is None:
        totals, sizes = np.bincount(position, weights=x), np.bincount(position)
        picks = rng.integers(groups, size=(draws, groups))
        found = totals[picks].sum(axis=1) / sizes[picks].sum(axis=1)
        estimate = float(x.mean())
    else:
        members = np.split(
            np.argsort(position, kind="stable"), np.cumsum(np.bincount(position))[:-1]
        )
        found = np.array(
            [
                statistic(
                    x[np.concatenate([members[g] for g in rng.integers(groups, size=groups)])]
                )
                for _ in range(draws)
            ]
        )
        estimate = float(statistic(x))
    lower, upper = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=estimate,
        lower=float(lower),
        upper=float(upper),
        level=level,
        standard_error=float(found.std(ddof=1)),
        rows=x.size,
        clusters=groups,
    )


def _student(
    mean: float, error: float, *, freedom: int, level: float, rows: int, clusters: int | None = None
) -> Interval:
    t = float(special.stdtrit(freedom, (1 + _arrays.inside("level", level, 0, 1)) / 2))
    return Interval(
        estimate=mean,
        lower=mean - t * error,
        upper=mean + t * error,
        level=level,
        standard_error=error,
        rows=rows,
        clusters=rows if clusters is None else clusters,
    )
