"""The difference of two arms' means with an interval that holds at every look at once.

The arms hold different units; for differences on the same rows use `confidence_sequence`. A number
known of each unit before it was assigned may be given beside its value, and takes its share of the
noise away (CUPED).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats._normal_mixture import Side, factor, log_evidence, precision


@dataclass(frozen=True, kw_only=True)
class ArmSums:
    """All that is kept of an arm: rows, means, and sums of squared deviations and their products.

    The covariate's are 0 where none is given. `squares`, `covariate_squares` and `products` are
    sums of deviations from the means, so a large mean costs no digits.

    Weak at: it keeps no order, so it cannot tell that a mean moved.

    Source: Chan, Golub and LeVeque 1979, Updating formulae for computing sample variances.

    >>> sums = ArmSums().update([1.0, 2.0]).update([6.0])
    >>> sums.count, sums.mean, sums.squares
    (3, 3.0, 14.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    covariate_mean: float = 0.0
    covariate_squares: float = 0.0
    products: float = 0.0

    def update(self, values: npt.ArrayLike, covariate: npt.ArrayLike | None = None) -> Self:
        """Add rows, shape (n,), n >= 0. Raises ValueError for NaN or unequal lengths."""
        y = _arrays.vector("values", values, least=0)
        x = (
            np.zeros(y.size)
            if covariate is None
            else _arrays.vector("covariate", covariate, least=0)
        )
        _arrays.same_length(values=y, covariate=x)
        if not y.size:
            return self
        count = self.count + y.size
        dy, dx = float(y.mean()) - self.mean, float(x.mean()) - self.covariate_mean
        ey, ex = y - y.mean(), x - x.mean()
        between = self.count * y.size / count
        return replace(
            self,
            count=count,
            mean=self.mean + dy * y.size / count,
            squares=self.squares + float(ey @ ey) + dy**2 * between,
            covariate_mean=self.covariate_mean + dx * y.size / count,
            covariate_squares=self.covariate_squares + float(ex @ ex) + dx**2 * between,
            products=self.products + float(ey @ ex) + dy * dx * between,
        )


@dataclass(frozen=True, kw_only=True)
class DifferenceSequence:
    """A confidence sequence for treatment's mean less control's, units independent.

    With chance 1 - alpha the true difference lies within the bounds at all looks together, in the
    limit: estimate +- s sqrt(2 (n r + 1) / (n r) log(sqrt(n r + 1) / alpha)), s its standard error
    (each arm's own variance), n the units of both arms, and for few units the t form of it. With a
    covariate the estimate is (y1 - y0) - theta (x1 - x0), theta the slope within arms of all units
    so far; it aims at the same difference, since assignment knows nothing of x.

    Weak at: rare events and heavy skew at few units, since variances are estimated: for outcomes 0
    or 1 `outcome_comparison` is exact, and its verdict goes before this interval. `first_look`
    is the guard. Units whose values come in groups need whole groups as units. Traffic shares
    that follow the outcome (bandits) need propensities: this does not hold there.

    alpha: chance of ever missing the difference. tuned_for: units of both arms at which a decision
    is hoped for, >= 2. first_look: units in each arm before which the bounds are infinite.
    Raises ValueError for parameters outside these domains.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021 (2103.06476), section 3, for
    randomised experiments; Deng, Xu, Kohavi and Walker 2013 for the covariate.

    >>> rng = np.random.default_rng(0)
    >>> sequence = DifferenceSequence(alpha=0.05, tuned_for=2000)
    >>> for _ in range(10):
    ...     sequence = sequence.update(treatment=rng.normal(0.3, 1.0, size=100),
    ...                                control=rng.normal(0.0, 1.0, size=100))
    >>> round(sequence.lower, 2), round(sequence.estimate, 2), round(sequence.upper, 2)
    (0.18, 0.32, 0.45)
    """

    alpha: float
    tuned_for: float
    side: Side = "both"
    first_look: int = 30
    treatment: ArmSums = field(default_factory=ArmSums)
    control: ArmSums = field(default_factory=ArmSums)

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.inside("alpha", self.alpha, 0, 1)
        _arrays.at_least("tuned_for", self.tuned_for, 2)
        _arrays.one_of("side", self.side, ("both", "lower", "upper"))
        _arrays.at_least("first_look", self.first_look, 2)

    def update(
        self,
        *,
        treatment: npt.ArrayLike,
        control: npt.ArrayLike,
        treatment_covariate: npt.ArrayLike | None = None,
        control_covariate: npt.ArrayLike | None = None,
    ) -> Self:
        """Add units of both arms, shapes (n,) and (m,), and what was known of each before.

        Raises ValueError for NaN, unequal lengths, or a covariate in one arm only.
        """
        if (treatment_covariate is None) != (control_covariate is None):
            message = "the covariate must be given for both arms or for neither"
            raise ValueError(message)
        return replace(
            self,
            treatment=self.treatment.update(treatment, treatment_covariate),
            control=self.control.update(control, control_covariate),
        )

    @property
    def theta(self) -> float:
        """Slope of the value on the covariate within arms; 0 without a covariate that varies."""
        spread = self.treatment.covariate_squares + self.control.covariate_squares
        return (self.treatment.products + self.control.products) / spread if spread > 0 else 0.0

    @property
    def estimate(self) -> float:
        """Treatment's mean less control's, adjusted for the covariate."""
        away = self.treatment.covariate_mean - self.control.covariate_mean
        return self.treatment.mean - self.control.mean - self.theta * away

    @property
    def standard_error(self) -> float:
        """Standard error of the estimate; infinite while an arm has fewer than two units."""
        if min(self.treatment.count, self.control.count) < 2:
            return math.inf
        return math.sqrt(sum(_left(arm, self.theta) for arm in (self.treatment, self.control)))

    @property
    def radius(self) -> float:
        """Distance of the bounds from the estimate; infinite at first."""
        error = self.standard_error
        if min(self.treatment.count, self.control.count) < self.first_look or not error > 0:
            return math.inf
        n = self.treatment.count + self.control.count
        c = precision(self.alpha, self.tuned_for, self.side)
        growth = math.expm1(factor(n, self.alpha, c, self.side))
        room = n - c * growth
        return error * math.sqrt(growth * n * (n + c) / room) if room > 0 else math.inf

    @property
    def lower(self) -> float:
        """Lower bound; -inf for side "upper"."""
        return -math.inf if self.side == "upper" else self.estimate - self.radius

    @property
    def upper(self) -> float:
        """Upper bound; inf for side "lower"."""
        return math.inf if self.side == "lower" else self.estimate + self.radius

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds now."""
        return not self.lower <= value <= self.upper

    def log_evidence(self, difference: float = 0.0) -> float:
        """Log evidence against this true difference now, in nats, as `multiplicity` adds it up.

        The bounds exclude the difference when it reaches -log(alpha). 0 before the first look.
        """
        error = self.standard_error
        if min(self.treatment.count, self.control.count) < self.first_look or not error > 0:
            return 0.0
        n = self.treatment.count + self.control.count
        away = self.estimate - difference
        c = precision(self.alpha, self.tuned_for, self.side)
        share = n * away**2 / (n * error**2 + away**2)
        return log_evidence(n, share, c, side=self.side, away=away)


def _left(arm: ArmSums, theta: float) -> float:
    """Variance of the arm's adjusted mean."""
    squares = arm.squares - 2 * theta * arm.products + theta**2 * arm.covariate_squares
    return max(squares, 0.0) / (arm.count - 1) / arm.count
