"""Whether arms got the traffic that the plan promised them, asked after every request."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats._anytime import Anytime, looked


def log_evidence(
    counts: npt.ArrayLike, *, shares: npt.ArrayLike, concentration: float = 5_000.0
) -> _arrays.FloatArray:
    """Log evidence against the planned shares, in nats, of many counts at once.

    The Dirichlet-multinomial likelihood over the planned one. `SampleRatioTest` keeps it by look.

    Weak at: as `SampleRatioTest`.

    counts: shape (..., k), non-negative, arms last; shares: shape (k,); the result has shape (...).
    Raises ValueError for another last dimension.
    Source: Lindon and Malek 2022 (2011.03567), section 3.

    >>> log_evidence([[5050, 4950], [5300, 4700]], shares=[0.5, 0.5]).round(1).tolist()
    [-0.2, 11.5]
    """
    n = np.asarray(counts, dtype=np.float64)
    planned = _arrays.vector("shares", shares, least=2)
    if n.shape[-1:] != planned.shape:
        message = f"counts must have {planned.size} arms last, received shape {n.shape}"
        raise ValueError(message)
    prior = concentration * planned
    mixture = (
        special.gammaln(concentration)
        - special.gammaln(concentration + n.sum(axis=-1))
        + (special.gammaln(prior + n) - special.gammaln(prior)).sum(axis=-1)
    )
    return np.asarray(mixture - (n * np.log(planned)).sum(axis=-1))


@dataclass(frozen=True, kw_only=True)
class SampleRatioTest(Anytime):
    """A sequential test of "units fall on arms with these shares" (sample ratio mismatch).

    A mismatch means that the assignment or the log is broken, and that no comparison of the arms
    may be believed. The evidence is the likelihood ratio of a Dirichlet mixture of shares against
    the planned ones; it exceeds 1/alpha ever with chance at most alpha.

    Weak at: it counts units as independent, so count distinct units where assignment sticks to
    them, not their requests; a mismatch in one cohort may cancel overall (test by cohort).

    shares: of k >= 2 arms, each in (0, 1), summing to 1. concentration: of the mixture around the
    planned shares; a deviation d of share p is looked for by p (1 - p) / d^2. 5,000 is 0.7
    percentage points of even shares; its authors use 10,000, which is half a point.
    Raises ValueError for parameters outside these domains.
    Source: Lindon and Malek 2022, Anytime-valid inference for multinomial count data (2011.03567).

    >>> test = SampleRatioTest(shares=(0.5, 0.5), alpha=0.01)
    >>> test.update([5050, 4950]).mismatched, test.update([5300, 4700]).mismatched
    (False, True)
    """

    shares: tuple[float, ...]
    alpha: float
    concentration: float = 5_000.0
    counts: tuple[int, ...] = ()
    carried_log_evidence: float = 0.0
    peak_log_evidence: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.inside("alpha", self.alpha, 0, 1)
        _arrays.inside("concentration", self.concentration, 0, math.inf)
        shares = _arrays.vector("shares", self.shares, least=2)
        if (shares <= 0).any() or abs(shares.sum() - 1) > 1e-9:
            message = f"shares must be positive and sum to 1, received {self.shares}"
            raise ValueError(message)
        if self.counts and len(self.counts) != shares.size:
            message = f"counts must have one entry an arm ({shares.size}), received {self.counts}"
            raise ValueError(message)

    def update(self, counts: npt.ArrayLike) -> Self:
        """Add units by arm, shape (k,); looks once, after them.

        Raises ValueError for another length or negative counts.
        """
        new = _arrays.counts("counts", counts)
        if new.size != len(self.shares):
            message = f"counts must have one entry an arm ({len(self.shares)}), received {new.size}"
            raise ValueError(message)
        before = self.counts or (0,) * len(self.shares)
        after = replace(
            self, counts=tuple(old + int(add) for old, add in zip(before, new, strict=True))
        )
        return looked(after)

    def replan(self, shares: tuple[float, ...]) -> Self:
        """Go on under new shares, keeping the evidence: products of such evidence stay valid."""
        return replace(self, shares=shares, counts=(), carried_log_evidence=self.log_evidence)

    @property
    def log_evidence(self) -> float:
        """Log of the evidence now, in nats: above 0 speaks against the planned shares."""
        if not self.counts:
            return self.carried_log_evidence
        found = log_evidence(self.counts, shares=self.shares, concentration=self.concentration)
        return self.carried_log_evidence + float(found)

    @property
    def mismatched(self) -> bool:
        """Whether a mismatch was found at some look."""
        return self._found
