"""Where a sample-ratio mismatch comes from, so that the alarm names its likely cause."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from keepwell.stats import _arrays

# A named cause leaves the rest of the traffic at its planned shares: this is the level at which
# the rest may look different by accident.
REST_ALPHA = 0.01
# A story of some segments must be this much likelier than "everywhere alike" to be told.
LIKELIER = 20.0


@dataclass(frozen=True, kw_only=True)
class MismatchCause:
    """The segments that carry a mismatch; without a `dimension` it is everywhere alike.

    `shares` are the arms' shares in those segments, `excess` the units by arm beyond the planned
    ones there. `p_value` allows for all candidates that were looked at. `rest_p_value` is that of
    the plan holding elsewhere (1 if nothing is elsewhere).
    """

    dimension: str | None
    segments: tuple[str, ...]
    counts: tuple[int, ...]
    shares: tuple[float, ...]
    excess: tuple[float, ...]
    p_value: float
    rest_p_value: float
    arms: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Say it for people."""
        worst = max(range(len(self.excess)), key=lambda arm: abs(self.excess[arm]))
        amount = (
            f"{abs(self.excess[worst]):,.0f} units {'more' if self.excess[worst] > 0 else 'fewer'}"
        )
        if self.dimension is None:
            return (
                f"{self.arms[worst]} has {amount} than planned in every segment alike: "
                "look at the assignment itself, or at what loses an arm's units before they count"
            )
        where = (
            self.segments[0]
            if len(self.segments) == 1
            else f"{self.segments[0]} to {self.segments[-1]}"
            if len(self.segments) > 3
            else ", ".join(self.segments)
        )
        return f"{self.arms[worst]} has {amount} than planned where {self.dimension} is {where}"


