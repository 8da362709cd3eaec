"""A bandit with context: which arm suits this request, from rewards that are linear in its features.

`LinearState` learns from rewards, late and in batches; `LinearPolicy` is what a gateway holds of it
and turns rows into probabilities. It imports numpy alone, so that a worker stays light.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays

Kind = Literal["linucb", "lints"]
"""The best upper bound, or the best of a draw from the posterior (Thompson)."""

DRAWS = 128
"""Posterior draws that a Thompson policy holds: probabilities come in steps of 1/128, and 32 rows of
20 features and 3 arms take about a tenth of a millisecond."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearPolicy:
    """Probabilities of K arms from d features: a value, the same on every replica.

    linucb: the arm with the largest `x theta + alpha |factor x|` gets 1 - floor; lints: each of
    `draws` posterior draws `theta + alpha factor' z`, z fixed by the seed, votes for its best arm.
    The draws are finitely many and known, so the share of votes is the propensity itself, not an
    estimate of it. `floor` is the share of traffic spread evenly over all arms, so no propensity
    is under floor / K and the log can be evaluated off-policy.

    Weak at: rewards far from linear in the features; features of very different scales (scale
    them, and add a constant one); linucb without a floor logs propensities of 0 and 1, which no
    off-policy estimate can use.

    theta: shape (K, d), K >= 2. factor: shape (K, d, d), `factor' factor` being the inverse of A.
    alpha: width of exploration in the unit of the reward, >= 0 (about the rewards' standard
    deviation). floor: in [0, 1]. seed: of the draws; take another for each new policy (such as the
    plan's revision), or one unlucky draw stays. missing: shape (d,), what stands for a value that
    is missing, such as the mean of what was learned from; none: such a row gets equal chances.
    Raises ValueError for parameters outside these domains.
    Source: Li, Chu, Langford and Schapire 2010 (1003.0146) for linucb; Agrawal and Goyal 2013
    (1209.3352) for lints.

    >>> policy = LinearState.start(arms=2, features=2).policy("lints", floor=0.1, seed=7)
    >>> policy.probabilities(np.array([[1.0, 0.5]])).round(3)
    array([[0.444, 0.556]])
    """

    kind: Kind
    theta: _arrays.FloatArray
    factor: _arrays.FloatArray
    alpha: float
    floor: float
    seed: int
    draws: int = DRAWS
    missing: _arrays.FloatArray | None = None

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.one_of("kind", self.kind, ("linucb", "lints"))
        _arrays.at_least("alpha", self.alpha, 0)
        _arrays.at_least("seed", self.seed, 0)
        _arrays.at_least("draws", self.draws, 1)
        _arrays.share("floor", self.floor)
        object.__setattr__(self, "theta", np.asarray(self.theta, dtype=np.float64))
        object.__setattr__(self, "factor", np.asarray(self.factor, dtype=np.float64))
        if self.theta.ndim != 2 or self.theta.shape[0] < 2:
            message = f"theta must have shape (K, d), K >= 2, received {self.theta.shape}"
            raise ValueError(message)
        arms, features = self.theta.shape
        if self.factor.shape != (arms, features, features):
            message = (
                f"factor must have shape ({arms}, {features}, {features}), "
                f"received {self.factor.shape}"
            )
            raise ValueError(message)
        if not (np.isfinite(self.theta).all() and np.isfinite(self.factor).all()):
            message = "theta and factor must be finite, received NaN or infinite values"
            raise ValueError(message)
        if self.missing is not None:
            stands = np.asarray(self.missing, dtype=np.float64)
            object.__setattr__(self, "missing", stands)
            if stands.shape != (features,) or not np.isfinite(stands).all():
                message = f"missing must be {features} finite numbers, received {stands}"
                raise ValueError(message)

    def filled(self, x: npt.ArrayLike) -> _arrays.FloatArray:
        """Give rows with what stands for their missing values, shape (n, d)."""
        rows = np.asarray(x, dtype=np.float64)
        return rows if self.missing is None else np.where(np.isnan(rows), self.missing, rows)

    def probabilities(self, x: npt.ArrayLike) -> _arrays.FloatArray:
        """Give each row's probabilities of the arms, shape (n, K); rows sum to 1.

        x: shape (n, d). A row with NaN where nothing stands for it gets equal probabilities: a
        request must be answered, and equal ones are true ones.
        Raises ValueError for another shape.
        """
        rows = np.asarray(x, dtype=np.float64)
        arms, features = self.theta.shape
        if rows.ndim != 2 or rows.shape[1] != features:
            message = f"x must have shape (n, {features}), received {rows.shape}"
            raise ValueError(message)
        rows = self.filled(rows)
        # Arms come first: comparing K long stretches is far quicker than n * draws reductions of K.
        if self.kind == "lints":
            scores = (self._drawn @ rows.T).reshape(arms, self.draws, len(rows))
        else:
            spread = (self._flat @ rows.T).reshape(arms, features, len(rows))
            width = np.sqrt(np.einsum("kdn,kdn->kn", spread, spread))
            scores = (self.theta @ rows.T + self.alpha * width)[:, None, :]
        best = scores == scores.max(axis=0)
        votes = best.sum(axis=1)  # (K, n)
        if (votes.sum(axis=0) != scores.shape[1]).any():  # ties share their vote; NaN: nobody's
            shared = best / np.maximum(best.sum(axis=0), 1)
            votes = shared.sum(axis=1)
            votes[:, ~(votes.sum(axis=0) > 0)] = scores.shape[1] / arms
        given: _arrays.FloatArray = votes.T * ((1 - self.floor) / scores.shape[1])
        given += self.floor / arms
        return given

    @cached_property
    def _drawn(self) -> _arrays.FloatArray:
        arms, features = self.theta.shape
        z = np.random.default_rng(self.seed).standard_normal((arms, self.draws, features))
        drawn = self.theta[:, None, :] + self.alpha * (z @ self.factor)
        return np.ascontiguousarray(drawn.reshape(arms * self.draws, features))

    @cached_property
    def _flat(self) -> _arrays.FloatArray:
        arms, features = self.theta.shape
        return np.ascontiguousarray(self.factor.reshape(arms * features, features))


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearState:
    """What has been learned: by arm `A = ridge I + sum x x'` and `b = sum reward x`.

    Rewards may come late, in any batches and from any mix of policies: a row counts for the arm
    that answered. With `forget` below 1 each row weighs `forget` times its successor, whichever arm
    it was, so about the last 1 / (1 - forget) rows count and an arm unseen for long becomes
    uncertain again. How rows are cut into batches changes nothing.

    Weak at: rewards of a few requests only (those that answer quickly), which bias what is
    learned; with `forget`, order is the order of arrival of rewards, not of decisions.

    A: shape (K, d, d); b: shape (K, d). ridge > 0: prior precision. forget in (0, 1].
    Raises ValueError for parameters outside these domains.
    Source: Li, Chu, Langford and Schapire 2010 (1003.0146); Russac, Vernade and Cappe 2019
    (1909.09146) for forgetting.

    >>> state = LinearState.start(arms=2, features=1)
    >>> state = state.update([[1.0], [1.0], [2.0]], [0, 1, 1], [1.0, 0.0, 2.0])
    >>> state.theta.round(3).tolist()
    [[0.5], [0.667]]
    """

    A: _arrays.FloatArray
    b: _arrays.FloatArray
    ridge: float = 1.0
    forget: float = 1.0
    rows: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.inside("ridge", self.ridge, 0, np.inf)
        if not 0 < self.forget <= 1:
            message = f"forget must be in (0, 1], received {self.forget!r}"
            raise ValueError(message)
        object.__setattr__(self, "A", np.asarray(self.A, dtype=np.float64))
        object.__setattr__(self, "b", np.asarray(self.b, dtype=np.float64))
        if self.b.ndim != 2 or self.A.shape != (*self.b.shape, self.b.shape[1]):
            message = (
                f"A and b must have shapes (K, d, d) and (K, d), "
                f"received {self.A.shape} and {self.b.shape}"
            )
            raise ValueError(message)

    @classmethod
    def start(cls, *, arms: int, features: int, ridge: float = 1.0, forget: float = 1.0) -> Self:
        """Give the state before any reward. Raises ValueError for arms < 2 or features < 1."""
        _arrays.at_least("arms", arms, 2)
        _arrays.at_least("features", features, 1)
        return cls(
            A=np.tile(ridge * np.eye(features), (arms, 1, 1)),
            b=np.zeros((arms, features)),
            ridge=ridge,
            forget=forget,
        )

    def update(self, x: npt.ArrayLike, arm: npt.ArrayLike, reward: npt.ArrayLike) -> Self:
        """Learn from rows whose rewards have come, in their order of arrival; n may be 0.

        x: shape (n, d); arm: shape (n,), the arm that answered, 0 to K - 1; reward: shape (n,).
        Raises ValueError for other shapes, NaN, or an arm that does not exist.
        """
        arms, features = self.b.shape
        rewards = _arrays.vector("reward", reward, least=0)
        if not rewards.size:
            return self
        rows = np.asarray(x, dtype=np.float64)
        if rows.shape != (rewards.size, features):
            message = f"x must have shape ({rewards.size}, {features}), received {rows.shape}"
            raise ValueError(message)
        if not np.isfinite(rows).all():
            message = "x must be finite, received NaN or infinite values"
            raise ValueError(message)
        taken = _arrays.choices("arm", arm, rewards.size, arms)
        weight = self.forget ** np.arange(rewards.size - 1, -1, -1)
        kept = self.forget**rewards.size
        a = kept * self.A + (1 - kept) * self.ridge * np.eye(features)
        b = kept * self.b
        for k in range(arms):
            own = taken == k
            weighted = rows[own] * weight[own, None]
            a[k] += weighted.T @ rows[own]
            b[k] += weighted.T @ rewards[own]
        return replace(self, A=a, b=b, rows=self.rows + rewards.size)

    @property
    def theta(self) -> _arrays.FloatArray:
        """The posterior means, shape (K, d)."""
        return np.linalg.solve(self.A, self.b[:, :, None])[:, :, 0].astype(np.float64, copy=False)

    def policy(
        self,
        kind: Kind,
        *,
        alpha: float = 1.0,
        floor: float = 0.05,
        seed: int = 0,
        draws: int = DRAWS,
    ) -> LinearPolicy:
        """Give the policy of this state. Raises ValueError as `LinearPolicy` does."""
        symmetric = (self.A + self.A.transpose(0, 2, 1)) / 2
        return LinearPolicy(
            kind=kind,
            theta=self.theta,
            factor=np.linalg.inv(np.linalg.cholesky(symmetric)),
            alpha=alpha,
            floor=floor,
            seed=seed,
            draws=draws,
        )
