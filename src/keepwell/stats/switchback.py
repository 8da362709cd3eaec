"""The effect of an arm where units interfere: all traffic switches together, block by block of time.

When one customer's answer changes what is left for the next (stock, couriers, seats), splitting
customers compares arms that share one market; splitting time does not. `switchback_effect` is for a
horizon fixed beforehand, `switchback_sequence` may be looked at after every block.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats._cells import cells
from keepwell.stats._normal_mixture import Side
from keepwell.stats.confidence_sequence import ConfidenceSequence
from keepwell.stats.intervals import Interval

LEARN = 8
"""Blocks from which predictions begin to be made; they are not judged themselves."""


def switchback_effect(
    value: npt.ArrayLike,
    block: npt.ArrayLike,
    treated: npt.ArrayLike,
    *,
    since: npt.ArrayLike | None = None,
    burn_in: float = 0.0,
    strata: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Mean value of treated minus control blocks, each block's first `burn_in` left out.

    What the last block left behind fades during the burn-in; what remains is compared by block, as
    rows of one block share its arm and its hour. With `strata` (such as the hour of the week)
    blocks are compared within their stratum only.

    Weak at: few blocks (ten an arm at least); effects that last longer than the burn-in, which
    shrink the estimate; arms that alternate instead of being drawn at random for each block, where
    a rhythm of the day looks like an effect.

    value: shape (n,). block: shape (n,), a key a row. treated: shape (n,), 0 or 1, one for a
    block. since: shape (n,), time since the block's start, in the unit of `burn_in`. strata: shape
    (n,), one for a block. Every stratum needs two blocks of each arm with rows after the burn-in.
    Raises ValueError otherwise.
    Source: Hu and Wager 2022 (2209.00197) for the burn-in; Bojinov, Simchi-Levi and Zhao 2023
    (2009.00148) for the design; Liang and Zeger 1986; Welch 1947.

    >>> rng = np.random.default_rng(0)
    >>> block = np.repeat(np.arange(60), 40)
    >>> treated = rng.permutation(60)[block] % 2
    >>> value = rng.normal(size=60)[block] + rng.normal(size=2400) + 2.0 * treated
    >>> effect = switchback_effect(value, block, treated)
    >>> round(effect.lower, 1), round(effect.upper, 1), effect.clusters
    (1.3, 2.3, 60)
    """
    x = _arrays.vector("value", value, least=4)
    arm = _arrays.labels("treated", treated).astype(np.int64)
    names, unit = _arrays.keys("block", block, x.size)
    plain = np.zeros(x.size, dtype=np.int64)
    layers, layer = _arrays.keys("strata", plain if strata is None else strata, x.size)
    _arrays.same_length(value=x, treated=arm)
    for what, each in (("treated", arm), ("strata", layer)):
        pairs = np.unique(np.column_stack([unit, each]), axis=0)
        if len(pairs) > names.size:
            mixed = names[pairs[:-1, 0][np.diff(pairs[:, 0]) == 0][0]]
            message = f"{what} must be one for a block, received more in block {mixed!r}"
            raise ValueError(message)
    _arrays.at_least("burn_in", burn_in, 0)
    if since is None:
        if burn_in > 0:
            message = f"since must be given for a burn_in above 0, received burn_in={burn_in:g}"
            raise ValueError(message)
        kept = np.ones(x.size, dtype=bool)
    else:
        passed = _arrays.vector("since", since)
        _arrays.same_length(value=x, since=passed)
        kept = passed >= burn_in
    found = cells(x[kept], (2 * layer + arm)[kept], unit[kept], 2 * layers.size)
    if (found.units < 2).any():
        place = int(found.units.argmin())
        message = (
            f"every stratum must have two blocks of each arm after the burn-in, received "
            f"{found.units[place]} with treated={place % 2} in stratum {layers[place // 2]!r}"
        )
        raise ValueError(message)
    share = np.bincount(layer[kept], minlength=layers.size) / kept.sum()
    weights = np.repeat(share, 2) * np.tile([-1.0, 1.0], layers.size)
    return found.contrast(weights, level)


