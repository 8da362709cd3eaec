"""Notices a shift in a series of window statistics, at a stated time between false alarms."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays

# The mixture's bets. For standardised windows they are best for shifts of these many standard
# deviations; for bounded ones they are these shares of the greatest bet that cannot go broke.
SHIFTS = (0.25, 0.5, 1.0, 2.0, 4.0)
STAKES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.9)

# 1 / ndtri(3/4): makes the median absolute deviation that of a normal's standard deviation.
NORMAL_MAD = 1.482602218505602
# Mean absolute deviation to standard deviation of a normal: sqrt(pi / 2).
NORMAL_MEAN_DEVIATION = 1.2533141373155003
# The median absolute deviation knows as much as 37% of the values' standard deviation would
# (Rousseeuw and Croux 1993); the median's variance is pi/2 of the mean's.
MAD_EFFICIENCY = 0.37


@dataclass(frozen=True, kw_only=True)
class ShiftDetector:
    """A one-sided detector of an upward shift, with a stated average run length.

    Each bet multiplies its wealth by a factor whose mean is at most 1 before the change, and a new
    unit is staked at every step (Shiryaev-Roberts): wealth = (wealth + 1) * factor. The sum minus
    the number of steps is a supermartingale, so the mean time to a false alarm at wealth 1/alpha is
    at least 1/alpha = `average_run_length`, for any dependence that keeps the factors' means.
    A mixture of bets finds small shifts late and large ones at once. For both directions run two,
    one fed with -x, each with twice the run length.

    kind "standardised": x is a window's z (see `robust_z`); factor exp(b (x - tolerance) - b^2/2);
    before the change x has mean at most `tolerance` and normal-like tails.
    kind "bounded": x within [0, 1]; factor 1 + b (x / tolerance - 1); before the change its mean is
    at most `tolerance`, nothing else is assumed.

    Weak at: a z whose reference was short or unlike today keeps a constant offset and alarms in
    time: at run length 500, with 15 to 60 reference windows, about 45% did within 500 windows at
    tolerance 0, about 7% at 0.3. So set `tolerance` to the shift that does not matter. Skewed window
    statistics (PSI) belong on a log scale before `robust_z`. It looks upward only.

    average_run_length: windows between false alarms, > 1. tolerance: any number for
    "standardised", in (0, 1) for "bounded". Raises ValueError outside these domains.
    Source: Shin, Ramdas and Rinaldo 2023, E-detectors (2203.03532); Pollak 1985.

    >>> detector = ShiftDetector.standardised(average_run_length=1000)
    >>> for x in [0.1, -0.4, 0.3, 2.5, 2.1, 3.0]:
    ...     detector = detector.step(x)
    >>> detector.steps, detector.alarm, round(detector.log_evidence, 1)
    (6, True, 8.0)
    """

    kind: Literal["standardised", "bounded"]
    average_run_length: float
    tolerance: float
    log_wealth: tuple[float, ...]
    steps: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.one_of("kind", self.kind, ("standardised", "bounded"))
        _arrays.inside("average_run_length", self.average_run_length, 1, math.inf)
        if self.kind == "bounded":
            _arrays.inside("tolerance", self.tolerance, 0, 1)
        elif not math.isfinite(self.tolerance):
            message = f"tolerance must be finite, received {self.tolerance!r}"
            raise ValueError(message)
        bets = len(SHIFTS if self.kind == "standardised" else STAKES)
        if len(self.log_wealth) != bets:
            message = f"log_wealth must have {bets} entries, received {len(self.log_wealth)}"
            raise ValueError(message)

    @classmethod
    def standardised(cls, *, average_run_length: float, tolerance: float = 0.0) -> Self:
        """Start a detector for z values of windows."""
        return cls(
            kind="standardised",
            average_run_length=average_run_length,
            tolerance=tolerance,
            log_wealth=(-math.inf,) * len(SHIFTS),
        )

    @classmethod
    def bounded(cls, *, average_run_length: float, tolerance: float) -> Self:
        """Start a detector for window means within [0, 1], as an error rate or a Brier score."""
        return cls(
            kind="bounded",
            average_run_length=average_run_length,
            tolerance=tolerance,
            log_wealth=(-math.inf,) * len(STAKES),
        )

    def step(self, x: float) -> Self:
        """Take one window's statistic. Raises ValueError for NaN, or outside [0, 1] if bounded."""
        if not math.isfinite(x) or (self.kind == "bounded" and not 0 <= x <= 1):
            allowed = "within [0, 1]" if self.kind == "bounded" else "finite"
            message = f"x must be {allowed}, received {x!r}"
            raise ValueError(message)
        if self.kind == "standardised":
            gains = [b * (x - self.tolerance) - b * b / 2 for b in SHIFTS]
        else:
            gains = [math.log1p(stake * (x / self.tolerance - 1)) for stake in STAKES]
        wealth = np.logaddexp(self.log_wealth, 0.0) + gains
        return replace(self, log_wealth=tuple(wealth.tolist()), steps=self.steps + 1)

    def restarted(self) -> Self:
        """Begin anew after an alarm was dealt with."""
        return replace(self, log_wealth=(-math.inf,) * len(self.log_wealth), steps=0)

    @property
    def log_evidence(self) -> float:
        """Log of the mean wealth of the bets, in nats; -inf before the first step."""
        if not self.steps:
            return -math.inf
        return float(np.logaddexp.reduce(self.log_wealth)) - math.log(len(self.log_wealth))

    @property
    def alarm(self) -> bool:
        """Whether the evidence is at the alarm line now."""
        return self.log_evidence >= math.log(self.average_run_length)


