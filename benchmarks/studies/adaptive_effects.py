"""Effects told from logs that a Thompson bandit steered: how often their 95% intervals cover."""

from __future__ import annotations

import numpy as np

from benchmarks.rows import Row, at_least, at_most, share_error
from keepwell.stats.adaptive_effects import adaptive_effects
from keepwell.stats.exploration import choose
from keepwell.stats.intervals import mean_interval
from keepwell.stats.linear_bandit import Kind, LinearState
from keepwell.stats.off_policy import snips
from keepwell.stats.thompson import thompson_beta

ROWS, FLOOR = 10_000, 0.1
SEED = 34
BATCH = 1000
"""Rows between two plans: the bandit learns ten times."""
WORLDS = {"5%/5%/5%": (0.05, 0.05, 0.05), "20%/22%/18%": (0.2, 0.22, 0.18), "10%/5%": (0.1, 0.05)}


def steered(
    rates: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give rewards, arms and probabilities of a log whose plan is rewritten after each batch."""
    won, lost = np.zeros(rates.size), np.zeros(rates.size)
    rewards, arms, chances = [], [], []
    for _ in range(ROWS // BATCH):
        chance = np.tile(thompson_beta(won, lost, floor=FLOOR), (BATCH, 1))
        arm = choose(chance, rng)
        reward = (rng.random(BATCH) < rates[arm]).astype(np.float64)
        won += np.bincount(arm, weights=reward, minlength=rates.size)
        lost += np.bincount(arm, weights=1 - reward, minlength=rates.size)
        rewards.append(reward)
        arms.append(arm)
        chances.append(chance)
    return np.concatenate(rewards), np.concatenate(arms), np.concatenate(chances)


LEARNT = 500
"""Rows between two plans of a bandit that sees features; it plans ten times."""
FEATURES = 3
KINDS: tuple[Kind, ...] = ("lints", "linucb")


def _worth(name: str, x: np.ndarray) -> np.ndarray:
    """Give what two arms are worth on rows of features, shape (n, 2)."""
    base = x[:, 0]
    if name == "alike":
        return np.column_stack([base, base])
    if name == "each suits others":
        return np.column_stack([base, base + x[:, 1]])
    if name == "not linear":
        return np.column_stack([np.abs(base), np.abs(x[:, 1]) ** 1.5])
    return np.column_stack([base, base + 0.3 + 0.5 * x[:, 2]])


SUITED = {"alike": 0.0, "each suits others": 0.0, "not linear": 0.0622, "one is better": 0.3}
"""Worlds and the second arm's effect; E|x|^1.5 - E|x| = 0.8600 - 0.7979 for a normal x."""


def steered_by_features(
    name: str, kind: Kind, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give rewards, arms, probabilities and the policy's own predictions (NaN before the first plan)."""
    state = LinearState.start(arms=2, features=FEATURES + 1)
    parts: list[tuple[np.ndarray, ...]] = []
    for turn in range(10):
        x = rng.normal(size=(LEARNT, FEATURES))
        seen = np.column_stack([x, np.ones(LEARNT)])
        chance, said = np.full((LEARNT, 2), 0.5), np.full((LEARNT, 2), np.nan)
        if turn:
            policy = state.policy(kind, alpha=1.0, floor=FLOOR, seed=turn)
            chance, said = policy.probabilities(seen), seen @ policy.theta.T
        arm = choose(chance, rng)
        reward = _worth(name, x)[np.arange(LEARNT), arm] + rng.normal(size=LEARNT)
        state = state.update(seen, arm, reward)
        parts.append((reward, arm, chance, said))
    reward, arm, chance, said = (np.concatenate(column) for column in zip(*parts, strict=True))
    return reward, arm, chance, said


def _by_features(quick: bool) -> list[Row]:
    """Estimate effects from logs of LinTS and LinUCB: by exact propensities, and by weights alone."""
    runs = 12 if quick else 500
    rows = []
    for name, truth in list(SUITED.items())[: 1 if quick else None]:
        rng = np.random.default_rng(SEED)
        covered, widths = [], []
        for kind in KINDS * runs:
            reward, arm, chance, said = steered_by_features(name, kind, rng)
            found = adaptive_effects(reward, arm, chance, predicted=said, context=True).effects[1]
            assert found is not None
            covered.append(not found.excludes(truth))
            own = chance[np.arange(arm.size), arm]
            low, high = (snips(reward, own, arm == k, level=0.975).value for k in (0, 1))
            box = high.upper - low.lower - (high.lower - low.upper)
            widths.append((found.upper - found.lower) / box)
        rows += [
            at_least(
                f"effects of a log steered by features: 95% intervals cover, {name}",
                float(np.mean(covered)),
                0.94,
                runs=2 * runs,
                seed=SEED,
                slack=share_error(0.95, 2 * runs) if quick else 0.0,
            ),
            at_most(
                f"width beside two intervals by weights alone, {name}",
                float(np.mean(widths)),
                0.8,
                runs=2 * runs,
                seed=SEED,
            ),
        ]
    return rows


def study(quick: bool) -> list[Row]:
    """Steer many logs of 10,000 rows, and estimate each arm's mean and effect."""
    return [*_plain(quick), *_by_features(quick)]


def _plain(quick: bool) -> list[Row]:
    runs = 60 if quick else 1000
    slack = share_error(0.95, runs) if quick else 0.0
    rows = []
    for name, rates in list(WORLDS.items())[: 1 if quick else None]:
        truth = np.array(rates)
        rng = np.random.default_rng(SEED)
        effects, means, ours, plain, naive = [], [], [], [], []
        for _ in range(runs):
            reward, arm, chance = steered(truth, rng)
            found = adaptive_effects(reward, arm, chance)
            told = [(k, each) for k, each in enumerate(found.effects) if each is not None]
            effects.append([not each.excludes(truth[k] - truth[0]) for k, each in told])
            means.append([not each.excludes(truth[k]) for k, each in enumerate(found.means)])
            ours.append(np.mean([each.estimate for each in found.means] - truth))
            by_arm = [mean_interval(reward[arm == k]) for k in range(truth.size)]
            plain.append(np.mean([each.estimate for each in by_arm] - truth))
            naive.append([not each.excludes(truth[k]) for k, each in enumerate(by_arm)])
        for what, covered in (("effects", effects), ("means", means)):
            rows.append(
                at_least(
                    f"{what} of a steered log: 95% intervals cover, {name}",
                    float(np.mean(covered)),
                    0.94,
                    runs=runs,
                    seed=SEED,
                    slack=slack,
                )
            )
        if not quick and len(set(rates)) == 1:
            # Equal arms are the hardest: the bandit follows chance, and plain means are fooled.
            rows += [
                at_most(
                    f"control: 95% intervals of plain means cover, {name}",
                    float(np.mean(naive)),
                    0.94,
                    runs=runs,
                    seed=SEED,
                ),
                at_most(
                    f"bias of the estimate, of that of plain means, {name}",
                    float(np.mean(ours) / np.mean(plain)),
                    0.75,
                    runs=runs,
                    seed=SEED,
                ),
            ]
    return rows
