"""Whether rare events come oftener from one arm than from another, asked after every event."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from keepwell.stats import _arrays

# The mixture over rate ratios: even in the logarithm, up to a hundredfold; 48 points are 10% apart.
RATIOS = 48
GREATEST_RATIO = 100.0


@dataclass(frozen=True, kw_only=True)
class RateComparison:
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
    side: Literal["greater", "different"] = "greater"
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
        share = _arrays.inside("treatment_share", treatment_share, 0, 1)
        log_ratio = self._log_ratios()
        # log of (share r + 1 - share), without overflow.
        norm = np.logaddexp(math.log(share) + log_ratio, math.log1p(-share))
        before = np.asarray(self.log_gains) if self.log_gains else np.zeros(log_ratio.size)
        gains = before + treatment_events * log_ratio - (treatment_events + control_events) * norm
        after = replace(
            self,
            treatment_events=self.treatment_events + treatment_events,
            control_events=self.control_events + control_events,
            log_gains=tuple(gains.tolist()),
        )
        return replace(after, peak_log_evidence=max(self.peak_log_evidence, after.log_evidence))

    @property
    def log_evidence(self) -> float:
        """Log of the evidence now, in nats: above 0 speaks against equal rates."""
        if not self.log_gains:
            return 0.0
        return float(np.logaddexp.reduce(self.log_gains)) - math.log(len(self.log_gains))

    @property
    def p_value(self) -> float:
        """The anytime p-value: least alpha at which it would have been rejected at some look."""
        return min(1.0, math.exp(-self.peak_log_evidence))

    @property
    def rejected(self) -> bool:
        """Whether the rates were found different (treatment's greater) at some look."""
        return self.peak_log_evidence >= -math.log(self.alpha)

    def _log_ratios(self) -> _arrays.FloatArray:
        up = math.log(GREATEST_RATIO) * np.arange(1, RATIOS + 1) / RATIOS
        return up if self.side == "greater" else np.concatenate([-up[::-1], up])
