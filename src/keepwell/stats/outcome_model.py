"""What each arm would have earned on each row, told by models that never saw that row.

Only the doubly robust estimators use it: they stay right when these models are wrong, and grow
narrower the better they are.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays

Model = Literal["ridge", "logistic"]
"""Linear regression for any reward, logistic regression for rewards of 0 or 1."""

# Newton's method on a penalised logistic loss needs about six steps; more than thirty means that
# the last bits wander.
_STEPS = 30


def crossfit_predictions(
    x: npt.ArrayLike,
    arm: npt.ArrayLike,
    reward: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    arms: int,
    model: Model = "ridge",
    folds: int = 5,
    penalty: float = 1.0,
    clusters: npt.ArrayLike | None = None,
) -> _arrays.FloatArray:
    """Predict every arm's reward on every row, shape (n, K), each row by a model of other folds.

    One regression an arm on scaled features with a constant; the penalty shrinks all but the
    constant. An arm without rows in the other folds is given the mean reward.

    Weak at: rewards far from linear in the features (the doubly robust estimate stays right, its
    interval gets wider); a world that changes within the rows, as folds are drawn at random; rows of
    one unit in two folds, unless `clusters` names the unit.

    x: shape (n, d), d >= 0. arm: shape (n,), 0 to K - 1. reward: shape (n,). folds within [2, n].
    penalty > 0. clusters: shape (n,), a key a row. `rng` draws the folds.
    Raises ValueError for other shapes, NaN, or rewards outside [0, 1] for the logistic model.
    Source: Chernozhukov et al. 2018 (1608.00060) for cross-fitting; Hoerl and Kennard 1970; le
    Cessie and van Houwelingen 1992.

    >>> x = np.linspace(-1, 1, 200)[:, None]
    >>> arm = np.arange(200) % 2
    >>> found = crossfit_predictions(x, arm, 3 * arm * x[:, 0], np.random.default_rng(0), arms=2)
    >>> found[-1].round(1).tolist()
    [0.0, 3.0]
    """
    y = _arrays.vector("reward", reward, least=2)
    taken = _arrays.choices("arm", arm, y.size, arms)
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[0] != y.size or not np.isfinite(rows).all():
        message = f"x must be finite numbers of shape ({y.size}, d), received shape {rows.shape}"
        raise ValueError(message)
    _arrays.one_of("model", model, ("ridge", "logistic"))
    _arrays.inside("penalty", penalty, 0, np.inf)
    if model == "logistic" and ((y < 0) | (y > 1)).any():
        message = f"reward must be within [0, 1] for a logistic model, received {y.min():g} to {y.max():g}"
        raise ValueError(message)
    _, unit = _arrays.keys("clusters", np.arange(y.size) if clusters is None else clusters, y.size)
    units = int(unit.max()) + 1
    if not 2 <= folds <= units:
        message = f"folds must be within [2, {units}], the rows or clusters, received {folds}"
        raise ValueError(message)
    fold = rng.permutation(np.arange(units) % folds)[unit]
    fit = _ridge if model == "ridge" else _logistic
    predicted = np.empty((y.size, arms))
    for f in range(folds):
        own, other = fold == f, fold != f
        centre = rows[other].mean(axis=0)
        scale = rows[other].std(axis=0)
        scaled = (rows - centre) / np.where(scale > 0, scale, 1.0)
        design = np.column_stack([np.ones(y.size), scaled])
        for k in range(arms):
            learn = other & (taken == k)
            if not learn.any():
                predicted[own, k] = y[other].mean()
                continue
            found = design[own] @ fit(design[learn], y[learn], penalty)
            predicted[own, k] = found if model == "ridge" else 1 / (1 + np.exp(-found))
    return predicted


def _ridge(x: _arrays.FloatArray, y: _arrays.FloatArray, penalty: float) -> _arrays.FloatArray:
    return np.linalg.solve(x.T @ x + _shrink(x.shape[1], penalty), x.T @ y).astype(np.float64)


def _logistic(x: _arrays.FloatArray, y: _arrays.FloatArray, penalty: float) -> _arrays.FloatArray:
    shrink = _shrink(x.shape[1], penalty)
    # A tenth of an event is added on either side: with events of one kind only, the constant, which
    # is not penalised, would have no finite best value.
    share = (y.sum() + 0.1) / (y.size + 0.2)
    beta = np.zeros(x.shape[1])
    beta[0] = np.log(share / (1 - share))

    def loss(at: _arrays.FloatArray) -> float:
        z = np.clip(x @ at, -35, 35)
        return float((np.logaddexp(0, z) - y * z).sum() + at @ shrink @ at / 2)

    now = loss(beta)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -35, 35)))
        slope = x.T @ (p - y) + shrink @ beta
        bend = (x * (p * (1 - p) + 1e-9)[:, None]).T @ x + shrink
        step, length = np.linalg.solve(bend + 1e-9 * np.eye(beta.size), slope), 1.0
        while loss(beta - length * step) > now and length > 1e-6:
            length /= 2
        then = loss(beta - length * step)
        if not then < now - 1e-10 * abs(now):
            break
        beta, now = beta - length * step, then
    return beta


def _shrink(size: int, penalty: float) -> _arrays.FloatArray:
    shrink = penalty * np.eye(size)
    shrink[0, 0] = 1e-9  # the constant is free
    return shrink
