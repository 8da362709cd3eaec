"""What a model earned that would not have come without it, against a permanent holdout."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats._cells import cells
from keepwell.stats.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class AttributedValue:
    """The gain over the holdout, by decision and over all decisions that the model made.

    `share` is the gain as a share of the holdout's mean value, `mean_held_out` (None where that is
    0 or less).
    """

    per_decision: Interval
    total: Interval
    decisions: int
    held_out: int
    mean_held_out: float
    share: float | None

    @property
    def proven(self) -> bool:
        """Whether the gain is above zero beyond chance."""
        return self.per_decision.lower > 0


def attribute_value(
    value: npt.ArrayLike,
    held_out: npt.ArrayLike,
    *,
    units: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> AttributedValue:
    """Mean value of decisions outside the holdout minus that inside, and what it sums to.

    The holdout is a random part of the units that the model never touches. With `units` (the
    customer) decisions of one unit may resemble one another; a unit on both sides is refused, as it
    would carry the model's effect into the holdout.

    `weights` say how often a row counts in its side's mean: where a model had a share of the
    decisions that changed over time, the holdout's decisions of a time count by that share, so that
    a good season is not taken for a good model.

    Weak at: a small holdout, which decides the width; heavy tails (a few orders are the total);
    values that the model's decisions move from one unit to another (use `switchback`); units that
    stay for longer because of the model, whose later decisions count too.

    value: shape (n,), money. held_out: shape (n,), true or 1 for the holdout. units: shape (n,), a
    key a row. weights: shape (n,), above 0. Both sides need two units. Raises ValueError otherwise.
    Source: Liang and Zeger 1986; Welch 1947; Hall 1992 for the skew of money.

    >>> rng = np.random.default_rng(0)
    >>> held = rng.random(5000) < 0.1
    >>> gain = attribute_value(rng.exponential(10, size=5000) + 2 * ~held, held)
    >>> round(gain.per_decision.lower, 1), round(gain.per_decision.upper, 1), gain.proven
    (1.1, 3.0, True)
    """
    x = _arrays.vector("value", value, least=4)
    side = _arrays.labels("held_out", held_out).astype(np.int64)
    _arrays.same_length(value=x, held_out=side)
    _, unit = _arrays.keys("units", np.arange(x.size) if units is None else units, x.size)
    given = None if weights is None else _arrays.vector("weights", weights)
    if given is not None:
        _arrays.same_length(value=x, weights=given)
        if (given <= 0).any():
            raise ValueError(f"weights must be above 0, received {given.min():g}")
    found = cells(x, side, unit, 2, given)
    if (found.units < 2).any():
        message = (
            "both sides must have at least two units, received "
            f"{found.units[0]} outside the holdout and {found.units[1]} inside"
        )
        raise ValueError(message)
    both = found.of_unit.size - np.unique(found.of_unit).size
    if both:
        message = f"units must be on one side each, received {both} both in the holdout and outside"
        raise ValueError(message)
    each = found.contrast(np.array([1.0, -1.0]), level)
    decisions, base = int(found.rows[0]), float(found.means[1])
    return AttributedValue(
        per_decision=each,
        total=Interval(
            estimate=each.estimate * decisions,
            lower=each.lower * decisions,
            upper=each.upper * decisions,
            level=level,
            standard_error=each.standard_error * decisions,
            rows=each.rows,
            clusters=each.clusters,
        ),
        decisions=decisions,
        held_out=int(found.rows[1]),
        mean_held_out=base,
        share=each.estimate / base if base > 0 else None,
    )
