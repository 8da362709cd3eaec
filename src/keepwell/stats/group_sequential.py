"""A planned number of looks within a declared horizon: sharper than looking whenever one likes.

Where the horizon (units, days) is declared and kept, the chance alpha is spent over the looks by a
function fixed beforehand, and the boundaries follow by numerical integration. Nothing is left
for looks after the horizon; who may go on uses `confidence_sequence` or `outcome_comparison`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays

Spending = Literal["obrien_fleming", "pocock", "kim_demets"]
"""How alpha is spent: late, early, or in between (as alpha t^2)."""
Side = Literal["both", "greater"]
"""Whether a treatment below control counts as well."""

# Beyond eight standard deviations nothing is left of a normal density that alpha could tell.
FAR = 8.0
# Nodes of the integration a standard deviation of the step between two looks; at 3 the boundaries
# are within 1e-9 of those at 20.
NODES = 3.0
PANEL = 32  # nodes of one Gauss-Legendre rule
LEAST_STEP = 0.0005


@dataclass(frozen=True, kw_only=True)
class Boundaries:
    """Critical z values at the looks, and what was spent until each; shapes (k,).

    `information` are the shares of the horizon. Under a true effect, `drift` is the z value that
    is expected at the horizon: effect / standard error there.
    """

    information: tuple[float, ...]
    critical: tuple[float, ...]
    spent: tuple[float, ...]
    side: Side

    def crossing(self, drift: float) -> tuple[float, ...]:
        """Give the chance to cross for the first time at each look, shape (k,)."""
        return crossing(self.information, self.critical, drift=drift, side=self.side)

    def power(self, drift: float) -> float:
        """Give the chance to cross at any look."""
        return float(sum(self.crossing(drift)))


def spent(information: float, *, alpha: float, spending: Spending = "obrien_fleming") -> float:
    """Alpha of one side that may have been spent when a share `information` of the horizon is reached.

    O'Brien-Fleming type: 2 (1 - Phi(z / sqrt(t))), nearly nothing early, so that the last look is
    nearly that of a fixed sample. Pocock type: alpha log(1 + (e - 1) t), about even boundaries.
    Kim-DeMets: alpha t^2.

    Weak at: chosen after the first look, none of them holds.

    information: t >= 0, 1 is the horizon. alpha: in (0, 1). Raises ValueError otherwise.
    Source: Lan and DeMets 1983, Discrete sequential boundaries for clinical trials; Kim and DeMets
    1987.

    >>> [round(spent(t, alpha=0.05), 5) for t in (0.25, 0.5, 1.0)]
    [9e-05, 0.00557, 0.05]
    """
    _arrays.inside("alpha", alpha, 0, 1)
    _arrays.one_of("spending", spending, ("obrien_fleming", "pocock", "kim_demets"))
    t = min(_arrays.at_least("information", information, 0), 1.0)
    if t == 0:
        return 0.0
    if spending == "obrien_fleming":
        return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(t)))
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * t)
    return alpha * t**2


def boundaries(
    information: npt.ArrayLike,
    *,
    alpha: float,
    spending: Spending = "obrien_fleming",
    side: Side = "both",
) -> Boundaries:
    """Critical z values at looks at these shares of the horizon.

    The chance to cross at look k, not before, is what is newly spent there, when the z values are
    those of sums of independent increments (means, rates, differences of them; with many units).

    Weak at: z values whose variance is estimated from few units; a horizon that moves with what
    was seen.

    information: shape (k,), k >= 1, growing by 0.0005 or more, within (0, 1].
    alpha: in (0, 1), of both sides together; each side spends its half. Raises ValueError otherwise.
    Source: Armitage, McPherson and Rowe 1969; Lan and DeMets 1983; Jennison and Turnbull 2000,
    Group Sequential Methods, chapter 19, for the integration.

    >>> plan = boundaries([0.25, 0.5, 0.75, 1.0], alpha=0.05)
    >>> [round(z, 2) for z in plan.critical]
    [4.33, 2.96, 2.36, 2.01]
    >>> round(plan.power(3.24), 2)  # 0.90 with one look at the end
    0.89
    """
    t = _looks(information)
    sides = 2 if _arrays.one_of("side", side, ("both", "greater")) == "both" else 1
    total = [sides * spent(float(share), alpha=alpha / sides, spending=spending) for share in t]
    return _boundaries(tuple(t.tolist()), tuple(total), side)


def crossing(
    information: npt.ArrayLike,
    critical: npt.ArrayLike,
    *,
    drift: float = 0.0,
    side: Side = "both",
) -> tuple[float, ...]:
    """Chance to cross given critical z values for the first time at each look.

    For any boundary: it also tells beforehand how soon an always-valid test will stop.

    Weak at: as `boundaries`.

    information, critical: shape (k,); an infinite critical value is a look that cannot stop.
    drift: expected z at information 1. Raises ValueError for other shapes or looks out of order.
    Source: Armitage, McPherson and Rowe 1969, Repeated significance tests on accumulating data.

    >>> naive = crossing([0.2, 0.4, 0.6, 0.8, 1.0], [1.96] * 5)
    >>> round(sum(naive), 3)  # five looks at a test of one
    0.142
    """
    t = _looks(information)
    z = np.asarray(critical, dtype=np.float64)
    if z.shape != t.shape or np.isnan(z).any():
        message = f"critical must be {t.size} numbers, one a look, received shape {z.shape}"
        raise ValueError(message)
    _arrays.one_of("side", side, ("both", "greater"))
    walk = _Walk(side)
    return tuple(walk.step(float(a), float(c), drift) for a, c in zip(t, z, strict=True))


@dataclass(frozen=True, kw_only=True)
class GroupSequentialTest:
    """A test within a declared horizon, looked at as planned or when data happen to be there.

    `look` takes the share of the horizon reached and the z value; the boundary there follows from
    what the spending function allows and earlier looks left. The looks need not be those planned.

    Weak at: it ends at the horizon, whatever is seen later; the number and the times of looks must
    not be chosen by the z values; z values of few or rare events are not normal.

    alpha: in (0, 1). spending: see `spent`. side: "both" or "greater".
    Raises ValueError for parameters outside these domains.
    Source: Lan and DeMets 1983; Jennison and Turnbull 2000.

    >>> test = GroupSequentialTest(alpha=0.05).look(information=0.5, z=2.1)
    >>> test.rejected, test.finished, round(test.critical[-1], 2)
    (False, False, 2.96)
    >>> test.look(information=1.0, z=2.4).rejected
    True
    """

    alpha: float
    spending: Spending = "obrien_fleming"
    side: Side = "both"
    information: tuple[float, ...] = ()
    z_values: tuple[float, ...] = ()
    critical: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        spent(1.0, alpha=self.alpha, spending=self.spending)
        _arrays.one_of("side", self.side, ("both", "greater"))

    def look(self, *, information: float, z: float) -> Self:
        """Look once. information: share of the horizon, above 1 taken as 1. z: the statistic.

        Raises ValueError for a look after the horizon, or no further than the last one.
        """
        if self.finished:
            message = "information must be within the horizon: the last look was at 1"
            raise ValueError(message)
        if not math.isfinite(z):
            message = f"z must be finite, received {z!r}"
            raise ValueError(message)
        reached = (*self.information, min(information, 1.0))
        plan = boundaries(reached, alpha=self.alpha, spending=self.spending, side=self.side)
        return replace(
            self, information=reached, z_values=(*self.z_values, z), critical=plan.critical
        )

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return bool(self.information) and self.information[-1] >= 1

    @property
    def rejected(self) -> bool:
        """Whether "no difference" was rejected at some look."""
        return any(
            (abs(z) if self.side == "both" else z) >= critical
            for z, critical in zip(self.z_values, self.critical, strict=True)
        )


class _Walk:
    """The density of the sum that has not crossed yet, on the nodes of a quadrature."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.reached = 0.0
        self.nodes = np.zeros(1)
        self.mass = np.ones(1)  # density times quadrature weight

    def tail(self, information: float, critical: float, drift: float = 0.0) -> float:
        """Chance to lie beyond the critical value at the next look, not having crossed before."""
        deviation = math.sqrt(information - self.reached)
        mean = self.nodes + drift * (information - self.reached)
        bound = critical * math.sqrt(information)
        beyond = special.ndtr((mean - bound) / deviation)
        if self.side == "both":
            beyond = beyond + special.ndtr((-bound - mean) / deviation)
        return float(self.mass @ beyond)

    def step(self, information: float, critical: float, drift: float) -> float:
        """Go to the next look, and give the chance to cross there."""
        crossed = self.tail(information, critical, drift)
        deviation = math.sqrt(information - self.reached)
        root = math.sqrt(information)
        centre = drift * information
        high = min(critical * root, centre + FAR * root)
        low = centre - FAR * root
        if self.side == "both":
            low = max(-critical * root, low)
        if high <= low:  # all of it has crossed
            self.mass = np.zeros(1)
            self.nodes = np.zeros(1)
        else:
            panels = math.ceil(NODES * (high - low) / deviation / PANEL)
            edges = np.linspace(low, high, panels + 1)
            unit, weights = _quadrature()
            half = (high - low) / panels / 2
            nodes = ((edges[:-1] + half)[:, None] + half * unit).ravel()
            away = (nodes[:, None] - self.nodes - drift * (information - self.reached)) / deviation
            density = np.exp(-(away**2) / 2) @ self.mass / (deviation * math.sqrt(2 * math.pi))
            self.mass = density * np.tile(weights, panels) * half
            self.nodes = nodes
        self.reached = information
        return crossed


