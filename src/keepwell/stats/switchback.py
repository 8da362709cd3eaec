"""The effect of an arm where units interfere: all traffic switches together, block by block of time.

When one customer's answer changes what is left for the next (stock, couriers, seats), splitting
customers compares arms that share one market; splitting time does not.
"""

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats._cells import cells
from keepwell.stats.intervals import Interval


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
