"""Bounds of a mean that allow for skew: few large weights or rare events make it lean to one side."""

import math

import numpy as np
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats.intervals import Interval


def interval(
    estimate: float,
    moves: _arrays.FloatArray,
    *,
    level: float,
    freedom: float = math.inf,
    rows: int,
    clusters: int,
) -> Interval:
    """Give the interval of an estimate whose error has these parts; see `bounds`."""
    below, above = bounds(moves, level, freedom)
    return Interval(
        estimate=estimate,
        lower=estimate + below,
        upper=estimate + above,
        level=level,
        standard_error=float(np.sqrt((moves**2).sum())),
        rows=rows,
        clusters=clusters,
    )


def bounds(
    moves: _arrays.FloatArray, level: float, freedom: float = math.inf
) -> tuple[float, float]:
    """How far below and above an estimate the truth may lie; both added to the estimate.

    `moves` are the rows' parts of the estimate's error, shape (n,), of mean about 0: the squares
    sum to its variance. The studentised error is made symmetric by a cubic in its skewness, and
    Student's quantiles are brought back through the cubic: without skew this is +-t errors.

    Source: Hall 1992, On the removal of skewness by transformation.
    """
    error = float(np.sqrt((moves**2).sum()))
    t = float(special.stdtrit(freedom, (1 + _arrays.inside("level", level, 0, 1)) / 2))
    if error == 0:
        return 0.0, 0.0
    skew = float((moves**3).sum()) / error**3
    if abs(skew) < 1e-6:  # the limit, where the formula would divide zero by zero
        return -t * error, t * error

    def back(quantile: float) -> float:
        root = float(np.cbrt(1 + skew * (quantile - skew / 6)))
        return 3 / skew * (root - 1)

    # Never narrower than zero on a side: extreme skew of a few rows bends the cubic that far.
    return min(-error * back(t), 0.0), max(-error * back(-t), 0.0)
