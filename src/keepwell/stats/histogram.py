"""Histograms with fixed edges, which replicas fill apart and the monitor adds up."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many values fell between fixed edges, and how many were missing.

    Bin i holds edges[i-1] <= value < edges[i]; the first bin reaches down to -inf and the last up
    to +inf, so k edges make k + 1 bins and no value is lost.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int = 0

    def __post_init__(self) -> None:
        """Refuse edges out of order, and counts that do not fit the edges."""
        _check_edges(np.asarray(self.edges, dtype=np.float64))
        if len(self.counts) != len(self.edges) + 1:
            message = (
                f"counts must have one entry more than edges ({len(self.edges) + 1}), "
                f"received {len(self.counts)}"
            )
            raise ValueError(message)
        if min(*self.counts, self.missing, 0) < 0:
            message = "counts and missing must be zero or more, received a negative one"
            raise ValueError(message)

    @property
    def present(self) -> int:
        """Values counted, without the missing ones."""
        return sum(self.counts)

    @property
    def total(self) -> int:
        """Values seen, with the missing ones."""
        return self.present + self.missing


def edges_from_reference(values: npt.ArrayLike, bins: int = 10) -> tuple[float, ...]:
    """Edges that cut the reference into about `bins` equal shares.

    A value so frequent that it fills a share of its own (a point mass, as zero in rainfall) gets a
    bin of its own, so that its share is watched by itself; the number of bins then differs from
    `bins`. Constant values give one edge: at or below it, and above it.

    Weak at: values below the reference's least fall into its first bin, and above its greatest
    into the last; a range check sees those, a histogram does not. Tails finer than 1/bins blur.

    values: shape (n,), any unit; NaN are left out; at least one value must be finite.
    Raises ValueError if none is finite, or `bins` is under 2.

    >>> edges_from_reference([0, 0, 0, 0, 0, 0, 1, 2, 3, 4], bins=4)
    (5e-324, 1.75)
    >>> edges_from_reference([1, 2, 3, 4], bins=2)
    (2.5,)
    """
    _arrays.at_least("bins", bins, 2)
    array = _arrays.vector("values", values, missing=True)
    array = np.sort(array[np.isfinite(array)])
    if not array.size:
        message = "values must have at least one finite value, received none"
        raise ValueError(message)
    cuts = np.quantile(array, np.linspace(0, 1, bins + 1))
    distinct, times = np.unique(cuts, return_counts=True)
    heavy = distinct[times > 1]
    # nextafter: the half-open bin [v, nextafter(v)) holds v and nothing else.
    edges = np.unique(np.concatenate([cuts[1:-1], heavy, np.nextafter(heavy, np.inf)]))
    # An edge with nothing of the reference below it, or nothing between it and the next, would
    # make a bin that is empty by construction and costs every test a degree of freedom.
    below = np.searchsorted(array, edges, side="left")
    keep = np.diff(below, prepend=0) > 0
    keep &= below < array.size
    kept = edges[keep]
    if not kept.size:
        kept = np.nextafter(array[:1], np.inf)
    return tuple(float(edge) for edge in kept)


def count(values: npt.ArrayLike, edges: tuple[float, ...]) -> Histogram:
    """Count values between edges; NaN are counted as missing, infinities in the outer bins.

    values: shape (n,), n may be 0. Raises ValueError if the edges are not strictly increasing.

    >>> count([0.5, 1.0, 7.0, float("nan")], edges=(1.0, 2.0))
    Histogram(edges=(1.0, 2.0), counts=(1, 1, 1), missing=1)
    """
    array = _arrays.vector("values", values, least=0, missing=True)
    borders = np.asarray(edges, dtype=np.float64)
    _check_edges(borders)
    absent = np.isnan(array)
    places = np.searchsorted(borders, array[~absent], side="right")
    filled = np.bincount(places, minlength=borders.size + 1)
    return Histogram(
        edges=tuple(float(edge) for edge in borders),
        counts=tuple(int(n) for n in filled),
        missing=int(absent.sum()),
    )


def merge(first: Histogram, second: Histogram) -> Histogram:
    """Add two histograms of the same edges: the histogram of both sets of values together.

    Associative and commutative, so replicas may be added in any order.
    Raises ValueError if the edges differ.

    >>> merge(count([0.0], (1.0,)), count([2.0, 3.0], (1.0,))).counts
    (1, 2)
    """
    if first.edges != second.edges:
        message = (
            f"edges must be the same in both histograms, "
            f"received {len(first.edges)} and {len(second.edges)} edges that differ"
        )
        raise ValueError(message)
    return Histogram(
        edges=first.edges,
        counts=tuple(a + b for a, b in zip(first.counts, second.counts, strict=True)),
        missing=first.missing + second.missing,
    )


def _check_edges(edges: npt.NDArray[np.float64]) -> None:
    if not edges.size or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        message = f"edges must be one or more finite, increasing numbers, received {edges.tolist()}"
        raise ValueError(message)
