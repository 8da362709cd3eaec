"""What each arm earns, told from a log whose traffic a bandit steered by the rewards themselves.

Plain means of such a log are biased and their intervals cover too little: an arm that starts
unluckily is dropped and never gets the chance to look better again.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays, _skewness
from keepwell.stats.intervals import Interval

LEAST_ROWS = 50
"""Rows of an arm under which its limit theorem has not begun: nothing is estimated then."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveEffects:
    """The mean reward of each arm, and its difference to the control arm (None for that one)."""

    means: tuple[Interval, ...]
    effects: tuple[Interval | None, ...]
    control: int


def adaptive_effects(
    reward: npt.ArrayLike,
    arm: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    control: int = 0,
    predicted: npt.ArrayLike | None = None,
    context: bool = False,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> AdaptiveEffects:
    """Adaptively weighted, augmented inverse propensity estimates by arm and against the control.

    Each row gives every arm a score, `m + 1{taken} / e * (reward - m)`, m a prediction from earlier
    rows only and e the logged propensity, so its mean is right whatever the bandit did. Scores are
    averaged with weights `sqrt(e)`, which keep their variance steady as traffic moves: then the
    estimate is normal in the limit, and the interval, corrected for skew, covers. With `context`,
    where probabilities follow what a row is like, all rows weigh the same (the weights would lean to
    rows that suit the arm): the mean of the scores is then the doubly robust estimate.

    Weak at: propensities that fall towards zero faster than 1 / t (keep an exploration floor); a
    small bias downward remains where arms are alike, about half that of plain means and a fifth of
    the error it states; arms with few rows; a world that changes, where it estimates a mean over
    time that leans to the times at which the arm had traffic; looks before the planned end.

    Rows stand in the order of their decisions. reward: shape (n,). arm: shape (n,), 0 to K - 1.
    probabilities: shape (n, K), what the bandit gave all arms on that row, each above 0. predicted:
    shape (n, K), from rows before each row; by default, and where it is NaN, the arm's running mean.
    clusters: shape (n,), keys of rows that hang together, such as those of one unit.
    Raises ValueError for other shapes, NaN, a zero propensity, a prediction of other shape, or an arm
    of fewer than 50 rows.
    Source: Hadad, Hirshberg, Zhan, Wager and Athey 2021 (1911.02768), constant allocation; Bibaut et
    al. 2021 (2106.00418); Zhan, Hadad, Hirshberg and Athey 2021 (2106.02029) for context; Robins,
    Rotnitzky and Zhao 1994; Hall 1992 for the skew.

    >>> rng = np.random.default_rng(0)
    >>> chance = np.repeat([[0.5, 0.5], [0.2, 0.8]], 1000, axis=0)
    >>> arm = (rng.random(2000) < chance[:, 1]).astype(int)
    >>> reward = rng.normal(size=2000) + 0.3 * arm
    >>> effect = adaptive_effects(reward, arm, chance).effects[1]
    >>> round(effect.lower, 2), round(effect.upper, 2)
    (0.22, 0.42)
    """
    y = _arrays.vector("reward", reward, least=2)
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or given.shape[0] != y.size or given.shape[1] < 2:
        message = f"probabilities must have shape ({y.size}, K), K >= 2, received {given.shape}"
        raise ValueError(message)
    if not ((given > 0) & (given <= 1)).all():
        message = (
            "probabilities must all be above 0 and at most 1: an arm without a chance cannot be "
            "estimated; keep an exploration floor"
        )
        raise ValueError(message)
    if not (np.abs(given.sum(axis=1) - 1) < 1e-6).all():
        message = "probabilities must sum to 1 over the arms"
        raise ValueError(message)
    arms = given.shape[1]
    taken = _arrays.choices("arm", arm, y.size, arms)
    if not 0 <= control < arms:
        message = f"control must be within [0, {arms - 1}], received {control!r}"
        raise ValueError(message)
    _arrays.inside("level", level, 0, 1)
    rows = np.bincount(taken, minlength=arms)
    if (rows < LEAST_ROWS).any():
        message = (
            f"arm must have at least {LEAST_ROWS} rows of each, received "
            f"{', '.join(f'{n} of {k}' for k, n in enumerate(rows))}"
        )
        raise ValueError(message)
    own = taken[:, None] == np.arange(arms)
    model = _running_means(y, own)
    if predicted is not None:
        said = np.asarray(predicted, dtype=np.float64)
        if said.shape != given.shape or np.isinf(said).any():
            message = f"predicted must be finite of shape {given.shape}, received {said.shape}"
            raise ValueError(message)
        model = np.where(np.isnan(said), model, said)
    unit = None if clusters is None else _arrays.keys("clusters", clusters, y.size)[1]
    scores = model + own / given * (y[:, None] - model)
    weights = np.ones_like(given) if context else np.sqrt(given)
    shares = weights / weights.sum(axis=0)
    estimate = (shares * scores).sum(axis=0)
    moves = shares * (scores - estimate)

    def interval(at: float, parts: _arrays.FloatArray, count: int) -> Interval:
        if unit is not None:
            parts = np.bincount(unit, weights=parts).astype(np.float64)
        clusters = count if unit is None else parts.size
        return _skewness.interval(at, parts, level=level, rows=count, clusters=clusters)

    means = [interval(float(estimate[k]), moves[:, k], int(rows[k])) for k in range(arms)]
    effects = [
        None
        if k == control
        else interval(
            float(estimate[k] - estimate[control]),
            moves[:, k] - moves[:, control],
            int(rows[k] + rows[control]),
        )
        for k in range(arms)
    ]
    return AdaptiveEffects(means=tuple(means), effects=tuple(effects), control=control)


def _running_means(y: _arrays.FloatArray, own: npt.NDArray[np.bool_]) -> _arrays.FloatArray:
    """Each arm's mean over the rows before, 0 before its first; shape (n, K)."""
    before = own.cumsum(axis=0) - own
    totals = (own * y[:, None]).cumsum(axis=0) - own * y[:, None]
    means: _arrays.FloatArray = totals / np.maximum(before, 1)
    return means
