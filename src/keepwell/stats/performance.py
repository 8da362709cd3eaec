"""How good predictions were, once the labels are there: whole-sample metrics and losses by row."""

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays

# Probabilities are kept this far from 0 and 1 in logarithms: the float64 resolution, as
# scikit-learn does, so one sure and wrong row costs 36 nats and not infinity.
CLIP = float(np.finfo(np.float64).eps)


def log_loss_rows(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> _arrays.FloatArray:
    """Each row's minus log of the probability given to what happened, in nats, shape (n,).

    Weak at: rows sure and wrong dominate every mean of it.

    labels: shape (n,), 0 or 1; probabilities of label 1: shape (n,), within [0, 1].
    Raises ValueError for NaN, other labels, values outside [0, 1] or unequal lengths.
    Source: Good 1952, Rational decisions.

    >>> log_loss_rows([1, 0], [0.5, 0.1]).round(3).tolist()
    [0.693, 0.105]
    """
    y, p = _binary(labels, probabilities)
    p = np.clip(p, CLIP, 1 - CLIP)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean of `log_loss_rows`, in nats: rewards probabilities that are both sharp and right.

    Weak at, shapes, errors, source: as `log_loss_rows`.

    >>> round(log_loss([1, 0], [0.5, 0.1]), 3)
    0.399
    """
    return float(log_loss_rows(labels, probabilities).mean())


def brier_rows(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> _arrays.FloatArray:
    """Each row's squared gap of probability and label, within [0, 1], shape (n,).

    Weak at: rare labels, where all models score near 0.

    labels: shape (n,), 0 or 1; probabilities of label 1: shape (n,), within [0, 1].
    Raises ValueError for NaN, other labels, values outside [0, 1] or unequal lengths.
    Source: Brier 1950, Verification of forecasts expressed in terms of probability.

    >>> brier_rows([1, 0], [0.5, 0.1]).round(2).tolist()
    [0.25, 0.01]
    """
    y, p = _binary(labels, probabilities)
    return (p - y) ** 2


def brier(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean of `brier_rows`: 0 is perfect, 0.25 is what always saying one half earns.

    Weak at, shapes, errors, source: as `brier_rows`.

    >>> brier([1, 0], [0.5, 0.0])
    0.125
    """
    return float(brier_rows(labels, probabilities).mean())


def squared_error_rows(targets: npt.ArrayLike, predictions: npt.ArrayLike) -> _arrays.FloatArray:
    """Each row's squared error, in the target's unit squared, shape (n,).

    Weak at: a few large errors dominate every mean of it.

    targets, predictions: shape (n,). Raises ValueError for NaN or unequal lengths.
    Source: Gauss 1809.

    >>> squared_error_rows([1.0, 2.0], [1.0, 5.0]).tolist()
    [0.0, 9.0]
    """
    y = _arrays.vector("targets", targets)
    f = _arrays.vector("predictions", predictions)
    _arrays.same_length(targets=y, predictions=f)
    return (f - y) ** 2


def roc_auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Estimate the chance that a random positive row outranks a random negative one, ties half.

    Unchanged by any increasing transformation of the scores, so it says nothing of calibration.

    Weak at: rare labels, where a fine-looking value goes with few true alarms; needs both labels.

    labels: shape (n,), 0 or 1; scores: shape (n,), any unit.
    Raises ValueError for NaN, unequal lengths, or when only one label occurs.
    Source: Hanley and McNeil 1982; Mann and Whitney 1947.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    y = _arrays.labels("labels", labels)
    s = _arrays.vector("scores", scores)
    _arrays.same_length(labels=y, scores=s)
    positives = int(y.sum())
    negatives = y.size - positives
    if not positives or not negatives:
        message = f"labels must hold both 0 and 1, received {y.size} times {y[0]:g}"
        raise ValueError(message)
    _, position, times = np.unique(s, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(times) - (times - 1) / 2
    above = middle_rank[position][y == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = 10
) -> float:
    """Mean gap between what bins of rows were promised and what happened, within [0, 1].

    Bins hold equally many rows (ties stay together), so none is empty and skewed probabilities
    do not crowd into one.

    Weak at: above 0 by chance, by about sqrt(bins / n) / 3, so compare only at equal n and bins;
    gaps that cancel within a bin are not seen.

    labels: shape (n,), 0 or 1; probabilities: shape (n,). Raises ValueError as `brier_rows`, or
    for bins < 1. Source: Naeini, Cooper and Hauskrecht 2015; Nguyen and O'Connor 2015 for the bins.

    >>> round(expected_calibration_error([0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5], bins=1), 2)
    0.25
    """
    y, p = _binary(labels, probabilities)
    _arrays.at_least("bins", bins, 1)
    cuts = np.unique(np.quantile(p, np.linspace(0, 1, int(bins) + 1)[1:-1]))
    place = np.searchsorted(cuts, p, side="left")
    return float(np.abs(np.bincount(place, weights=p - y)).sum() / y.size)


def calibration_in_the_large(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean probability minus share of label 1: above 0, the model promises too much.

    Weak at: too high here and too low there cancel; read with `expected_calibration_error`.

    labels, probabilities: shape (n,). Raises ValueError as `brier_rows`.
    Source: Cox 1958; Steyerberg 2009, Clinical prediction models.

    >>> round(calibration_in_the_large([0, 1], [0.7, 0.7]), 2)
    0.2
    """
    y, p = _binary(labels, probabilities)
    return float(p.mean() - y.mean())


def accuracy(labels: npt.ArrayLike, decisions: npt.ArrayLike) -> float:
    """Share of rows whose decision is the label, for any number of classes.

    Weak at: unequal classes, where always saying the common one scores high.

    labels, decisions: shape (n,), keys of one type. Raises ValueError for unequal lengths, n = 0.

    >>> accuracy(["cat", "dog"], ["cat", "cat"])
    0.5
    """
    y, d = np.asarray(labels), np.asarray(decisions)
    if y.ndim != 1 or y.shape != d.shape or not y.size:
        message = (
            f"labels and decisions must share a shape (n,), n >= 1, received {y.shape}, {d.shape}"
        )
        raise ValueError(message)
    return float(np.mean(y == d))


def multiclass_log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean minus log of the probability given to the class that happened, in nats.

    Weak at: as `log_loss_rows`.

    labels: shape (n,), class numbers 0..k-1; probabilities: shape (n, k), rows sum to 1.
    Raises ValueError for NaN, other labels, values outside [0, 1], or rows that do not sum to 1
    within 1e-6. Source: Good 1952.

    >>> round(multiclass_log_loss([0, 2], [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), 3)
    0.458
    """
    y = _arrays.vector("labels", labels)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[0] != y.size or p.shape[1] < 2:
        message = f"probabilities must have shape ({y.size}, k), k >= 2, received {p.shape}"
        raise ValueError(message)
    _arrays.probabilities("probabilities", p.ravel())
    off = float(np.abs(p.sum(axis=1) - 1).max())
    if off > 1e-6:
        message = f"probabilities must sum to 1 in each row, received a row off by {off:g}"
        raise ValueError(message)
    if not np.isin(y, np.arange(p.shape[1])).all():
        message = f"labels must be class numbers 0..{p.shape[1] - 1}, received others"
        raise ValueError(message)
    given = p[np.arange(y.size), y.astype(np.int64)]
    return float(-np.log(np.clip(given, CLIP, 1)).mean())


def mean_absolute_error(targets: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Mean size of the errors, in the target's unit.

    Weak at: it is least for the median, so a model may win it by ignoring rare large values.

    targets, predictions: shape (n,). Raises ValueError for NaN or unequal lengths.
    Source: Laplace 1774.

    >>> mean_absolute_error([1.0, 2.0], [1.0, 5.0])
    1.5
    """
    y = _arrays.vector("targets", targets)
    f = _arrays.vector("predictions", predictions)
    _arrays.same_length(targets=y, predictions=f)
    return float(np.abs(f - y).mean())


def root_mean_squared_error(targets: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Root of the mean squared error, in the target's unit.

    Weak at: a few large errors decide it.

    targets, predictions: shape (n,). Raises ValueError for NaN or unequal lengths.
    Source: Gauss 1809.

    >>> root_mean_squared_error([0.0, 0.0], [3.0, 4.0]) == 12.5**0.5
    True
    """
    return float(np.sqrt(squared_error_rows(targets, predictions).mean()))


def r2(targets: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Share of the targets' variance explained: 1 is perfect, 0 the mean's, below 0 worse.

    Weak at: it moves with the spread of the targets, so windows are not comparable by it.

    targets, predictions: shape (n,), n >= 2. Raises ValueError for NaN, unequal lengths, or
    constant targets (there is no variance to explain). Source: Wright 1921.

    >>> r2([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    0.0
    """
    errors = squared_error_rows(targets, predictions)
    y = _arrays.vector("targets", targets, least=2)
    spread = ((y - y.mean()) ** 2).sum()
    if np.ptp(y) == 0:
        message = f"targets must vary, received {y.size} times {y[0]:g}"
        raise ValueError(message)
    return float(1 - errors.sum() / spread)


def _binary(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    y = _arrays.labels("labels", labels)
    p = _arrays.probabilities("probabilities", probabilities)
    _arrays.same_length(labels=y, probabilities=p)
    return y, p