def step(state: ShiftDetector, x: float) -> ShiftDetector:
    """Take one window's statistic: `state.step(x)` as a function, for folding over a series.

    >>> from functools import reduce
    >>> start = ShiftDetector.bounded(average_run_length=100, tolerance=0.02)
    >>> reduce(step, [0.01, 0.03, 0.2, 0.3], start).alarm
    True
    """
    return state.step(x)


@dataclass(frozen=True, kw_only=True)
class RobustZ:
    """Windows' statistics on the scale of the reference windows, shapes (k,).

    `z` is (x - center) / scale. `score` is z on a normal scale after allowing for how little a
    short reference knows of its own center and scale: never further from 0 than z, and what a
    detector should be fed.
    """

    center: float
    scale: float
    z: tuple[float, ...]
    score: tuple[float, ...]


def robust_z(values: npt.ArrayLike, reference: npt.ArrayLike) -> RobustZ:
    """Compare windows with reference windows by median and median absolute deviation.

    One odd reference window (a holiday) does not widen the scale. Where over half the reference
    windows are equal the mean absolute deviation takes over; where all are equal, z is 0 for that
    value and infinite for any other (score is cut at 8 either way).

    Weak at: fewer than about 20 reference windows; seasons (take the reference of the same
    weekday); skewed statistics, whose large values get too large a z.

    values: shape (k,); reference: shape (m,), m >= 3, same unit. Raises ValueError for NaN,
    infinities or m < 3.
    Source: Hampel 1974; Iglewicz and Hoaglin 1993; the score by the t distribution with the median
    absolute deviation's efficiency, Rousseeuw and Croux 1993.

    >>> result = robust_z([5.0, 12.0], [4.0, 5.0, 6.0, 5.0, 4.0, 6.0, 5.5])
    >>> [round(z, 2) for z in result.z], [round(s, 2) for s in result.score]
    ([0.0, 4.72], [0.0, 2.03])
    """
    x = _arrays.vector("values", values, least=0)
    r = _arrays.vector("reference", reference, least=3)
    center = float(np.median(r))
    scale = NORMAL_MAD * float(np.median(np.abs(r - center)))
    if scale == 0:
        scale = NORMAL_MEAN_DEVIATION * float(np.abs(r - center).mean())
    away = x - center
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.where(away == 0, 0.0, away / scale)
    freedom = max(MAD_EFFICIENCY * (r.size - 1), 1.0)
    wider = math.sqrt(1 + math.pi / 2 / r.size)
    # By the lower tail, where the distribution functions keep their digits.
    tail = special.stdtr(freedom, -np.abs(z) / wider)
    # A t has heavier tails than a normal, so the score is never further out than z; next to the
    # middle the distribution functions' rounding would say otherwise.
    far = np.minimum(np.clip(-special.ndtri(np.minimum(tail, 0.5)), 0.0, 8.0), np.abs(z))
    score = np.sign(z) * far + 0.0  # no -0.0
    return RobustZ(
        center=center,
        scale=scale,
        z=tuple(z.tolist()),
        score=tuple(score.tolist()),
    )
