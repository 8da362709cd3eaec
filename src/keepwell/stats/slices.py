"""Finds the group of rows that a model serves worst, without being fooled by the small ones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays
from keepwell.stats.multiplicity import holm


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One group of rows: its mean loss, and how sure it is that the others fare better.

    `lower` and `upper` cover all slices at once with the level (Bonferroni). `gap` is the slice's
    mean minus that of all other rows; `p_value` is one-sided for gap > 0, adjusted by Holm.
    """

    name: object
    rows: int
    clusters: int
    mean: float
    lower: float
    upper: float
    gap: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class SliceReport:
    """All slices, worst first; those too small to judge by name; the mean over all rows.

    `worst` is the slice with the largest mean loss among those large enough, or None.
    """

    overall: float
    level: float
    slices: tuple[Slice, ...]
    too_small: tuple[object, ...]

    @property
    def worst(self) -> Slice | None:
        """The slice with the largest mean loss."""
        return self.slices[0] if self.slices else None

    @property
    def harmed(self) -> tuple[Slice, ...]:
        """Slices that are worse than the rest beyond chance, at 1 - level over all of them."""
        return tuple(each for each in self.slices if each.p_value <= 1 - self.level)


def evaluate_slices(
    losses: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    minimum: int = 30,
    level: float = 0.95,
) -> SliceReport:
    """Mean loss by slice with intervals, each slice against all other rows, Holm-adjusted.

    A loss is larger when worse (pass 1 - hit for hits). Slices with fewer than `minimum` rows are
    named, not judged. With `clusters` (one key a row, as the day) rows of a cluster may resemble
    one another, also across slices.

    Weak at: it sees only the slices that it is given, one column at a time; many small slices
    cost power; fewer than ten clusters make it too sure. Slices present in a single cluster count
    as too small.

    losses: shape (n,), any unit; groups, clusters: shape (n,).
    Raises ValueError for NaN, unequal lengths, minimum < 2 or a level not in (0, 1).
    Source: Holm 1979; Liang and Zeger 1986 for clusters; Chung et al. 2019, Slice Finder, for
    testing slices against the rest.

    >>> rng = np.random.default_rng(0)
    >>> groups = np.repeat(["a", "b", "c"], [500, 500, 10])
    >>> report = evaluate_slices(rng.normal(size=1010) + (groups == "b"), groups)
    >>> report.worst.name, [each.name for each in report.harmed], report.too_small
    ('b', ['b'], ('c',))
    """
    x = _arrays.vector("losses", losses, least=2)
    found, place = _arrays.keys("groups", groups, x.size)
    names = found.tolist()  # as Python's own types, whatever the array's
    _, block = _arrays.keys("clusters", np.arange(x.size) if clusters is None else clusters, x.size)
    _arrays.at_least("minimum", minimum, 2)
    _arrays.inside("level", level, 0, 1)
    sizes = np.bincount(place)
    spans = np.array([np.unique(block[place == g]).size for g in range(len(names))])
    judged = [g for g in range(len(names)) if sizes[g] >= minimum and spans[g] >= 2]
    alpha = (1 - level) / max(len(judged), 1)
    drafts: list[Slice] = []
    for g in judged:
        own = place == g
        mean = float(x[own].mean())
        half = float(special.stdtrit(spans[g] - 1, 1 - alpha / 2)) * _error(x, own, block)
        gap, p = _against_rest(x, own, block)
        drafts.append(
            Slice(
                name=names[g],
                rows=int(sizes[g]),
                clusters=int(spans[g]),
                mean=mean,
                lower=mean - half,
                upper=mean + half,
                gap=gap,
                p_value=p,
            )
        )
    adjusted = holm([draft.p_value for draft in drafts])
    judgements = (
        Slice(
            name=draft.name,
            rows=draft.rows,
            clusters=draft.clusters,
            mean=draft.mean,
            lower=draft.lower,
            upper=draft.upper,
            gap=draft.gap,
            p_value=p,
        )
        for draft, p in zip(drafts, adjusted, strict=True)
    )
    return SliceReport(
        overall=float(x.mean()),
        level=level,
        slices=tuple(sorted(judgements, key=lambda each: -each.mean)),
        too_small=tuple(names[g] for g in range(len(names)) if g not in judged),
    )


def _influence(x: _arrays.FloatArray, own: npt.NDArray[np.bool_]) -> _arrays.FloatArray:
    """How far each row moves the mean of the rows in `own`; zero for the others."""
    moves: _arrays.FloatArray = np.where(own, x - x[own].mean(), 0.0) / own.sum()
    return moves


def _spread(moves: _arrays.FloatArray, block: _arrays.IntArray, taking_part: int) -> float:
    sums = np.bincount(block, weights=moves)
    return float(np.sqrt(taking_part / (taking_part - 1) * (sums**2).sum()))


def _error(x: _arrays.FloatArray, own: npt.NDArray[np.bool_], block: _arrays.IntArray) -> float:
    return _spread(_influence(x, own), block, np.unique(block[own]).size)


def _against_rest(
    x: _arrays.FloatArray, own: npt.NDArray[np.bool_], block: _arrays.IntArray
) -> tuple[float, float]:
    rest = ~own
    if rest.sum() < 2:
        return 0.0, 1.0
    gap = float(x[own].mean() - x[rest].mean())
    # One influence of both means together, so that a cluster with rows on both sides cancels.
    blocks = np.unique(block).size
    error = _spread(_influence(x, own) - _influence(x, rest), block, blocks)
    if error == 0:
        return gap, 1.0
    freedom = min(np.unique(block[own]).size, np.unique(block[rest]).size) - 1
    return gap, float(1 - special.stdtr(max(freedom, 1), gap / error))
