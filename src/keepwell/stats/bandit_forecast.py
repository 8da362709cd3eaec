"""What a bandit's one verdict will find at its end, and what looking around costs, told before it starts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats.exploration import with_floor

Shares = Callable[[_arrays.FloatArray, _arrays.FloatArray, _arrays.FloatArray], _arrays.FloatArray]
"""Counts, means and sums of squared deviations of the rewards in, shares of the traffic out; shapes (runs, K)."""

RUNS, STEPS = 200, 32
"""Simulated bandits, and plans of each: a chance is told within 3 points."""
DRAWS = 30
SEED = 11
_HALVINGS = 7


@dataclass(frozen=True, kw_only=True)
class BanditForecast:
    """If one arm is better by `effect` in mean reward and all others are alike."""

    effect: float
    power: float
    """Chance that the verdict finds it better than the control."""
    half_width: float
    """Of the interval for its effect, in the median."""
    lesser: float
    """Share of the decisions that the other arms get."""
    regret: float
    """Reward that these cost against the better arm for all."""


def bandit_forecast(
    *,
    arms: int,
    rows: float,
    spread: float,
    shares: Shares,
    power: float = 0.8,
    alpha: float = 0.05,
    mean: float = 0.0,
    bunching: float = 1.0,
    late: float = 0.0,
) -> BanditForecast:
    """Least difference that `adaptive_effects` finds with chance `power` at the end of a bandit's log.

    Bandits are simulated: their plan is rewritten evenly often, each part of the log gives each arm a mean that is
    normal, and the estimate is the one that `adaptive_effects` makes, with weights by the root of the shares. The
    difference is found by halving. The same input gives the same forecast: the seed is part of the code.

    Weak at: few rows or rare events, where means are not normal; shares that follow what a row is like; arms that
    differ otherwise than one from all.

    arms: K >= 2, the control among them. rows: rewards of all arms at the end, >= K. spread: of a reward, > 0.
    shares: the bandit's rule. power, alpha: in (0, 1), two-sided, parted among the K - 1 comparisons. mean: of the
    control's rewards. bunching: variance of what rows of one unit add up to, of what it were if they were
    unrelated, >= 1. late: part of the rows whose rewards are not known yet when the plan is rewritten, in [0, 1).
    Raises ValueError otherwise.
    Source: Hadad, Hirshberg, Zhan, Wager and Athey 2021 (1911.02768) for the estimate.

    >>> even = lambda counts, means, squares: np.full(counts.shape, 0.5)
    >>> told = bandit_forecast(arms=2, rows=10_000, spread=1.0, shares=even)
    >>> round(told.effect, 3), told.lesser
    (0.057, 0.5)
    """
    _arrays.at_least("arms", arms, 2)
    _arrays.at_least("rows", rows, arms)
    _arrays.inside("spread", spread, 0, np.inf)
    wanted = _arrays.inside("power", power, 0, 1)
    level = _arrays.inside("alpha", alpha, 0, 1) / (arms - 1)
    _arrays.at_least("bunching", bunching, 1)
    if not 0 <= late < 1:
        message = f"late must be within [0, 1), received {late!r}"
        raise ValueError(message)
    z = float(special.ndtri(1 - level / 2))
    noise = np.random.default_rng(SEED).normal(size=(STEPS, RUNS, arms))

    def at(effect: float) -> tuple[float, BanditForecast]:
        truth = np.full(arms, mean)
        truth[1] += effect
        estimate, error, own = _run(
            noise, truth, rows / STEPS, spread, spread * np.sqrt(bunching), shares, late
        )
        apart, wide = estimate[:, 1] - estimate[:, 0], np.hypot(error[:, 1], error[:, 0])
        # Counted with a soft edge, a tenth of an error wide: else halving would meet steps of one run each.
        found = float(special.ndtr((apart - z * wide) / (0.1 * wide)).mean())
        lesser = float(1 - own[:, 1].mean())
        return found, BanditForecast(
            effect=float(effect),
            power=found,
            half_width=float(z * np.median(wide)),
            lesser=lesser,
            regret=float(lesser * effect * rows),
        )

    # Even arms for all of the log are the sharpest, and a tenth of the rows in each the dullest that matters.
    low = 0.0
    high = 2 * (z + float(special.ndtri(wanted))) * spread * np.sqrt(bunching * 2 * arms / rows)
    while at(high)[0] < wanted:
        low, high = high, 2 * high
        if high > 1e3 * spread * np.sqrt(bunching):
            break
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[0] >= wanted else (middle, high)
    return at(high)[1]


def _run(
    noise: _arrays.FloatArray,
    truth: _arrays.FloatArray,
    batch: float,
    spread: float,
    uneven: float,
    shares: Shares,
    late: float,
) -> tuple[_arrays.FloatArray, _arrays.FloatArray, _arrays.FloatArray]:
    """Let bandits run side by side; estimates, their errors and shares of the log by arm, each of shape (runs, K)."""
    steps, runs, arms = noise.shape
    behind = round(late * steps)
    count, total = np.zeros((steps + 1, runs, arms)), np.zeros((steps + 1, runs, arms))
    weight, scored, given = (np.zeros((runs, arms)) for _ in range(3))
    for step in range(steps):
        known = max(step - behind, 0)
        n = count[known]
        even = np.full((runs, arms), 1 / arms)
        share = shares(n, total[known] / n, n * spread**2) if known else even
        rows = batch * share
        found = truth + noise[step] * uneven / np.sqrt(rows)
        count[step + 1] = count[step] + rows
        total[step + 1] = total[step] + rows * found
        weight += np.sqrt(share)
        scored += np.sqrt(share) * found
        given += share / steps
    # A score has the variance spread^2 / share, so that with these weights each part adds the same to the error.
    error = uneven * np.sqrt(steps / batch) / weight
    return scored / weight, error, given


def thompson_shares(
    counts: _arrays.FloatArray,
    means: _arrays.FloatArray,
    squares: _arrays.FloatArray,
    *,
    floor: float,
) -> _arrays.FloatArray:
    """Shares about as `thompson_gaussian` gives them, of many bandits at once; shapes (runs, K).

    Weak at: more than two arms, whose shares come from 30 draws: it is for forecasts, not to steer by.

    counts, means, squares: as `thompson_gaussian`, counts above 0. floor: as `with_floor`. Raises ValueError as
    it does.
    Source: Thompson 1933.

    >>> n = np.full((1, 2), 50.0)
    >>> thompson_shares(n, np.array([[3.0, 3.4]]), n, floor=0.1).round(1).tolist()
    [[0.1, 0.9]]
    """
    noise = np.sqrt(squares.sum(axis=-1, keepdims=True) / counts.sum(axis=-1, keepdims=True))
    scale = noise / np.sqrt(counts)
    if counts.shape[-1] == 2:
        second = special.ndtr((means[:, 1] - means[:, 0]) / np.hypot(scale[:, 0], scale[:, 1]))
        return with_floor(np.column_stack([1 - second, second]), floor)
    best = (means + scale * _draws(*counts.shape)).argmax(axis=-1)
    won = [(best == arm).mean(axis=0) for arm in range(counts.shape[-1])]
    return with_floor(np.stack(won, axis=-1), floor)


@cache
def _draws(runs: int, arms: int) -> _arrays.FloatArray:
    return np.random.default_rng(SEED).normal(size=(DRAWS, runs, arms))
