"""What a bandit without context knows of its arms: rewards by arm, all, discounted, or recent.

Rewards may come late and in any batches; a decision whose reward has not come is not a zero.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays


@dataclass(frozen=True, kw_only=True)
class ArmRewards:
    """Number, mean and squared deviations of rewards by arm, each a tuple of K.

    With `forget` below 1 each reward, of whichever arm, makes all earlier ones weigh `forget` times
    as much: about the last 1 / (1 - forget) count, and an arm left alone grows uncertain again.

    Weak at: rewards that come late for one arm and soon for another, since what is known first is
    a biased part; a forgetting world where the decisions' order differs much from the rewards'.

    forget: in (0, 1]. Raises ValueError for parameters outside their domain.
    Source: Garivier and Moulines 2011 (0805.3415) and Qi, Guo and Zhu 2023 (2305.10718) for
    discounting; Chan, Golub and LeVeque 1979 for adding batches.

    >>> rewards = ArmRewards.start(2).update([0, 1, 1], [1.0, 0.0, 1.0])
    >>> rewards.counts, rewards.means, rewards.successes, rewards.failures
    ((1.0, 2.0), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
    """

    counts: tuple[float, ...]
    means: tuple[float, ...]
    squares: tuple[float, ...]
    forget: float = 1.0
    rows: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _forget(self.forget)
        counts = _arrays.counts("counts", self.counts, least=2)
        means = _arrays.vector("means", self.means, least=2)
        squares = _arrays.counts("squares", self.squares, least=2)
        _arrays.same_length(counts=counts, means=means, squares=squares)

    @classmethod
    def start(cls, arms: int, *, forget: float = 1.0) -> Self:
        """Give the state before any reward. Raises ValueError for fewer than two arms."""
        _arrays.at_least("arms", arms, 2)
        none = (0.0,) * arms
        return cls(counts=none, means=none, squares=none, forget=forget)

    def update(self, arm: npt.ArrayLike, reward: npt.ArrayLike) -> Self:
        """Add rewards that have come, in their order; shapes (n,), n >= 0.

        Raises ValueError for NaN, unequal lengths or an arm that does not exist.
        """
        rewards = _arrays.vector("reward", reward, least=0)
        taken = _arrays.choices("arm", arm, rewards.size, len(self.counts))
        if not rewards.size:
            return self
        weight = self.forget ** np.arange(rewards.size - 1, -1, -1)
        kept = self.forget**rewards.size
        size = len(self.counts)
        new = np.bincount(taken, weights=weight, minlength=size)
        total = np.bincount(taken, weights=weight * rewards, minlength=size)
        mean = np.divide(total, new, out=np.zeros(size), where=new > 0)
        around = np.bincount(taken, weights=weight * (rewards - mean[taken]) ** 2, minlength=size)
        old, before = kept * np.asarray(self.counts), np.asarray(self.means)
        counts = old + new
        part = np.divide(new, counts, out=np.zeros(size), where=counts > 0)
        return replace(
            self,
            counts=tuple(counts.tolist()),
            means=tuple((before + (mean - before) * part).tolist()),
            squares=tuple(
                (
                    kept * np.asarray(self.squares) + around + (mean - before) ** 2 * old * part
                ).tolist()
            ),
            rows=self.rows + rewards.size,
        )

    @property
    def successes(self) -> tuple[float, ...]:
        """Sums of rewards: for rewards of 0 or 1 the (discounted) successes."""
        return tuple(n * m for n, m in zip(self.counts, self.means, strict=True))

    @property
    def failures(self) -> tuple[float, ...]:
        """Counts minus successes."""
        return tuple(n * (1 - m) for n, m in zip(self.counts, self.means, strict=True))


@dataclass(frozen=True, kw_only=True)
class RecentRewards:
    """The last `window` rewards, whichever arm they are of; older ones are forgotten at once.

    Weak at: an arm that the window no longer holds is unknown again; choose the window so that the
    exploration floor alone fills it with some rewards of each arm.

    arms: K >= 2. window: rewards kept, >= 1. Raises ValueError for parameters outside these.
    Source: Trovo, Paladino, Restelli and Gatti 2020 (sliding-window Thompson sampling).

    >>> recent = RecentRewards(arms=2, window=2).update([0, 0, 1], [1.0, 0.0, 1.0])
    >>> recent.rewards.counts, recent.rewards.means
    ((1.0, 1.0), (0.0, 1.0))
    """

    arms: int
    window: int
    arm: tuple[int, ...] = ()
    reward: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.at_least("arms", self.arms, 2)
        _arrays.at_least("window", self.window, 1)

    def update(self, arm: npt.ArrayLike, reward: npt.ArrayLike) -> Self:
        """Add rewards that have come, in their order; raises ValueError as `ArmRewards.update`."""
        rewards = _arrays.vector("reward", reward, least=0)
        taken = _arrays.choices("arm", arm, rewards.size, self.arms)
        return replace(
            self,
            arm=(*self.arm, *taken.tolist())[-self.window :],
            reward=(*self.reward, *rewards.tolist())[-self.window :],
        )

    @property
    def rewards(self) -> ArmRewards:
        """What the window holds, by arm."""
        return ArmRewards.start(self.arms).update(np.array(self.arm, np.int64), self.reward)


def _forget(forget: float) -> None:
    if not 0 < forget <= 1:
        message = f"forget must be in (0, 1], received {forget!r}"
        raise ValueError(message)