def mismatch_cause(
    counts: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    shares: npt.ArrayLike,
    ordered: Collection[str] = (),
    arms: Sequence[str] | None = None,
) -> MismatchCause:
    """Name the segments that carry a mismatch, from counts by arm in each segment.

    Each candidate is a story: the plan holds everywhere but in some segments of one dimension (a
    browser, two countries, the hours since Tuesday), which have shares of their own. The story
    with the greatest likelihood is told, after a price for the number of stories its dimension
    could have told; the story "everywhere alike" pays nothing. Where segments have no order the
    candidates are the most deviating one, two, three and so on; where they have (time), each run
    of neighbours.

    Weak at: two causes at once, of which it names the stronger; a cause that none of the
    dimensions shows, which it reports as everywhere alike. It explains an alarm of
    `sample_ratio` and is none itself: its p-value is right when asked once.

    counts: by dimension, by segment (in order, for `ordered` ones), units by arm, length k >= 2.
    Every dimension holds the same units. shares: shape (k,), as planned, summing to 1. arms: their
    k names, for the sentence. Raises ValueError for no dimension, unequal totals, or other numbers of arms.
    Source: Wilks 1938 for the likelihood ratio; Kulldorff 1997, A spatial scan statistic, for
    runs; Fabijan et al. 2019, Diagnosing sample ratio mismatch in online controlled experiments.

    >>> cause = mismatch_cause(
    ...     {"browser": {"firefox": [5010, 4990], "safari": [3000, 2600], "chrome": [9950, 10050]},
    ...      "country": {"de": [8990, 8820], "fr": [8970, 8820]}},
    ...     shares=[0.5, 0.5], arms=["champion", "challenger"])
    >>> cause.sentence
    'champion has 200 units more than planned where browser is safari'
    """
    planned = _arrays.vector("shares", shares, least=2)
    if (planned <= 0).any() or abs(planned.sum() - 1) > 1e-9:
        message = f"shares must be positive and sum to 1, received {planned.tolist()}"
        raise ValueError(message)
    called = tuple(arms or (f"arm {place}" for place in range(planned.size)))
    if len(called) != planned.size:
        message = f"arms must be {planned.size} names, received {called}"
        raise ValueError(message)
    tables = {name: _table(name, segments, planned.size) for name, segments in counts.items()}
    if not tables:
        message = "counts must have at least one dimension"
        raise ValueError(message)
    totals = {name: table.sum(axis=0).tolist() for name, table in tables.items()}
    whole = np.asarray(next(iter(totals.values())))
    if any(total != whole.tolist() for total in totals.values()):
        message = f"each dimension must hold the same units, received {totals}"
        raise ValueError(message)
    freedom = planned.size - 1
    alike = float(_ratio(whole[None], planned)[0]) + 2 * math.log(LIKELIER)
    best: tuple[float, str | None, list[int], float] = (alike, None, [], 0.0)
    for name, table in tables.items():
        candidates, prices = _runs(len(table)) if name in ordered else _worst_first(table, planned)
        if not candidates:
            continue
        inside = np.stack([table[chosen].sum(axis=0) for chosen in candidates])
        # Twice the log of the number of stories is what picking the best of them wins by chance.
        scores = _ratio(inside, planned) - 2 * np.asarray(prices)
        rest = special.chdtrc(freedom, _ratio(whole - inside, planned))
        top = int(np.where(rest >= REST_ALPHA, scores, -np.inf).argmax())
        if scores[top] > best[0] and rest[top] >= REST_ALPHA:
            best = (float(scores[top]), name, candidates[top], prices[top])
    _, dimension, chosen, price = best
    held = whole if dimension is None else tables[dimension][chosen].sum(axis=0)
    p_value = float(special.chdtrc(freedom, _ratio(held[None], planned)[0]))
    elsewhere = _ratio((whole - held)[None], planned)[0]
    names = [] if dimension is None else list(counts[dimension])
    return MismatchCause(
        dimension=dimension,
        segments=tuple(names[place] for place in chosen),
        counts=tuple(int(count) for count in held),
        shares=tuple(float(count) for count in held / max(held.sum(), 1)),
        excess=tuple(float(count) for count in held - held.sum() * planned),
        p_value=min(1.0, p_value * math.exp(price) * (len(tables) if dimension else 1)),
        rest_p_value=float(special.chdtrc(freedom, elsewhere)),
        arms=called,
    )


def _table(name: str, segments: Mapping[str, Sequence[int]], arms: int) -> _arrays.FloatArray:
    rows = [_arrays.counts(f"counts[{name!r}][{key!r}]", row) for key, row in segments.items()]
    if not rows or any(row.size != arms for row in rows):
        message = f"counts[{name!r}] must have segments of {arms} arms each"
        raise ValueError(message)
    return np.stack(rows).astype(np.float64)


def _ratio(counts: _arrays.FloatArray, planned: _arrays.FloatArray) -> _arrays.FloatArray:
    """Twice the log likelihood ratio of own shares to the planned ones, by row; 0 where empty."""
    expected = counts.sum(axis=1, keepdims=True) * planned
    return np.asarray(2 * special.rel_entr(counts, expected).sum(axis=1))


def _worst_first(
    table: _arrays.FloatArray, planned: _arrays.FloatArray
) -> tuple[list[list[int]], list[float]]:
    """List the most deviating segment, the two most, and so on, but never all of them.

    Of k segments among s there are at most s^k stories; the second list gives its logarithm.
    """
    order = np.argsort(-_ratio(table, planned), kind="stable")
    sizes = range(1, len(table))
    return (
        [sorted(order[:many].tolist()) for many in sizes],
        [many * math.log(len(table)) for many in sizes],
    )


def _runs(segments: int) -> tuple[list[list[int]], list[float]]:
    """List the runs of neighbours, but never all of them, and the logarithm of their number."""
    runs = [
        list(range(start, stop))
        for start in range(segments)
        for stop in range(start + 1, segments + 1)
        if stop - start < segments
    ]
    return runs, [math.log(len(runs) or 1)] * len(runs)
