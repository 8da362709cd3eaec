"""Off-policy estimates beside a known truth: error, coverage, and the refusal of a thin log."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from scipy import special

from benchmarks.rows import Row, at_least, at_most, share_error, within
from keepwell.stats.intervals import Interval
from keepwell.stats.off_policy import EffectiveSampleTooSmall, doubly_robust, ips, snips
from keepwell.stats.outcome_model import crossfit_predictions

ROWS, ARMS, FEATURES = 10_000, 4, 5
SEED = 33


class World:
    """Clicks of four arms by five features; a log that prefers what the tested policy does not.

    Rewards are 0 or 1, their chance logistic with a bend that no linear model follows. The log is
    softmax with a floor of 20%; the policy tested takes, mostly, the truly best arm.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self.slopes = rng.normal(size=(FEATURES, ARMS)) * 0.8
        self.wishes = rng.normal(size=(FEATURES, ARMS)) * 0.5

    def rates(self, x: np.ndarray) -> np.ndarray:
        """Chances of a click, shape (n, K)."""
        bend = 0.5 * (x[:, :1] * x[:, 1:2] > 0)
        return special.expit(x @ self.slopes + bend - 0.3)

    def logged(self, x: np.ndarray) -> np.ndarray:
        """The log's probabilities."""
        return 0.8 * special.softmax(x @ self.wishes, axis=1) + 0.2 / ARMS

    def tested(self, x: np.ndarray) -> np.ndarray:
        """The probabilities of the policy that is asked about."""
        return 0.9 * (special.softmax(3 * x @ self.slopes, axis=1)) + 0.1 / ARMS

    def truth(self, draws: int) -> float:
        """The tested policy's value, over 100,000 requests a draw; forty leave an error of 0.02%."""
        rng = np.random.default_rng(SEED + 1)
        values = []
        for _ in range(draws):
            x = rng.normal(size=(100_000, FEATURES))
            values.append((self.tested(x) * self.rates(x)).sum(axis=1).mean())
        return float(np.mean(values))


def _log(world: World, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.normal(size=(ROWS, FEATURES))
    chances = world.logged(x)
    arm = (rng.random((ROWS, 1)) > chances.cumsum(axis=1)[:, :-1]).sum(axis=1)
    reward = (rng.random(ROWS) < world.rates(x)[np.arange(ROWS), arm]).astype(np.float64)
    return x, arm, reward


def study(quick: bool) -> list[Row]:
    """Estimate the same policy's value from many logs of 10,000 rows."""
    runs = 20 if quick else 400
    world, rng = World(), np.random.default_rng(SEED + 2)
    truth = world.truth(3 if quick else 40)
    found: dict[str, list[Interval]] = defaultdict(list)
    models = {"DR": "logistic"} if quick else {"DR": "logistic", "DR, ridge": "ridge"}
    each = np.arange(ROWS)
    effective = []
    for _ in range(runs):
        x, arm, reward = _log(world, rng)
        chance, target = world.logged(x)[each, arm], world.tested(x)
        weighted = ips(reward, chance, target[each, arm])
        effective.append(weighted.effective)
        found["IPS"].append(weighted.value)
        found["SNIPS"].append(snips(reward, chance, target[each, arm]).value)
        for name, model in models.items():
            predicted = crossfit_predictions(x, arm, reward, rng, arms=ARMS, model=model)
            found[name].append(doubly_robust(reward, chance, arm, target, predicted).value)
    error = {
        name: float(np.mean([abs(one.estimate / truth - 1) for one in values]))
        for name, values in found.items()
    }
    slack = share_error(0.95, runs) if quick else 0.0
    told = f"{ROWS:,} rows, effective {np.mean(effective):,.0f}"
    rows = [
        at_most(f"DR mean error ({told})", error["DR"], 0.014, runs=runs, seed=SEED),
        at_most("DR mean error, of IPS", error["DR"] / error["IPS"], 1.0, runs=runs, seed=SEED),
    ]
    for name, values in found.items():
        covered = float(np.mean([not one.excludes(truth) for one in values]))
        row = within(
            f"{name}: 95% intervals cover", covered, 0.93, 0.97, runs=runs, seed=SEED, slack=slack
        )
        rows.append(row)
    return [*rows, _refused(world, rng)]


def _refused(world: World, rng: np.random.Generator) -> Row:
    """Ask about a policy that the log hardly followed: one arm for a hundredth of the rows."""
    x, arm, reward = _log(world, rng)
    chance = world.logged(x)[np.arange(ROWS), arm]
    rare = (arm == 0) & (x[:, 0] > 2.7)
    try:
        ips(reward, chance, rare.astype(np.float64))
    except EffectiveSampleTooSmall as refusal:
        return at_least(
            "a thin log is refused: rows asked for, less those there",
            refusal.least - refusal.effective,
            0,
            runs=1,
            seed=SEED,
        )
    return at_least("a thin log is refused", -math.inf, 0, runs=1, seed=SEED)
