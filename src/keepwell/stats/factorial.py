"""Main effects and interactions when several things are varied at once, such as model x threshold."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats._cells import Cells, cells
from keepwell.stats.intervals import Interval
from keepwell.stats.multiplicity import holm


@dataclass(frozen=True, kw_only=True)
class FactorEffect:
    """What taking `levels` of `factors` adds; for two factors, beyond the sum of their own effects.

    Factors not named are averaged evenly over their levels. `p_value` is two-sided and adjusted by
    Holm over all effects of the report; `interval` is of this effect alone.
    """

    factors: tuple[str, ...]
    levels: tuple[object, ...]
    interval: Interval
    p_value: float


@dataclass(frozen=True, kw_only=True)
class FactorialReport:
    """Effects against the base levels, main effects first, and the mean of each cell."""

    base: tuple[object, ...]
    effects: tuple[FactorEffect, ...]
    cells: tuple[tuple[tuple[object, ...], Interval], ...]

    def effect(self, **levels: object) -> FactorEffect:
        """Find the effect of these levels, as `effect(model="b")`. Raises ValueError for no such.

        Names of factors that are no words of Python are found in `effects`.
        """
        for each in self.effects:
            if dict(zip(each.factors, each.levels, strict=True)) == levels:
                return each
        message = f"effect must be one of the report's, received {levels}"
        raise ValueError(message)


def factorial_effects(
    value: npt.ArrayLike,
    factors: Mapping[str, npt.ArrayLike],
    *,
    base: Mapping[str, object] | None = None,
    order: int = 2,
    units: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> FactorialReport:
    """Effects of each factor's levels against its base, and how pairs of them work together.

    A main effect is the mean over all combinations of the other factors, each counting the same
    however much traffic it got; an interaction of two is what both add beyond their own effects.

    Weak at: combinations with little traffic, the thinnest of which decides the width; effects of
    one combination only (read the cells); traffic that a bandit steered (use `adaptive_effects`).

    value: shape (n,). factors: name to levels, shape (n,). base: the level to compare with, by
    factor; the first in sorted order otherwise. order: 1 for main effects only, 2 for pairs too, and
    so on. units: shape (n,), a key a row. Every combination needs two units.
    Raises ValueError otherwise. Source: Yates 1937; Wu and Hamada 2009, chapter 4; Liang and Zeger
    1986; Welch 1947; Holm 1979.

    >>> rng = np.random.default_rng(0)
    >>> model, threshold = rng.integers(2, size=(2, 8000))
    >>> value = rng.normal(size=8000) + 0.5 * model - 0.2 * threshold + 0.3 * model * threshold
    >>> report = factorial_effects(value, {"model": model, "threshold": threshold})
    >>> report.effect(model=1).interval.excludes(0.65), report.effect(model=1).p_value < 0.001
    (False, True)
    >>> report.effect(model=1, threshold=1).interval.excludes(0.3)
    False
    """
    x = _arrays.vector("value", value, least=4)
    if not factors:
        message = "factors must name at least one, received none"
        raise ValueError(message)
    names = tuple(factors)
    found = [_arrays.keys(name, factors[name], x.size) for name in names]
    levels = [tuple(distinct.tolist()) for distinct, _ in found]
    for name, each in zip(names, levels, strict=True):
        if len(each) < 2:
            message = f"factor {name!r} must have at least two levels, received {each}"
            raise ValueError(message)
    if not 1 <= order <= len(names):
        message = f"order must be within [1, {len(names)}], received {order!r}"
        raise ValueError(message)
    start = _base(names, levels, base or {})
    _, unit = _arrays.keys("units", np.arange(x.size) if units is None else units, x.size)
    shape = tuple(len(each) for each in levels)
    cell = np.ravel_multi_index([place for _, place in found], shape).astype(np.int64)
    summed = cells(x, cell, unit, math.prod(shape))
    combinations = list(itertools.product(*levels))
    if (summed.units < 2).any():
        thin = int(summed.units.argmin())
        message = (
            f"every combination must have at least two units, received {summed.units[thin]} of "
            + ", ".join(f"{n}={v!r}" for n, v in zip(names, combinations[thin], strict=True))
        )
        raise ValueError(message)
    drafts = [
        (chosen, places, summed.contrast(_weights(shape, start, chosen, places), level))
        for size in range(1, order + 1)
        for chosen in itertools.combinations(range(len(names)), size)
        for places in itertools.product(
            *([p for p in range(shape[f]) if p != start[f]] for f in chosen)
        )
    ]
    adjusted = holm([_p_value(interval) for _, _, interval in drafts])
    return FactorialReport(
        base=tuple(each[place] for each, place in zip(levels, start, strict=True)),
        effects=tuple(
            FactorEffect(
                factors=tuple(names[f] for f in chosen),
                levels=tuple(levels[f][p] for f, p in zip(chosen, places, strict=True)),
                interval=interval,
                p_value=float(p_value),
            )
            for (chosen, places, interval), p_value in zip(drafts, adjusted, strict=True)
        ),
        cells=_means(summed, combinations, level),
    )


def _base(
    names: tuple[str, ...], levels: list[tuple[object, ...]], base: Mapping[str, object]
) -> tuple[int, ...]:
    unknown = sorted(set(base) - set(names))
    if unknown:
        message = f"base must name factors ({', '.join(names)}), received {', '.join(unknown)}"
        raise ValueError(message)
    for name, each in zip(names, levels, strict=True):
        if base.get(name, each[0]) not in each:
            message = f"base of {name!r} must be one of {each}, received {base[name]!r}"
            raise ValueError(message)
    return tuple(
        each.index(base.get(name, each[0])) for name, each in zip(names, levels, strict=True)
    )


def _weights(
    shape: tuple[int, ...],
    start: tuple[int, ...],
    chosen: tuple[int, ...],
    places: tuple[int, ...],
) -> _arrays.FloatArray:
    """Level minus base along each chosen factor, an even mean along the others; shape (C,)."""
    weights = np.ones(1)
    for factor, size in enumerate(shape):
        if factor in chosen:
            along = np.zeros(size)
            along[places[chosen.index(factor)]] = 1.0
            along[start[factor]] = -1.0
        else:
            along = np.full(size, 1 / size)
        weights = np.multiply.outer(weights, along).ravel()
    return weights


def _p_value(interval: Interval) -> float:
    if interval.standard_error == 0:
        return 1.0 if interval.estimate == 0 else 0.0
    return float(2 * special.ndtr(-abs(interval.estimate) / interval.standard_error))


def _means(
    summed: Cells, combinations: list[tuple[object, ...]], level: float
) -> tuple[tuple[tuple[object, ...], Interval], ...]:
    one = np.eye(len(combinations))
    return tuple(
        (names, summed.contrast(one[place], level)) for place, names in enumerate(combinations)
    )
