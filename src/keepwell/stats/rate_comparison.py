"""Whether rare events come oftener from one arm than from another, asked after every event."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats._anytime import Anytime, looked

# The mixture over rate ratios: even in the logarithm, up to a hundredfold; 48 points are 10% apart.
RATIOS = 48
GREATEST_RATIO = 100.0


Side = Literal["greater", "different"]
"""Whether only a greater rate of the treatment counts, or any other rate."""


def log_evidence(
    treatment_events: npt.ArrayLike,
    control_events: npt.ArrayLike,
    *,
    treatment_share: float,
    side: Side = "greater",
) -> _arrays.FloatArray:
    """Log evidence against equal rates, in nats, of many counts at once and one share.

    `RateComparison` keeps it by look, through changes of the share.

    Weak at: as `RateComparison`.

    Counts: non-negative, any shapes that broadcast; the result has their shape.
    Raises ValueError for negative events or a share outside (0, 1).
    Source: Lindon and Malek 2022 (2011.03567).

    >>> log_evidence([2, 12], [40, 12], treatment_share=0.05).round(1).tolist()
    [-1.9, 18.4]
    """
    a, b = np.broadcast_arrays(
        np.asarray(treatment_events, dtype=np.float64), np.asarray(control_events, dtype=np.float64)
    )
    if a.size and min(a.min(), b.min()) < 0:
        message = f"events must be 0 or more, received {min(a.min(), b.min()):g}"
        raise ValueError(message)
    log_ratio, norm = _bets(treatment_share, side)
    found = np.full(a.shape, -np.inf)
    # One ratio at a time: looks by ratios at once would not fit where a study asks for millions.
    for ratio, share in zip(log_ratio, norm, strict=True):
        np.logaddexp(found, a * ratio - (a + b) * share, out=found)
    return np.asarray(found - math.log(log_ratio.size))


@dataclass(frozen=True, kw_only=True)
class RateComparison(Anytime):
    """A sequential test of "treatment's rate is at most (or equal to) control's", for rare events.

    With random assignment, each event falls on the treatment arm with chance
    share * r / (share * r + 1 - share), r the ratio of the rates, whatever the rates and however
    the load moves. The evidence is the likelihood ratio of the events' arms against r = 1,
    averaged over r; it exceeds 1/alpha ever with chance at most alpha. Requests without event need
    not be counted, and the treatment's share may change between updates, as in a ramp.

    Weak at: events that are not rare, where it ignores the requests' numbers and so part of the
    evidence; shares that are not what really was sent (check with `sample_ratio`); events that
    come in bursts from one arm.

    alpha: in (0, 1). side: "greater" (treatment is worse, if events are errors) or "different".
    Raises ValueError for parameters outside these domains.
    Source: Lindon and Malek 2022, Anytime-valid inference for multinomial count data (2011.03567);
    Przyborowski and Wilenski 1940 for the conditional binomial.

    >>> test = RateComparison(alpha=0.01)
    >>> test = test.update(treatment_events=2, control_events=40, treatment_share=0.05)
    >>> test.rejected, round(test.p_value, 2)
    (False, 1.0)
    >>> test.update(treatment_events=12, control_events=12, treatment_share=0.05).rejected
    True
    """

    alpha: float
    side: Side = "greater"
    treatment_events: int = 0
    control_events: int = 0
    log_gains: tuple[float, ...] = ()
    peak_log_evidence: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.inside("alpha", self.alpha, 0, 1)
        _arrays.one_of("side", self.side, ("greater", "different"))

    def update(self, *, treatment_events: int, control_events: int, treatment_share: float) -> Self:
        """Add events of both arms, and the share of traffic the treatment had; looks once.

        treatment_share: in (0, 1), of the requests that either of the two arms got.
        Raises ValueError for negative events or a share outside (0, 1).
        """
        _arrays.at_least("treatment_events", treatment_events, 0)
        _arrays.at_least("control_events", control_events, 0)
        log_ratio, norm = _bets(treatment_share, self.side)
        before = np.asarray(self.log_gains) if self.log_gains else np.zeros(log_ratio.size)
        gains = before + treatment_events * log_ratio - (treatment_events + control_events) * norm
        after = replace(
            self,
            treatment_events=self.treatment_events + treatment_events,
            control_events=self.control_events + control_events,
            log_gains=tuple(gains.tolist()),
        )
        return looked(after)

    @property
    def log_evidence(self) -> float:
        """Log of the evidence now, in nats: above 0 speaks against equal rates."""
        if not self.log_gains:
            return 0.0
        return float(np.logaddexp.reduce(self.log_gains)) - math.log(len(self.log_gains))

    @property
    def rejected(self) -> bool:
        """Whether the rates were found different (treatment's greater) at some look."""
        return self._found


def _bets(share: float, side: str) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    """Log of each ratio r of the mixture, and log of (share r + 1 - share), without overflow."""
    s = _arrays.inside("treatment_share", share, 0, 1)
    up = math.log(GREATEST_RATIO) * np.arange(1, RATIOS + 1) / RATIOS
    log_ratio = up if side == "greater" else np.concatenate([-up[::-1], up])
    return log_ratio, np.logaddexp(math.log(s) + log_ratio, math.log1p(-s))
