"""Effects told from logs that a Thompson bandit steered: how often their 95% intervals cover."""

from __future__ import annotations

import numpy as np

from benchmarks.rows import Row, at_least, at_most, share_error
from keepwell.stats.adaptive_effects import adaptive_effects
from keepwell.stats.exploration import choose
from keepwell.stats.intervals import mean_interval
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


def study(quick: bool) -> list[Row]:
    """Steer many logs of 10,000 rows, and estimate each arm's mean and effect."""
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
