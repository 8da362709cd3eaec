"""Estimates a binary classifier's performance before the labels come, from its own probabilities.

If a probability of 0.8 means that eight of ten such rows turn out positive, then the expected
loss of a row is known without its label. This sees decay that shows in the probabilities: inputs
that move to where the model is less sure (covariate shift).

**It is blind to concept drift.** When the relation of inputs to labels changes, the probabilities
stop meaning what they say, and every number here stays calm while the model fails. Only labels
show that. An uncalibrated model gives a wrong number from the start: check calibration on labelled
rows first, and feed calibrated probabilities.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats.performance import CLIP


@dataclass(frozen=True, kw_only=True)
class EstimatedPerformance:
    """A metric as it is expected to come out, and how far chance may move it.

    `standard_error` counts both which rows came and which labels they will get; `label_error`
    only the labels: realised minus estimated lies within about 2 label errors in 95% of windows
    if the probabilities mean what they say, so a larger gap is evidence of concept drift.
    """

    estimate: float
    standard_error: float
    label_error: float
    rows: int


def expected_brier(
    probabilities: npt.ArrayLike, predictions: npt.ArrayLike | None = None
) -> EstimatedPerformance:
    """Brier score to expect, within [0, 1].

    Mean of p (1 - f)^2 + (1 - p) f^2, where p is the calibrated probability and f the one that the
    model answered (`predictions`, p itself if not given).

    Weak at: blind to concept drift, and wrong if p is not calibrated.

    probabilities, predictions: shape (n,), n >= 2, within [0, 1].
    Raises ValueError for NaN, values outside [0, 1] or unequal lengths.
    Source: NannyML, confidence-based performance estimation; Guillory et al. 2021, Predicting with
    confidence on unseen distributions.

    >>> expected_brier([0.5, 0.5]).estimate
    0.25
    """
    p, f = _inputs(probabilities, predictions)
    return _expected(p, (1 - f) ** 2, f**2)


def expected_log_loss(
    probabilities: npt.ArrayLike, predictions: npt.ArrayLike | None = None
) -> EstimatedPerformance:
    """Log loss to expect, in nats: the mean cross-entropy of answered under calibrated.

    Weak at, shapes, errors, source: as `expected_brier`.

    >>> round(expected_log_loss([0.5, 0.5]).estimate, 3)
    0.693
    """
    p, f = _inputs(probabilities, predictions)
    f = np.clip(f, CLIP, 1 - CLIP)
    return _expected(p, -np.log(f), -np.log1p(-f))


def expected_accuracy(
    probabilities: npt.ArrayLike,
    predictions: npt.ArrayLike | None = None,
    *,
    threshold: float = 0.5,
) -> EstimatedPerformance:
    """Accuracy to expect of deciding 1 where the answered probability is `threshold` or more.

    Weak at, shapes, errors, source: as `expected_brier`; also ValueError for a threshold outside
    (0, 1).

    >>> expected_accuracy([0.75, 0.25]).estimate
    0.75
    """
    _arrays.inside("threshold", threshold, 0, 1)
    p, f = _inputs(probabilities, predictions)
    yes = (f >= threshold).astype(np.float64)
    return _expected(p, yes, 1 - yes)


def expected_roc_auc(
    probabilities: npt.ArrayLike, scores: npt.ArrayLike | None = None
) -> EstimatedPerformance:
    """ROC AUC to expect: over pairs, each weighted by its chance to be (positive, negative).

    `scores` are what rows are ranked by, the calibrated probabilities if not given.

    Weak at: as `expected_brier`; fewer than about ten expected positives or negatives, where
    the expected ratio is not the ratio of expectations and the error is too small.

    probabilities: shape (n,), n >= 2, within [0, 1]; scores: shape (n,), any unit.
    Raises ValueError for NaN, unequal lengths, or when all probabilities are 0, or all 1.
    Source: NannyML, confidence-based performance estimation; the error by the influence function
    of DeLong, DeLong and Clarke-Pearson 1988 with labels replaced by probabilities.

    >>> round(expected_roc_auc([0.1, 0.9]).estimate, 3)
    0.988
    """
    p = _arrays.probabilities("probabilities", probabilities)
    s = p if scores is None else _arrays.vector("scores", scores)
    _arrays.same_length(probabilities=p, scores=s)
    q = 1 - p
    pairs = p.sum() * q.sum() - (p * q).sum()
    if p.size < 2 or pairs <= 0:
        message = "probabilities must leave room for both labels, received all 0, all 1 or one row"
        raise ValueError(message)
    _, place = np.unique(s, return_inverse=True)
    positive, negative = np.bincount(place, weights=p), np.bincount(place, weights=q)
    below = (np.cumsum(negative) - negative / 2)[place]
    above = (positive.sum() - np.cumsum(positive) + positive / 2)[place]
    # A row is never paired with itself: its own half is taken out.
    won = (p * (below - q / 2)).sum()
    area = won / pairs
    if_positive = (below / q.sum() - area) / p.mean()
    if_negative = (above / p.sum() - area) / q.mean()
    return EstimatedPerformance(
        estimate=float(area),
        standard_error=float(np.sqrt((p * if_positive**2 + q * if_negative**2).mean() / p.size)),
        label_error=float(np.sqrt((p * q * (if_positive - if_negative) ** 2).mean() / p.size)),
        rows=p.size,
    )


def _inputs(
    probabilities: npt.ArrayLike, predictions: npt.ArrayLike | None
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    p = _arrays.probabilities("probabilities", probabilities)
    f = p if predictions is None else _arrays.probabilities("predictions", predictions)
    _arrays.same_length(probabilities=p, predictions=f)
    if p.size < 2:
        message = f"probabilities must have at least 2 values, received {p.size}"
        raise ValueError(message)
    return p, f


def _expected(
    p: _arrays.FloatArray, if_positive: _arrays.FloatArray, if_negative: _arrays.FloatArray
) -> EstimatedPerformance:
    rows = p * if_positive + (1 - p) * if_negative
    labels = p * (1 - p) * (if_positive - if_negative) ** 2
    return EstimatedPerformance(
        estimate=float(rows.mean()),
        # The law of total variance: of the rows' expectations, plus of the labels given the rows.
        standard_error=float(np.sqrt((rows.var(ddof=1) + labels.mean()) / p.size)),
        label_error=float(np.sqrt(labels.mean() / p.size)),
        rows=p.size,
    )
