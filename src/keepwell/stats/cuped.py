"""Takes out of a value what was foreseeable before the units were assigned, so fewer are needed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats.difference_sequence import ArmSums, DifferenceSequence
from keepwell.stats.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """The slope on the covariate, its centre, and the share of the variance that is left.

    `variance_left` is 1 - correlation^2: units needed shrink by that factor.
    """

    theta: float
    covariate_mean: float
    correlation: float
    variance_left: float
    rows: int

    def apply(self, values: npt.ArrayLike, covariate: npt.ArrayLike) -> _arrays.FloatArray:
        """Adjust values, shape (n,): y - theta (x - covariate_mean), the same mean, less noise.

        Raises ValueError for NaN or unequal lengths.
        """
        y = _arrays.vector("values", values, least=0)
        x = _arrays.vector("covariate", covariate, least=0)
        _arrays.same_length(values=y, covariate=x)
        return y - self.theta * (x - self.covariate_mean)


def cuped(values: npt.ArrayLike, covariate: npt.ArrayLike) -> Adjustment:
    """Fit the adjustment of a value by a covariate known before assignment.

    theta = cov(y, x) / var(x). Fit it on both arms together, or on the weeks before: one slope for
    all units keeps the difference of arms unbiased.

    Weak at: a covariate that the treatment could have changed (measured after assignment), which
    biases the difference; a covariate with few values that matter (new users all at 0).

    values, covariate: shape (n,), n >= 3, any units; a covariate that does not vary gives theta 0.
    Raises ValueError for NaN or unequal lengths.
    Source: Deng, Xu, Kohavi and Walker 2013, Improving the sensitivity of online controlled
    experiments by utilizing pre-experiment data.

    >>> rng = np.random.default_rng(0)
    >>> before = rng.normal(size=5000)
    >>> value = 0.8 * before + 0.6 * rng.normal(size=5000)
    >>> fitted = cuped(value, before)
    >>> left = fitted.apply(value, before).var() / value.var()
    >>> round(fitted.variance_left, 2), round(float(left), 2)
    (0.36, 0.36)
    """
    y = _arrays.vector("values", values, least=3)
    x = _arrays.vector("covariate", covariate, least=3)
    _arrays.same_length(values=y, covariate=x)
    dy, dx = y - y.mean(), x - x.mean()
    spread, total, together = float(dx @ dx), float(dy @ dy), float(dx @ dy)
    known = spread > 0 and total > 0
    correlation = together / float(np.sqrt(spread * total)) if known else 0.0
    return Adjustment(
        theta=together / spread if spread > 0 else 0.0,
        covariate_mean=float(x.mean()),
        correlation=correlation,
        variance_left=1 - correlation**2,
        rows=y.size,
    )


def cuped_difference(
    treatment: npt.ArrayLike,
    control: npt.ArrayLike,
    *,
    treatment_covariate: npt.ArrayLike,
    control_covariate: npt.ArrayLike,
    level: float = 0.95,
) -> Interval:
    """Interval of the adjusted difference of two arms' means, at a planned end.

    Each arm has its own variance (Welch); the slope is that within arms. Looking more than once:
    `DifferenceSequence` with the covariate.

    Weak at: as `cuped`, and as `mean_interval`.

    treatment, treatment_covariate: shape (n,), control ones (m,), n, m >= 3; level in (0, 1).
    Raises ValueError for NaN or unequal lengths.
    Source: Deng, Xu, Kohavi and Walker 2013; Welch 1947 for the degrees of freedom.

    >>> rng = np.random.default_rng(1)
    >>> before = rng.normal(size=2000)
    >>> value = 0.8 * before + 0.6 * rng.normal(size=2000)
    >>> found = cuped_difference(value[:1000] + 0.1, value[1000:],
    ...                          treatment_covariate=before[:1000],
    ...                          control_covariate=before[1000:])
    >>> found.excludes(0.0), round(found.standard_error, 3)
    (True, 0.027)
    """
    _arrays.inside("level", level, 0, 1)
    for name, values in (("treatment", treatment), ("control", control)):
        _arrays.vector(name, values, least=3)
    found = DifferenceSequence(alpha=0.05, tuned_for=100).update(
        treatment=treatment,
        control=control,
        treatment_covariate=treatment_covariate,
        control_covariate=control_covariate,
    )
    freedom = _welch(found.treatment, found.control, found.theta)
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * found.standard_error
    return Interval(
        estimate=found.estimate,
        lower=found.estimate - half,
        upper=found.estimate + half,
        level=level,
        standard_error=found.standard_error,
        rows=found.treatment.count + found.control.count,
        clusters=found.treatment.count + found.control.count,
    )


def _welch(treatment: ArmSums, control: ArmSums, theta: float) -> float:
    each = []
    for arm in (treatment, control):
        squares = arm.squares - 2 * theta * arm.products + theta**2 * arm.covariate_squares
        each.append((max(squares, 0.0) / (arm.count - 1) / arm.count, arm.count - 1))
    total = sum(variance for variance, _ in each)
    parts = sum(variance**2 / freedom for variance, freedom in each)
    return total**2 / parts if parts > 0 else float(sum(freedom for _, freedom in each))
