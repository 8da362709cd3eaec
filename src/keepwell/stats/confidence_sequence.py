"""Intervals for a mean that hold at every look at once, so a rollout may stop whenever it likes.

The state is a handful of sums in a frozen value: it can be kept in a record, and `update` returns
the next one. A paired comparison is the sequence of the rows' differences.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats._normal_mixture import Side, factor, log_evidence, precision


@dataclass(frozen=True, kw_only=True)
class ConfidenceSequence:
    """A confidence sequence for the mean of independent rows, from n, mean and squared deviations.

    With chance 1 - alpha the true mean lies between `lower` and `upper` at all looks together.
    The bound is that of the t-test martingale with a normal mixture over effect sizes, inverted:
    exact at every n for normal rows; for others its limit is the asymptotic confidence sequence
    mean +- sd * sqrt(2 (n r + 1) / (n^2 r) * log(sqrt(n r + 1) / alpha)), r = 1/c, which needs only
    a finite variance. It is narrowest at n = `tuned_for` (within 10% from a third to three times
    that), but valid for any.

    Weak at: heavy skew and rare events at few rows, since the variance is estimated: at alpha 0.05
    and looks after each of 2000 rows it missed the mean of exponential rows in 5% of sequences
    (one-sided, on the bad side, 7%) and that of events of 2% in 13% (15%). For error rates use
    `rate_limit` or `rate_comparison`, which are exact. Correlated rows need
    `ClusterConfidenceSequence`; a mean that itself moves is not covered. While all rows are equal
    there is no evidence about the spread, and the bounds stay infinite.

    alpha: chance of ever missing the mean, in (0, 1). tuned_for: rows at which a decision is hoped
    for, >= 2. first_look: rows before which the bounds are infinite.
    Raises ValueError for parameters outside these domains.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021 (2103.06476); Wang and Ramdas 2023
    (2310.03722) and Lai 1976 for the t form; Robbins 1970 for the mixture.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> sequence = ConfidenceSequence(alpha=0.05, tuned_for=500)
    >>> for _ in range(10):
    ...     sequence = sequence.update(rng.normal(0.3, 1.0, size=50))
    >>> sequence.count, round(sequence.lower, 2), round(sequence.upper, 2)
    (500, 0.13, 0.41)
    """

    alpha: float
    tuned_for: float
    side: Side = "both"
    first_look: int = 30
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _check(self.alpha, self.tuned_for, self.side, self.first_look)

    @classmethod
    def from_sums(
        cls,
        *,
        alpha: float,
        tuned_for: float,
        count: int,
        total: float,
        total_of_squares: float,
        side: Side = "both",
        first_look: int = 30,
    ) -> Self:
        """Start from sums that were kept elsewhere: n, sum x, sum x^2.

        Weak at: a mean far larger than the spread, where the sum of squares loses digits.
        Raises ValueError for sums that no rows can have.

        >>> ConfidenceSequence.from_sums(alpha=0.1, tuned_for=9, count=2, total=4.0,
        ...                              total_of_squares=10.0).squares
        2.0
        """
        _arrays.at_least("count", count, 0)
        mean = total / count if count else 0.0
        squares = total_of_squares - count * mean**2
        if squares < -1e-9 * max(total_of_squares, 1.0) or (count == 0 and total_of_squares != 0):
            message = (
                "total_of_squares must be at least total^2 / count, "
                f"received {total_of_squares:g}, {total:g}, {count}"
            )
            raise ValueError(message)
        return cls(
            alpha=alpha,
            tuned_for=tuned_for,
            side=side,
            first_look=first_look,
            count=count,
            mean=mean,
            squares=max(squares, 0.0),
        )

    def update(self, values: npt.ArrayLike) -> Self:
        """Add rows, shape (n,), n >= 0, in any order within the batch. NaN raise ValueError."""
        x = _arrays.vector("values", values, least=0)
        if not x.size:
            return self
        # Chan, Golub and LeVeque 1979: deviations are added, never large squares.
        count = self.count + x.size
        shift = float(x.mean()) - self.mean
        squares = float(((x - x.mean()) ** 2).sum())
        return replace(
            self,
            count=count,
            mean=self.mean + shift * x.size / count,
            squares=self.squares + squares + shift**2 * self.count * x.size / count,
        )

    @property
    def radius(self) -> float:
        """Distance of the bounds from the mean, in the unit of the rows; infinite at first."""
        if self.count < self.first_look or self.squares <= 0:
            return math.inf
        c = precision(self.alpha, self.tuned_for, self.side)
        ratio = factor(self.count, self.alpha, c, self.side)
        room = self.count - c * math.expm1(ratio)
        if room <= 0:
            return math.inf
        n = self.count
        return math.sqrt(math.expm1(ratio) * self.squares * (n + c) / (n * room))

    @property
    def lower(self) -> float:
        """Lower bound; -inf for side "upper"."""
        return -math.inf if self.side == "upper" else self.mean - self.radius

    @property
    def upper(self) -> float:
        """Upper bound; inf for side "lower"."""
        return math.inf if self.side == "lower" else self.mean + self.radius

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds now."""
        return not self.lower <= value <= self.upper

    def log_evidence(self, mean: float = 0.0) -> float:
        """Log evidence against this true mean now, in nats, as `multiplicity` adds it up.

        The bounds exclude the mean when it reaches -log(alpha). 0 before the first look.
        """
        if self.count < self.first_look or self.squares <= 0:
            return 0.0
        n, away = self.count, self.mean - mean
        c = precision(self.alpha, self.tuned_for, self.side)
        share = n**2 * away**2 / (self.squares + n * away**2)
        return log_evidence(n, share, c, side=self.side, away=away)


