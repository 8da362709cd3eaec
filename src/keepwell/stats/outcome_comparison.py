"""Whether yes-or-no outcomes come oftener from one arm than from another, asked after every unit.

Exact at any rate, from two in a thousand to a half, where intervals for a mean need many events.
Each unit's arm was drawn by the plan, so under "no difference" the outcome says nothing about the
arm: the evidence is a bet, outcome by outcome, on which arm it came from.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats._anytime import Anytime, looked

Side = Literal["both", "greater", "less"]
"""Which differences count: any, only treatment above control, or only below."""

# The mixture over effects: log-normal about the design effect, in the log odds ratio. Two standard
# deviations are a factor of e either way, so effects from a third to three times the design effect
# are looked for at nearly no cost; 15 points are 30% apart, and more change the evidence by under
# 0.01 nats.
SPREAD = 0.5
POINTS = 15


def log_evidence(
    treatment_events: npt.ArrayLike,
    treatment_units: npt.ArrayLike,
    control_events: npt.ArrayLike,
    control_units: npt.ArrayLike,
    *,
    rate: float,
    effect: float,
    side: Side = "both",
    treatment_share: float = 0.5,
) -> _arrays.FloatArray:
    """Log evidence against equal rates, in nats, of many counts at once and one share.

    `OutcomeComparison` keeps it by look, through changes of the share.

    Weak at: as `OutcomeComparison`.

    Counts: any shapes that broadcast, events at most units; the result has their shape.
    Raises ValueError for parameters outside their domains, or events beyond the units.
    Source: Grünwald, Henzi and Lardy 2024 (2209.12637).

    >>> evidence = log_evidence([240, 600], [2000, 5000], [200, 500], [2000, 5000],
    ...                         rate=0.10, effect=0.02)
    >>> evidence.round(1).tolist()
    [1.0, 3.8]
    """
    counts = [
        np.asarray(values, dtype=np.float64)
        for values in (treatment_events, treatment_units, control_events, control_units)
    ]
    if (counts[0] > counts[1]).any() or (counts[2] > counts[3]).any() or (counts[0] < 0).any():
        message = "events must be within 0 and the units of their arm"
        raise ValueError(message)
    stakes, weights = _stakes(rate, effect, side, treatment_share)
    a, n, b, m = np.broadcast_arrays(*counts)
    gains = np.stack([a, n - a, b, m - b], axis=-1) @ stakes + weights
    # In place: a study asks for millions of looks.
    peak = gains.max(axis=-1, keepdims=True)
    np.exp(np.subtract(gains, peak, out=gains), out=gains)
    return np.asarray(np.log(gains.sum(axis=-1)) + peak[..., 0])


@dataclass(frozen=True, kw_only=True)
class OutcomeComparison(Anytime):
    """A sequential test of "the outcome does not depend on the arm", for outcomes 0 or 1.

    A unit falls on the treatment arm with chance s, by plan. If its outcome's rates are p1 there
    and p0 in control, a unit with an event was in treatment with chance s p1 / (s p1 + (1-s) p0),
    one without with s (1-p1) / (s (1-p1) + (1-s) (1-p0)). The evidence is the likelihood ratio of
    the arms, given the outcomes, against s, averaged over odds ratios around the design effect. If
    outcome and arm are independent it exceeds 1/alpha ever with chance at most alpha: exactly, at
    any rate, however the rate moves over the day, and whether or not `rate` and `effect` are right.
    Those two only decide how soon a difference is seen: of 10% against 12% at 10,000 units a side it
    finds 96%, with the rate declared as 20% still 95%, as 5% still 92%.

    Weak at: it needs the share that the plan really drew with (check it with `sample_ratio`) and
    one outcome a unit, or units that are independent; effects beyond a fifth or five times the
    design effect. It tests, and gives no interval: see `difference_sequence`.

    alpha: in (0, 1). rate: the control's rate as expected, in (0, 1). effect: the least difference
    of rates worth finding, > 0, rate + effect < 1.
    Raises ValueError for parameters outside these domains.
    Source: Grünwald, Henzi and Lardy 2024, Anytime-valid tests of conditional independence under
    model-X (2209.12637); Turner, Ly and Grünwald 2024, Generic E-variables for exact sequential
    k-sample tests (2106.02693), for the two-by-two table; Robbins 1970 for the mixture.

    >>> test = OutcomeComparison(alpha=0.05, rate=0.10, effect=0.02)
    >>> test = test.update(treatment_events=240, treatment_units=2000, control_events=200,
    ...                    control_units=2000)
    >>> test.rejected, round(test.p_value, 2)
    (False, 0.36)
    >>> test.update(treatment_events=360, treatment_units=3000, control_events=300,
    ...             control_units=3000).rejected
    True
    """

    alpha: float
    rate: float
    effect: float
    side: Side = "both"
    treatment_events: int = 0
    treatment_units: int = 0
    control_events: int = 0
    control_units: int = 0
    log_gains: tuple[float, ...] = ()
    peak_log_evidence: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.inside("alpha", self.alpha, 0, 1)
        _stakes(self.rate, self.effect, self.side, 0.5)

    def update(
        self,
        *,
        treatment_events: int,
        treatment_units: int,
        control_events: int,
        control_units: int,
        treatment_share: float = 0.5,
    ) -> Self:
        """Add units of both arms and how many had the event; looks once, after them.

        treatment_share: in (0, 1), the chance by plan that one of these units fell on treatment.
        Raises ValueError unless 0 <= events <= units in both arms.
        """
        for arm, events, units in (
            ("treatment", treatment_events, treatment_units),
            ("control", control_events, control_units),
        ):
            if not 0 <= events <= units:
                message = f"{arm}_events must be within [0, {arm}_units={units}], received {events}"
                raise ValueError(message)
        stakes, weights = _stakes(self.rate, self.effect, self.side, treatment_share)
        before = np.asarray(self.log_gains) if self.log_gains else weights
        gains = before + (
            treatment_events * stakes[0]
            + (treatment_units - treatment_events) * stakes[1]
            + control_events * stakes[2]
            + (control_units - control_events) * stakes[3]
        )
        after = replace(
            self,
            treatment_events=self.treatment_events + treatment_events,
            treatment_units=self.treatment_units + treatment_units,
            control_events=self.control_events + control_events,
            control_units=self.control_units + control_units,
            log_gains=tuple(gains.tolist()),
        )
        return looked(after)

    @property
    def log_evidence(self) -> float:
        """Log of the evidence now, in nats: above 0 speaks against equal rates."""
        return float(np.logaddexp.reduce(self.log_gains)) if self.log_gains else 0.0

    @property
    def rejected(self) -> bool:
        """Whether the rates were found different (on `side`) at some look."""
        return self._found


def _stakes(
    rate: float, effect: float, side: str, share: float
) -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    """Log gain of each kind of unit by point of the mixture, shape (4, k), and log weights (k,).

    Kinds: treatment with and without the event, control with and without.
    """
    _arrays.inside("rate", rate, 0, 1)
    _arrays.inside("effect", effect, 0, 1 - rate)
    _arrays.one_of("side", side, ("both", "greater", "less"))
    s = _arrays.inside("treatment_share", share, 0, 1)
    z = np.linspace(-3, 3, POINTS)
    design = special.logit(rate + effect) - special.logit(rate)
    odds, weights = design * np.exp(SPREAD * z), -(z**2) / 2
    if side == "less":
        odds = -odds
    elif side == "both":
        odds, weights = np.concatenate([-odds[::-1], odds]), np.concatenate([weights, weights])
    yes = special.log_expit(special.logit(rate) + odds)
    no = special.log_expit(-special.logit(rate) - odds)
    pooled_yes = np.logaddexp(math.log(s) + yes, math.log1p(-s) + math.log(rate))
    pooled_no = np.logaddexp(math.log(s) + no, math.log1p(-s) + math.log1p(-rate))
    stakes = np.stack(
        [
            yes - pooled_yes,
            no - pooled_no,
            math.log(rate) - pooled_yes,
            math.log1p(-rate) - pooled_no,
        ]
    )
    return stakes, weights - np.logaddexp.reduce(weights)
