"""Epsilon-greedy: the arm with the best mean, and a fixed share for looking around."""

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats.exploration import with_floor


def epsilon_greedy(
    counts: npt.ArrayLike, means: npt.ArrayLike, *, epsilon: float = 0.1
) -> _arrays.FloatArray:
    """`1 - epsilon` to the best mean, `epsilon` evenly to all; shapes (..., K).

    Arms without a reward come first; ties share. `epsilon` is at once the exploration floor.

    Weak at: its regret grows for ever in proportion to epsilon, and it explores the worst arm as
    much as the second best.

    counts, means: shape (..., K), K >= 2. epsilon: within [0, 1]. Raises ValueError otherwise.
    Source: Watkins 1989; Auer, Cesa-Bianchi and Fischer 2002.

    >>> epsilon_greedy([10, 10, 10], [0.1, 0.3, 0.2], epsilon=0.3).round(2).tolist()
    [0.1, 0.8, 0.1]
    """
    n = np.asarray(counts, dtype=np.float64)
    m = np.asarray(means, dtype=np.float64)
    if n.shape != m.shape:
        message = f"counts and means must have one shape, received {n.shape} and {m.shape}"
        raise ValueError(message)
    if not (np.isfinite(m) & (n >= 0)).all():
        message = "counts must be 0 or more and means finite"
        raise ValueError(message)
    known = np.where(n > 0, m, np.inf)
    best = known == known.max(axis=-1, keepdims=True)
    return with_floor(best / best.sum(axis=-1, keepdims=True), epsilon)