@dataclass(frozen=True, kw_only=True)
class ClusterConfidenceSequence:
    """A confidence sequence for the mean over rows that come in clusters, as flights in days.

    The observation is a whole cluster: its total and its size. For a candidate mean m the terms
    (total - m * size) have mean zero whatever the correlation within a cluster; the bounds are the
    m that the t-test martingale on these terms does not reject, found by solving a quadratic. So
    it also serves a ratio of two sums (errors by request, money by session).

    Weak at: it needs clusters, not rows: 10 are few, 30 are fine, and while evidence is too thin
    the bounds are infinite; clusters that depend on one another (days of one storm: use longer
    ones); one cluster far larger than the rest.

    alpha: chance of ever missing the mean. tuned_for: number of clusters at which a decision is
    hoped for, >= 2. first_look: clusters before which the bounds are infinite.
    Raises ValueError for parameters outside these domains.
    Source: as `ConfidenceSequence`; Fieller 1954 for the ratio; Liang and Zeger 1986 for clusters.

    >>> sequence = ClusterConfidenceSequence(alpha=0.05, tuned_for=20)
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> for _ in range(20):
    ...     rows = rng.normal() + rng.normal(5.0, 1.0, size=100)
    ...     sequence = sequence.update([rows.sum()], [rows.size])
    >>> round(sequence.lower, 1), round(sequence.mean, 1), round(sequence.upper, 1)
    (3.7, 4.6, 5.4)
    """

    alpha: float
    tuned_for: float
    side: Side = "both"
    first_look: int = 5
    clusters: int = 0
    size: float = 0.0
    pivot: float = 0.0
    total: float = 0.0
    total_squares: float = 0.0
    size_squares: float = 0.0
    products: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _check(self.alpha, self.tuned_for, self.side, self.first_look)

    def update(self, totals: npt.ArrayLike, sizes: npt.ArrayLike) -> Self:
        """Add whole clusters: their sums and numbers of rows, shapes (g,), g >= 0.

        A cluster must be complete: one that is split over two updates counts as two.
        Raises ValueError for NaN, unequal lengths or a size that is not positive.
        """
        s = _arrays.vector("totals", totals, least=0)
        n = _arrays.vector("sizes", sizes, least=0)
        _arrays.same_length(totals=s, sizes=n)
        if not s.size:
            return self
        if (n <= 0).any():
            message = f"sizes must be positive, received {n.min():g}"
            raise ValueError(message)
        # Sums are of deviations from the first cluster's mean: a large mean then costs no digits.
        pivot = self.pivot if self.clusters else float(s[0] / n[0])
        away = s - pivot * n
        return replace(
            self,
            clusters=self.clusters + s.size,
            pivot=pivot,
            size=self.size + float(n.sum()),
            total=self.total + float(away.sum()),
            total_squares=self.total_squares + float((away**2).sum()),
            size_squares=self.size_squares + float((n**2).sum()),
            products=self.products + float((away * n).sum()),
        )

    @property
    def mean(self) -> float:
        """Mean over all rows so far; 0 before the first."""
        return self.pivot + (self.total / self.size if self.clusters else 0.0)

    @property
    def lower(self) -> float:
        """Lower bound; -inf for side "upper", and while evidence is too thin."""
        return -math.inf if self.side == "upper" else self._bounds()[0]

    @property
    def upper(self) -> float:
        """Upper bound; inf for side "lower", and while evidence is too thin."""
        return math.inf if self.side == "lower" else self._bounds()[1]

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds now."""
        return not self.lower <= value <= self.upper

    def _bounds(self) -> tuple[float, float]:
        infinite = (-math.inf, math.inf)
        if self.clusters < self.first_look:
            return infinite
        c = precision(self.alpha, self.tuned_for, self.side)
        ratio = factor(self.clusters, self.alpha, c, self.side)
        # Rejected where  e^f S(m)^2 / (g + c) > (e^f - 1) V(m),  S = total - m size,
        # V = sum of (total - m size)^2 by cluster: a parabola in m, written around the mean.
        share = math.exp(ratio) / (self.clusters + c)
        excess = math.expm1(ratio)
        centre = self.total / self.size
        spread = self.total_squares - 2 * centre * self.products + centre**2 * self.size_squares
        cross = centre * self.size_squares - self.products
        square = share * self.size**2 - excess * self.size_squares
        if square <= 0 or spread <= 0:
            return infinite
        # square d^2 - 2 excess cross d - excess spread < 0, with d = m - mean.
        half = excess * cross / square
        root = math.sqrt(half**2 + excess * spread / square)
        return (self.mean + half - root, self.mean + half + root)


def _check(alpha: float, tuned_for: float, side: str, first_look: int) -> None:
    _arrays.inside("alpha", alpha, 0, 1)
    _arrays.at_least("tuned_for", tuned_for, 2)
    _arrays.one_of("side", side, ("both", "lower", "upper"))
    _arrays.at_least("first_look", first_look, 2)