@lru_cache(maxsize=1)
def _quadrature() -> tuple[_arrays.FloatArray, _arrays.FloatArray]:
    nodes, weights = np.polynomial.legendre.leggauss(PANEL)
    return nodes, weights


@lru_cache(maxsize=64)  # the same at every look but the last
def _boundaries(information: tuple[float, ...], total: tuple[float, ...], side: Side) -> Boundaries:
    walk = _Walk(side)
    critical = []
    before = 0.0
    for t, after in zip(information, total, strict=True):
        z = _solve(partial(walk.tail, t), after - before)
        critical.append(z)
        walk.step(t, z, 0.0)
        before = after
    return Boundaries(information=information, critical=tuple(critical), spent=total, side=side)


def _solve(tail: Callable[[float], float], chance: float) -> float:
    """Find the critical value with this chance beyond it, by halving; infinite for none."""
    if tail(FAR) >= chance:
        return math.inf
    low, high = 0.0 if tail(0.0) > chance else -FAR, FAR
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > chance else (low, middle)
    return (low + high) / 2


def _looks(information: npt.ArrayLike) -> _arrays.FloatArray:
    t = _arrays.vector("information", information)
    if (np.diff(t, prepend=0.0) < LEAST_STEP).any() or t[-1] > 1 + 1e-12:
        message = (
            f"information must grow by {LEAST_STEP} or more at each look, within (0, 1], "
            f"received {t.tolist()}"
        )
        raise ValueError(message)
    return np.minimum(t, 1.0)
