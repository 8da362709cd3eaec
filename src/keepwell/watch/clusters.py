"""Means of windows and of the reference, compared with respect to the days that rows share.

Monitors sum rows by cluster (a day) and ask how far a window's mean lies beyond a limit; the answer is a
score on a normal scale, which judgement accumulates from window to window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.core.clock import Time

Floats = npt.NDArray[np.float64]
FARTHEST = 8.0
"""Scores are cut here: the tail of a t distribution is not known further out."""


@dataclass(frozen=True, kw_only=True)
class ClusterSums:
    """Rows summed by cluster, shapes (g,): sum, sum of squares, and number of rows."""

    sums: Floats
    squares: Floats
    sizes: Floats

    @property
    def rows(self) -> int:
        """Rows in all."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """Mean of all rows."""
        return float(self.sums.sum() / self.sizes.sum())


def cluster_sums(values: Floats, times: npt.NDArray[np.int64], cluster: Time) -> ClusterSums:
    """Sum rows by the piece of time they fall in; rows that all share one piece count as independent.

    values: shape (n,), n >= 1, finite; times: shape (n,), microseconds.
    """
    pieces = times // cluster
    distinct, place = np.unique(pieces, return_inverse=True)
    if len(distinct) < 2:
        place = np.arange(len(values))
    return ClusterSums(
        sums=np.asarray(np.bincount(place, weights=values), dtype=np.float64),
        squares=np.asarray(np.bincount(place, weights=values**2), dtype=np.float64),
        sizes=np.bincount(place).astype(np.float64),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A window's mean, its standard error, the reference's, and the degrees of freedom behind them."""

    mean: float
    error: float
    reference: float | None
    reference_error: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Give the ends of the interval of the window's mean."""
        half = float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.mean - half, self.mean + half

    def score(self, limit: float, *, weight: float = 1.0, above: bool = True) -> float:
        """Say how many standard errors the mean is beyond the limit, on a normal scale, within -8 to 8.

        ``weight`` is the limit's slope in the reference's mean, whose own error counts too.
        """
        error = float(np.hypot(self.error, weight * self.reference_error))
        distance = (self.mean - limit) if above else (limit - self.mean)
        if error == 0:
            return FARTHEST * float(np.sign(distance))
        tail = special.stdtr(self.freedom, -abs(distance) / error)
        return float(np.sign(distance) * min(-special.ndtri(max(tail, 1e-300)), FARTHEST))


def compare(window: ClusterSums, reference: ClusterSums | None = None) -> Comparison:
    """Compare a window with its reference by a two-level model: rows vary within days, days among themselves.

    Both variances are pooled over window and reference, for a week of days alone says little of how days
    vary; where the window's own days vary more than that, their own variance counts. Weak at: weeks that
    resemble their neighbours more than days do (weather spells, seasons), which the limits must allow for.
    Source: Searle, Casella and McCulloch 1992, Variance Components, chapter 3 (analysis-of-variance moments).
    """
    sides = [window] if reference is None else [window, reference]
    within = sum(float((s.squares - s.sums**2 / s.sizes).sum()) for s in sides)
    spare = sum(s.rows - len(s.sizes) for s in sides)
    # Nothing to spare: every row is its own cluster, and the clusters carry all the variance.
    row_variance = max(within, 0.0) / spare if spare > 0 else 0.0
    between = [_between(s, row_variance) for s in sides if len(s.sizes) > 1]
    freedom = sum(len(s.sizes) - 1 for s in sides if len(s.sizes) > 1)
    pooled = sum(v * f for v, f in between) / freedom if freedom else 0.0
    own = between[0][0] if len(window.sizes) > 1 else 0.0
    return Comparison(
        mean=window.mean,
        error=_error(window, row_variance, max(pooled, own)),
        reference=None if reference is None else reference.mean,
        reference_error=0.0 if reference is None else _error(reference, row_variance, pooled),
        freedom=float(max(freedom, 1)),
    )


def _between(side: ClusterSums, row_variance: float) -> tuple[float, int]:
    groups = len(side.sizes)
    deviations = side.sums - side.sizes * side.mean
    total = float((deviations**2).sum()) * groups / (groups - 1)
    spread = (total - row_variance * side.rows) / float((side.sizes**2).sum())
    return max(spread, 0.0), groups - 1


def _error(side: ClusterSums, row_variance: float, day_variance: float) -> float:
    rows = side.rows
    return float(
        np.sqrt((row_variance * rows + day_variance * float((side.sizes**2).sum())) / rows**2)
    )
