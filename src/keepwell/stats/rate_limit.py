"""Whether a rate (errors by request) exceeds its limit, asked after every request if one likes."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from keepwell.stats import _arrays
from keepwell.stats._anytime import Anytime, looked

# Points of the mixture over alternatives, even in log rate from the limit to 1. More change the
# evidence by under 0.1 nats; the finest alternative is limit^(1 - 1/65), 10% above a limit of 0.2%.
ALTERNATIVES = 64


@dataclass(frozen=True, kw_only=True)
class RateLimitTest(Anytime):
    """A one-sided sequential test of "the rate is at most `limit`", for canary error rates.

    Bets that the next event is likelier than the limit: the wealth of a mixture of such bets is
    prod (p/limit)^event ((1-p)/(1-limit))^no event, averaged over p in (limit, 1). If each
    request's chance is at most the limit, given the past, the wealth exceeds 1/alpha ever with
    chance at most alpha, at any number of requests, however often it is looked at. Exact: no
    large-sample step. Only the counts matter, so records hold the state.

    Weak at: rates just above the limit, which take about log(1/alpha) / KL(rate, limit) requests;
    bursts: requests that fail together break "given the past" unless each burst is one event; the
    limit must be known, so to compare with a live arm use `rate_comparison`.

    limit, alpha: in (0, 1). Raises ValueError otherwise.
    Source: Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting
    (2010.09686), diversified bets; Ville 1939.

    >>> test = RateLimitTest(limit=0.002, alpha=0.01)
    >>> test = test.update(events=4, trials=200)
    >>> test.exceeded, round(test.p_value, 4)
    (False, 0.0171)
    >>> test.update(events=1, trials=5).exceeded
    True
    """

    limit: float
    alpha: float
    events: int = 0
    trials: int = 0
    peak_log_evidence: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.inside("limit", self.limit, 0, 1)
        _arrays.inside("alpha", self.alpha, 0, 1)

    def update(self, *, events: int, trials: int) -> Self:
        """Add requests and how many of them were events; looks once, after them.

        Raises ValueError unless 0 <= events <= trials.
        """
        if not 0 <= events <= trials:
            message = f"events must be within [0, trials={trials}], received {events}"
            raise ValueError(message)
        after = replace(self, events=self.events + events, trials=self.trials + trials)
        return looked(after)

    @property
    def log_evidence(self) -> float:
        """Log of the wealth now, in nats: above 0 speaks for a rate above the limit."""
        steps = np.arange(1, ALTERNATIVES + 1) / (ALTERNATIVES + 1)
        log_rate = math.log(self.limit) * (1 - steps)
        gains = self.events * (log_rate - math.log(self.limit)) + (self.trials - self.events) * (
            np.log1p(-np.exp(log_rate)) - math.log1p(-self.limit)
        )
        return float(np.logaddexp.reduce(gains)) - math.log(ALTERNATIVES)

    @property
    def exceeded(self) -> bool:
        """Whether the limit was found exceeded at some look."""
        return self._found