@dataclass(frozen=True, kw_only=True)
class SwitchbackSequence:
    """The effect of a block, in the unit of a row's value, with bounds that hold at every look.

    `blocks` is how many were judged; the first `LEARN` only teach what a block is usually worth.
    """

    estimate: float
    lower: float
    upper: float
    blocks: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds."""
        return not self.lower <= value <= self.upper


def switchback_sequence(
    value: npt.ArrayLike,
    start: npt.ArrayLike,
    treated: npt.ArrayLike,
    *,
    share: float = 0.5,
    rows: npt.ArrayLike | None = None,
    group: npt.ArrayLike | None = None,
    season: npt.ArrayLike | None = None,
    alpha: float = 0.05,
    tuned_for: float = 200.0,
    side: Side = "both",
) -> SwitchbackSequence:
    """Mean effect of treated blocks so far, from one mean value a block, valid at any look.

    Chance is the coin that gave each block its arm, and nothing else: what blocks are worth may
    follow the hour, drift, or hang together. A block's score is w (z / p - (1 - z) / (1 - p))
    (y - m), m what blocks before it say it is worth and w the rows they say it has, so its mean is
    w times the block's effect whatever the world does. The bounds are the confidence sequence of the
    scores' mean, over the mean of w. m is the mean of earlier blocks of the same season in the same
    group, drawn to the group's mean, and that to the mean of all.

    Weak at: few blocks (bounds are infinite under 30); effects that last into the next block (leave
    out the rows of a burn-in before the blocks are averaged); groups that interfere; blocks that
    have no rows because of their arm; days that differ while hours do not, which widen the bounds.

    value: shape (n,), a block's mean. start: shape (n,), when it began; blocks of several groups may
    begin together. treated: shape (n,), 0 or 1, drawn for each block by itself. share: p, the chance
    of 1, in (0, 1). rows: shape (n,), behind each mean; without them all blocks weigh the same.
    group, season: shape (n,), keys. alpha, tuned_for (blocks), side: as `ConfidenceSequence`.
    Raises ValueError otherwise.
    Source: Ham, Bojinov, Lindon and Tingley 2022, Design-based confidence sequences (2210.08639),
    sections 3 and 4; Bojinov, Simchi-Levi and Zhao 2023 (2009.00148); Waudby-Smith, Arbour, Sinha,
    Kennedy and Ramdas 2021 (2103.06476).

    >>> rng = np.random.default_rng(0)
    >>> hour = np.arange(24 * 14)
    >>> treated = rng.integers(2, size=hour.size)
    >>> value = 5 * np.sin(hour / 24 * 6.28) + 1.0 * treated + rng.normal(size=hour.size)
    >>> found = switchback_sequence(value, hour, treated, season=hour % 24)
    >>> round(found.lower, 1), round(found.upper, 1), found.blocks
    (0.4, 1.5, 328)
    """
    y = _arrays.vector("value", value, least=0)
    arm = _arrays.labels("treated", treated).astype(np.int64) if y.size else np.zeros(0, np.int64)
    begun = _arrays.vector("start", start, least=0)
    counts = np.ones(y.size) if rows is None else _arrays.vector("rows", rows, least=0)
    _arrays.same_length(value=y, start=begun, treated=arm, rows=counts)
    _arrays.inside("share", share, 0, 1)
    if (counts <= 0).any():
        message = f"rows must be positive, received {counts.min():g}"
        raise ValueError(message)
    plain = np.zeros(y.size, dtype=np.int64)
    if y.size:
        _, whose = _arrays.keys("group", plain if group is None else group, y.size)
        seasons, when = _arrays.keys("season", plain if season is None else season, y.size)
        when = whose * seasons.size + when
    else:
        whose = when = plain
    order = np.lexsort((when, begun))
    known = _Earlier(int(whose.max(initial=0)) + 1, int(when.max(initial=0)) + 1)
    scores: list[float] = []
    weights: list[float] = []
    k = 0
    while k < y.size:
        last = k
        while last < y.size and begun[order[last]] == begun[order[k]]:
            last += 1
        together = order[k:last].tolist()
        if known.blocks >= LEARN:
            for place in together:
                worth, expected = known.of(int(whose[place]), int(when[place]))
                sign = 1 / share if arm[place] else -1 / (1 - share)
                scores.append(expected * sign * (float(y[place]) - worth))
                weights.append(expected)
        for place in together:
            known.learn(int(whose[place]), int(when[place]), float(y[place]), float(counts[place]))
        k = last
    mean = float(np.mean(weights)) if weights else 1.0
    sequence = ConfidenceSequence(alpha=alpha, tuned_for=tuned_for, side=side).update(scores)
    return SwitchbackSequence(
        estimate=sequence.mean / mean,
        lower=sequence.lower / mean,
        upper=sequence.upper / mean,
        blocks=sequence.count,
    )


class _Earlier:
    """What blocks before this one were worth, and how many rows they had: by group and season."""

    def __init__(self, groups: int, seasons: int) -> None:
        self.blocks = 0
        self._all = [0.0, 0.0]
        self._of_group = [[0.0, 0.0, 0.0] for _ in range(groups)]
        self._of_season = [[0.0, 0.0, 0.0] for _ in range(seasons)]

    def learn(self, group: int, season: int, value: float, rows: float) -> None:
        self.blocks += 1
        self._all[0] += value
        self._all[1] += rows
        for sums in (self._of_group[group], self._of_season[season]):
            sums[0] += value
            sums[1] += rows
            sums[2] += 1

    def of(self, group: int, season: int) -> tuple[float, float]:
        """Predict the value and the rows of a block: sums of a narrow kind, one block of the wider."""
        found = [total / self.blocks for total in self._all]
        for value, rows, count in (self._of_group[group], self._of_season[season]):
            found = [(value + found[0]) / (count + 1), (rows + found[1]) / (count + 1)]
        return found[0], found[1]
