"""How far a current sample is from its reference: by size (an effect) and by chance (a p-value)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats.histogram import Histogram

Binned = Histogram | npt.ArrayLike
"""A histogram, or counts of shape (k,) whose bins mean the same on both sides."""

# Half a value added to every bin (Krichevsky and Trofimov 1981): keeps empty bins finite, and is
# too little to hide a bin that truly emptied.
PSEUDO_COUNT = 0.5


@dataclass(frozen=True, kw_only=True)
class DriftTest:
    """A comparison of two samples.

    `statistic` is what was referred to its distribution under no drift, `p_value` the chance of
    as much under no drift, `effect` a size that does not grow with the number of rows (its unit
    is named by the function), `degrees_of_freedom` 0 where the distribution has none.
    """

    statistic: float
    p_value: float
    effect: float
    degrees_of_freedom: int
    reference_rows: int
    current_rows: int


def psi(reference: Binned, current: Binned) -> float:
    """Measure the population stability index: symmetric relative entropy of two samples, in nats.

    The sum over bins of (current share - reference share) * log(current share / reference share),
    0 for equal shares. A histogram's missing values count as one more bin.

    Weak at: it depends on the bins, and on the number of rows (under no drift its mean is
    (bins - 1) * (1/n + 1/m), so the customary 0.1 and 0.2 mean nothing for small windows); use
    `psi_test` for that. Half a value is added to every bin, so equal shares at unequal row
    numbers give slightly more than 0.

    Raises ValueError for different bins, negative counts, or a side without rows.
    Source: Yurdakul and Naranjo 2020, Statistical properties of the population stability index,
    Journal of Risk Model Validation 14(4).

    >>> round(psi([50, 50], [80, 20]), 3)
    0.406
    >>> psi([50, 50], [50, 50])
    0.0
    """
    left, right = _pair(reference, current)
    p, q = _smooth(left), _smooth(right)
    return float(((q - p) * np.log(q / p)).sum())


def psi_test(reference: Binned, current: Binned) -> DriftTest:
    """Whether a stability index is more than the row numbers explain.

    Under no drift PSI * n * m / (n + m) is about chi-square with (bins - 1) degrees of freedom.
    `effect` is the index above its mean under no drift, in nats, never under 0: it may be compared
    between windows of different size.

    Weak at: rows that come in correlated groups (flights of a day) make the p-value far too small;
    compare the index of windows with that of reference windows instead (`detection.robust_z`).
    Expected counts under about 5 in a bin make it approximate.

    Raises ValueError as `psi`. Source: Yurdakul and Naranjo 2020.

    >>> small, large = psi_test([50, 50], [30, 20]), psi_test([5000, 5000], [3000, 2000])
    >>> round(small.p_value, 2), large.p_value < 1e-9
    (0.25, True)
    """
    left, right = _pair(reference, current)
    freedom = max(int(((left + right) > 0).sum()) - 1, 0)
    n, m = left.sum(), right.sum()
    index = psi(left, right)
    statistic = index * n * m / (n + m)
    return DriftTest(
        statistic=float(statistic),
        p_value=float(special.chdtrc(freedom, statistic)) if freedom else 1.0,
        effect=float(max(index - freedom * (n + m) / (n * m), 0.0)),
        degrees_of_freedom=freedom,
        reference_rows=int(n),
        current_rows=int(m),
    )


def jensen_shannon(reference: Binned, current: Binned) -> float:
    """Jensen-Shannon distance of two binned samples: 0 for equal shares, 1 for no overlap.

    The square root of the mean relative entropy (in bits) of each side to their mixture; a
    metric, bounded, and finite with empty bins, so nothing is added to them.

    Weak at: like the stability index it is above 0 by chance, about sqrt(bins * (1/n + 1/m)) / 2.

    Raises ValueError for different bins, negative counts, or a side without rows.
    Source: Endres and Schindelin 2003, A new metric for probability distributions.

    >>> jensen_shannon([10, 0], [0, 10]), jensen_shannon([10, 20], [1, 2])
    (1.0, 0.0)
    """
    left, right = _pair(reference, current)
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2
    # rel_entr is 0 where its first argument is 0; max: rounding may leave -1e-17.
    bits = (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / (2 * np.log(2))
    return float(np.sqrt(min(max(float(bits), 0.0), 1.0)))


def ks_two_sample(reference: npt.ArrayLike, current: npt.ArrayLike) -> DriftTest:
    """Kolmogorov-Smirnov: the largest gap between two empirical distribution functions.

    `statistic` and `effect` are the gap, within [0, 1]. The p-value is of the limiting
    distribution: thousands of times faster than the exact one, and from 300 rows a side between
    0.001 below and 0.02 above it.

    Weak at: differences in the tails; ties make it conservative; correlated rows make it far too
    sure.

    reference: shape (n,), current: shape (m,); NaN are left out (watch their share apart).
    Raises ValueError if a side has no value left.
    Source: Smirnov 1939; Marsaglia, Tsang and Wang 2003 for the limiting distribution.

    >>> ks_two_sample([1, 2, 3, 4], [3, 4, 5, 6]).statistic
    0.5
    """
    left = _present("reference", reference)
    right = _present("current", current)
    every = np.concatenate([left, right])
    below_left = np.searchsorted(left, every, side="right") / left.size
    below_right = np.searchsorted(right, every, side="right") / right.size
    return _ks(float(np.abs(below_left - below_right).max()), left.size, right.size)


def ks_binned(reference: Binned, current: Binned) -> DriftTest:
    """Kolmogorov-Smirnov from histograms: the largest gap at the edges.

    Never more than `ks_two_sample` on the rows behind, so its p-value is on the safe side; the
    loss is at most the largest share of a bin. Bins must be in order; a histogram's missing
    values are left out.

    Raises ValueError for different bins, negative counts, or a side without rows.

    >>> ks_binned([10, 10, 0], [0, 10, 10]).effect
    0.5
    """
    left, right = _pair(reference, current, missing=False)
    gap = np.abs(np.cumsum(left) / left.sum() - np.cumsum(right) / right.sum()).max()
    return _ks(float(gap), int(left.sum()), int(right.sum()))


def chi_square(reference: Binned, current: Binned) -> DriftTest:
    """Pearson's chi-square of homogeneity, for categories: are both sides' shares the same.

    `effect` is Cramer's V, within [0, 1]. Bins empty on both sides are left out. No continuity
    correction.

    Weak at: expected counts under about 5; many rare categories (group them first); correlated
    rows; many rows, where any difference is significant: read the effect.

    Raises ValueError for different bins, negative counts, or a side without rows.
    Source: Pearson 1900; Cramer 1946 for V.

    >>> test = chi_square([50, 50], [80, 20])
    >>> round(test.statistic, 2), test.degrees_of_freedom, round(test.effect, 3)
    (19.78, 1, 0.314)
    """
    left, right = _pair(reference, current)
    n, m = left.sum(), right.sum()
    both = (left + right)[(left + right) > 0]
    gap = (left / n - right / m)[(left + right) > 0]
    statistic = float((gap**2 / both).sum() * n * m)
    freedom = both.size - 1
    return DriftTest(
        statistic=statistic,
        p_value=float(special.chdtrc(freedom, statistic)) if freedom else 1.0,
        effect=float(np.sqrt(statistic / (n + m))),
        degrees_of_freedom=freedom,
        reference_rows=int(n),
        current_rows=int(m),
    )


def _ks(gap: float, n: int, m: int) -> DriftTest:
    return DriftTest(
        statistic=gap,
        p_value=float(special.kolmogorov(np.sqrt(n * m / (n + m)) * gap)),
        effect=gap,
        degrees_of_freedom=0,
        reference_rows=n,
        current_rows=m,
    )


def _present(name: str, values: npt.ArrayLike) -> _arrays.FloatArray:
    array = _arrays.vector(name, values, missing=True)
    array = np.sort(array[~np.isnan(array)])
    if not array.size:
        message = f"{name} must have at least one value that is not NaN, received none"
        raise ValueError(message)
    return array


def _pair(
    reference: Binned, current: Binned, *, missing: bool = True
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    if isinstance(reference, Histogram) and isinstance(current, Histogram):
        if reference.edges != current.edges:
            message = (
                "reference and current must have the same edges, "
                f"received {len(reference.edges)} and {len(current.edges)} edges that differ"
            )
            raise ValueError(message)
        left = np.asarray(reference.counts, dtype=np.float64)
        right = np.asarray(current.counts, dtype=np.float64)
        if missing and reference.missing + current.missing:
            left, right = np.append(left, reference.missing), np.append(right, current.missing)
    elif isinstance(reference, Histogram) or isinstance(current, Histogram):
        message = "reference and current must both be histograms or both be counts, received a mix"
        raise ValueError(message)  # noqa: TRY004 - one error for all bad input
    else:
        left = _arrays.counts("reference", reference)
        right = _arrays.counts("current", current)
    _arrays.same_length(reference=left, current=right)
    for name, side in (("reference", left), ("current", right)):
        if side.sum() <= 0:
            message = f"{name} must count at least one row, received all zeros"
            raise ValueError(message)
    return left, right


def _smooth(side: _arrays.FloatArray) -> _arrays.FloatArray:
    shares: _arrays.FloatArray = (side + PSEUDO_COUNT) / (side + PSEUDO_COUNT).sum()
    return shares
