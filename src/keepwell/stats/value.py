"""What a model earned against its baseline, in money, with an interval."""

from dataclasses import dataclass

import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats.intervals import Interval, clustered_mean_interval, mean_interval


@dataclass(frozen=True, kw_only=True)
class ValueDifference:
    """The gain over the baseline, by decision and in total, in the unit of the values.

    `total` is `per_decision` times the decisions made: the interval is of what such decisions
    earn in expectation, not of the accident that these were the ones.
    """

    per_decision: Interval
    total: Interval
    decisions: int

    @property
    def proven(self) -> bool:
        """Whether the gain is above zero beyond chance."""
        return self.per_decision.lower > 0


def value_against_baseline(
    value: npt.ArrayLike,
    baseline: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> ValueDifference:
    """Mean and total of value minus baseline value on the same decisions.

    Paired: the baseline's value of a decision is what the baseline's choice would have earned on
    it. With `clusters` (the day, the customer) decisions of one cluster may resemble one another.

    Weak at: the baseline's value must be known for each decision, which holds for a rule replayed
    on full outcomes, not for actions whose outcome was never seen (use a holdout then); heavy
    tails, where a few decisions are the total; reading it daily and stopping when it pleases.

    value, baseline: shape (n,), n >= 2, one currency. Raises ValueError for NaN, unequal lengths
    or a single cluster. Source: Student 1908; Liang and Zeger 1986.

    >>> gain = value_against_baseline([12.0, 9.0, 11.0], [10.0, 8.0, 10.0])
    >>> gain.total.estimate, gain.decisions
    (4.0, 3)
    """
    a = _arrays.vector("value", value, least=2)
    b = _arrays.vector("baseline", baseline, least=2)
    _arrays.same_length(value=a, baseline=b)
    if clusters is None:
        each = mean_interval(a - b, level=level)
    else:
        each = clustered_mean_interval(a - b, clusters, level=level)
    return ValueDifference(
        per_decision=each,
        total=Interval(
            estimate=float((a - b).sum()),
            lower=each.lower * a.size,
            upper=each.upper * a.size,
            level=level,
            standard_error=each.standard_error * a.size,
            rows=each.rows,
            clusters=each.clusters,
        ),
        decisions=a.size,
    )
