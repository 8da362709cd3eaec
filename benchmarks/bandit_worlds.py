"""Worlds of arms with known rates, played by many runs side by side: what bandit studies share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from keepwell.stats.thompson import thompson_beta_choice

Choose = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""From successes and failures, shapes (runs, K), to the arm each run takes next."""


def play(
    rates: Callable[[int], np.ndarray],
    rng: np.random.Generator,
    *,
    runs: int,
    marks: tuple[int, ...],
    choose: Choose = thompson_beta_choice,
    forget: float = 1.0,
    window: int | None = None,
    delay: int = 0,
) -> np.ndarray:
    """Play up to the last mark; give the regret of each run at each mark, shape (marks, runs).

    `rates(t)` are the arms' rates at step t from 0. A reward is learned `delay` steps after its
    decision; with `forget` below 1 what is known decays at each step, with a `window` only the last
    so many rewards are known.
    """
    arms, every = rates(0).size, np.arange(runs)
    won, lost = np.zeros((runs, arms)), np.zeros((runs, arms))
    regret, found = np.zeros(runs), []
    waiting: deque[tuple[np.ndarray, np.ndarray]] = deque()
    held: deque[tuple[np.ndarray, np.ndarray]] = deque()
    for t in range(marks[-1]):
        now = rates(t)
        taken = choose(won, lost, rng)
        waiting.append((taken, rng.random(runs) < now[taken]))
        regret += now.max() - now[taken]
        if forget < 1:
            won *= forget
            lost *= forget
        if len(waiting) > delay:
            of, reward = waiting.popleft()
            won[every, of] += reward
            lost[every, of] += ~reward
            if window is not None:
                held.append((of, reward))
                if len(held) > window:
                    of, reward = held.popleft()
                    won[every, of] -= reward
                    lost[every, of] -= ~reward
        if t + 1 in marks:
            found.append(regret.copy())
    return np.array(found)
