"""What another policy would have earned on the requests of a log, from the propensities in it.

"What would challenger B have earned last week?" is the value of the policy that always takes B.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays, _skewness
from keepwell.stats.intervals import Interval

LEAST_EFFECTIVE = 50.0
"""Effective rows (or clusters) under which an estimate is refused: below, a handful of rows with
large weights is the whole answer, and its interval is no longer to be believed."""


class EffectiveSampleTooSmall(ValueError):
    """The log says too little of the policy: it took other arms. Nothing is estimated.

    effective: rows (or clusters) that the weights leave; least: how many are asked for.
    """

    def __init__(self, effective: float, least: float, rows: int) -> None:
        self.effective = effective
        self.least = least
        super().__init__(
            f"the effective sample must be at least {least:g}, received {effective:.1f} from "
            f"{rows} rows: the log took too few of the choices this policy makes; log for longer, "
            f"raise the exploration floor, or ask for a policy closer to the logged one"
        )


@dataclass(frozen=True, kw_only=True)
class PolicyValue:
    """A policy's mean reward, its gain over what was logged, and how far the log supports it.

    `weights` is the interval of the mean weight, which is 1 in truth: if it excludes 1 (and
    nothing was clipped), the logged propensities are not those that the choices were made with.
    `clipped` rows had their weight cut to `clip`, which biases towards the model's or a lower value.
    """

    value: Interval
    gain: Interval
    logged: float
    effective: float
    largest_weight: float
    weights: Interval
    clip: float
    clipped: int


def ips(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    clip: float = math.inf,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
    least: float = LEAST_EFFECTIVE,
) -> PolicyValue:
    """Inverse propensity scoring: the mean of `target / propensity * reward`.

    Weak at: rare choices of the log that the policy likes, which give few rows large weights;
    rewards far from zero, where `snips` or `doubly_robust` vary less; propensities that were not
    logged but guessed; rows of one unit (name `clusters`).

    reward: shape (n,), n >= 2. propensity: shape (n,), in (0, 1], of the logged choice. target:
    shape (n,), within [0, 1], the policy's probability of that choice. clip > 0: largest weight.
    Raises ValueError otherwise; EffectiveSampleTooSmall, a ValueError, where
    `(sum w)^2 / sum w^2` is under `least`.
    Source: Horvitz and Thompson 1952; Strehl, Langford, Li and Kakade 2010 (1003.0120); Kish 1965
    for the effective sample; Ionides 2008 for clipping; Liang and Zeger 1986; Hall 1992 for skew.

    >>> rng = np.random.default_rng(0)
    >>> arm = rng.random(4000) < 0.2
    >>> reward = rng.random(4000) < np.where(arm, 0.3, 0.2)
    >>> found = ips(reward, np.where(arm, 0.2, 0.8), arm)
    >>> round(found.value.lower, 2), round(found.value.upper, 2), round(found.effective)
    (0.29, 0.36, 833)
    """
    y, w, cut = _weights(reward, propensity, target, clip)
    return _valued(y, w * y, w, cut, clip=clip, clusters=clusters, level=level, least=least)


def snips(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    clip: float = math.inf,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
    least: float = LEAST_EFFECTIVE,
) -> PolicyValue:
    """Self-normalised inverse propensity scoring: `sum w reward / sum w`.

    It moves with the rewards (adding 1 to all adds 1), stays within their range, and usually varies
    less than `ips`; the interval is by linearisation.

    Weak at: as `ips`, and a bias of order 1 / effective sample.

    Parameters, errors, source: as `ips`; Swaminathan and Joachims 2015; Hesterberg 1995.

    >>> snips([5.0] * 100, [0.5] * 100, [1.0, 0.0] * 50, least=40).value.estimate
    5.0
    """
    y, w, cut = _weights(reward, propensity, target, clip)
    mean = float(w.mean())
    if mean == 0:
        raise EffectiveSampleTooSmall(0.0, least, y.size)
    value = float((w * y).sum() / w.sum())
    parts = value + w * (y - value) / mean
    return _valued(y, parts, w, cut, clip=clip, clusters=clusters, level=level, least=least)


def doubly_robust(
    reward: npt.ArrayLike,
    propensity: npt.ArrayLike,
    arm: npt.ArrayLike,
    target: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    clip: float = math.inf,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
    least: float = LEAST_EFFECTIVE,
) -> PolicyValue:
    """The model's prediction for the policy, plus the weighted errors it made on the log.

    Right if the propensities are, however wrong the model; the better the model, the narrower.
    Take `predicted` from `outcome_model.crossfit_predictions`: a model that saw the row it predicts
    makes the interval too narrow.

    Weak at: as `ips` where the model says nothing; rows logged by a bandit that learned from the
    rows before them (use `adaptive_effects`).

    reward, propensity: as `ips`. arm: shape (n,), the logged choice, 0 to K - 1. target: shape
    (n, K), the policy's probabilities, or (K,) where they are the same on every row. predicted:
    shape (n, K). Raises ValueError and source: as `ips`; Robins, Rotnitzky and Zhao 1994; Dudik,
    Langford and Li 2011 (1103.4601); Chernozhukov et al. 2018 (1608.00060).

    >>> rng = np.random.default_rng(0)
    >>> arm = rng.integers(2, size=4000)
    >>> reward = 10 + arm + rng.normal(size=4000)
    >>> predicted = np.tile([10.0, 11.0], (4000, 1))
    >>> always_1 = doubly_robust(reward, np.full(4000, 0.5), arm, [0.0, 1.0], predicted)
    >>> ips_width = ips(reward, np.full(4000, 0.5), arm).value.standard_error
    >>> round(always_1.value.estimate, 1), round(ips_width / always_1.value.standard_error, 1)
    (11.0, 7.9)
    """
    y = _arrays.vector("reward", reward, least=2)
    policy = np.asarray(target, dtype=np.float64)
    arms = policy.shape[-1] if policy.ndim else 0
    if policy.shape not in {(y.size, arms), (arms,)} or arms < 1:
        message = f"target must have shape ({y.size}, K) or (K,), received {policy.shape}"
        raise ValueError(message)
    if (policy < 0).any() or not (np.abs(policy.sum(axis=-1) - 1) < 1e-6).all():
        message = "target must hold probabilities that sum to 1 over the arms"
        raise ValueError(message)
    policy = np.broadcast_to(policy, (y.size, arms))
    taken = _arrays.choices("arm", arm, y.size, arms)
    model = np.asarray(predicted, dtype=np.float64)
    if model.shape != (y.size, arms) or not np.isfinite(model).all():
        message = (
            f"predicted must be finite numbers of shape ({y.size}, {arms}), received {model.shape}"
        )
        raise ValueError(message)
    each = np.arange(y.size)
    y, w, cut = _weights(y, propensity, policy[each, taken], clip)
    parts = (policy * model).sum(axis=1) + w * (y - model[each, taken])
    return _valued(y, parts, w, cut, clip=clip, clusters=clusters, level=level, least=least)


def _weights(
    reward: npt.ArrayLike, propensity: npt.ArrayLike, target: npt.ArrayLike, clip: float
) -> tuple[_arrays.FloatArray, _arrays.FloatArray, int]:
    y = _arrays.vector("reward", reward, least=2)
    logged = _arrays.probabilities("propensity", propensity)
    chosen = _arrays.probabilities("target", target)
    _arrays.same_length(reward=y, propensity=logged, target=chosen)
    if (logged == 0).any():
        message = (
            f"propensity must be above 0, received {int((logged == 0).sum())} zero(s): "
            "a choice that was made had a chance"
        )
        raise ValueError(message)
    if not clip > 0:
        message = f"clip must be above 0, received {clip!r}"
        raise ValueError(message)
    w = chosen / logged
    return y, np.minimum(w, clip), int((w > clip).sum())


def _valued(
    y: _arrays.FloatArray,
    parts: _arrays.FloatArray,
    w: _arrays.FloatArray,
    cut: int,
    *,
    clip: float,
    clusters: npt.ArrayLike | None,
    level: float,
    least: float,
) -> PolicyValue:
    unit = None
    by_unit = w
    if clusters is not None:
        _, unit = _arrays.keys("clusters", clusters, y.size)
        by_unit = np.bincount(unit, weights=w).astype(np.float64)
    total = float((by_unit**2).sum())
    effective = float(by_unit.sum()) ** 2 / total if total > 0 else 0.0
    if effective < least:
        raise EffectiveSampleTooSmall(effective, least, y.size)

    def interval(values: _arrays.FloatArray) -> Interval:
        moves = (values - values.mean()) / y.size
        if unit is not None:
            moves = np.bincount(unit, weights=moves).astype(np.float64)
        if moves.size < 2:
            message = "clusters must have at least two distinct keys, received one"
            raise ValueError(message)
        # Large weights are few, so the error leans to one side: near the least effective sample
        # symmetric bounds cover 92%, these 94% and more.
        moves = moves * math.sqrt(moves.size / (moves.size - 1))
        return _skewness.interval(
            float(values.mean()),
            moves,
            level=level,
            freedom=moves.size - 1,
            rows=y.size,
            clusters=moves.size,
        )

    return PolicyValue(
        value=interval(parts),
        gain=interval(parts - y),
        logged=float(y.mean()),
        effective=effective,
        largest_weight=float(w.max()),
        weights=interval(w),
        clip=clip,
        clipped=cut,
    )
