"""Means of cells and what their contrasts vary by, when rows come in units: one formula for many."""

import math
from dataclasses import dataclass

import numpy as np

from keepwell.stats import _arrays, _skewness
from keepwell.stats.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Rows summed by unit and cell. `deviations` are sums of x - cell's mean, over cell's rows.

    Shapes: means, rows, units (C,); of_unit, of_cell, deviations (pairs,).
    """

    means: _arrays.FloatArray
    rows: _arrays.IntArray
    units: _arrays.IntArray
    of_unit: _arrays.IntArray
    of_cell: _arrays.IntArray
    deviations: _arrays.FloatArray

    def contrast(self, weights: _arrays.FloatArray, level: float) -> Interval:
        """Interval of the sum of weights * means; its `rows` and `clusters` are those it uses.

        The variance is by unit (Liang and Zeger 1986), the quantile Student's with Welch's and
        Satterthwaite's degrees of freedom, the bounds corrected for skew (Hall 1992).
        """
        parts = weights[self.of_cell] * self.deviations
        moves = np.bincount(self.of_unit, weights=parts).astype(np.float64)
        by_cell = np.bincount(self.of_cell, weights=parts**2, minlength=self.means.size)
        spread = float((by_cell**2 / (self.units - 1)).sum())
        freedom = float(by_cell.sum()) ** 2 / spread if spread > 0 else math.inf
        estimate = float(weights @ self.means)
        used = weights != 0
        return _skewness.interval(
            estimate,
            moves,
            level=level,
            freedom=freedom,
            rows=int(self.rows[used].sum()),
            clusters=int(self.units[used].sum()),
        )


def cells(
    x: _arrays.FloatArray,
    cell: _arrays.IntArray,
    unit: _arrays.IntArray,
    count: int,
    weights: _arrays.FloatArray | None = None,
) -> Cells:
    """Sum rows by unit and cell, cells 0 to count - 1; each must hold at least two units.

    With `weights` the means are weighted; the weights are taken as given, not as drawn.
    """
    rows = np.bincount(cell, minlength=count)
    w = np.ones(x.size) if weights is None else weights
    mass = np.bincount(cell, weights=w, minlength=count)
    mass = np.where(mass > 0, mass, 1.0)
    means = np.bincount(cell, weights=w * x, minlength=count) / mass
    pairs, place = np.unique(unit * count + cell, return_inverse=True)
    of_cell = pairs % count
    units = np.bincount(of_cell, minlength=count)
    # The units' deviations from their own mean are a little small: n / (n - 1) in each cell.
    scale = np.sqrt(units / np.maximum(units - 1, 1)) / mass
    deviations = np.bincount(place, weights=w * (x - means[cell])) * scale[of_cell]
    return Cells(
        means=means,
        rows=rows,
        units=units,
        of_unit=pairs // count,
        of_cell=of_cell,
        deviations=deviations,
    )
