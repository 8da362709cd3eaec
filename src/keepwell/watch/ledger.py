"""The value ledger: what each version earned, window by window, against the non-ML baseline on the same decisions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import special

from keepwell.core.clock import DAY, Time
from keepwell.core.errors import InvalidInput
from keepwell.core.records.watching import LedgerEntry
from keepwell.watch.grid import Grid
from keepwell.watch.readings import View

LEVEL = 0.95


def ledger_entry(view: View, *, endpoint: str, version: int, now: Time) -> LedgerEntry | None:
    """Make a version's entry for one window; None without labelled answers or where the KPI could not be told.

    Money is that of the decisions whose outcome is known, and nobody else's. ``sum_squares`` is the variance
    of ``difference`` by day: squared deviations of the days' totals, times days / (days - 1), so that adding
    it up over windows gives the variance of the sum (Liang and Zeger 1986).
    """
    money = view.money
    if money is None or money.problem or view.declaration is None:
        return None
    gain = money.model - money.baseline
    variance, freedom = _variance(gain, money.times, view.grid)
    difference = float(gain.sum())
    half = _half(variance, freedom)
    return LedgerEntry(
        endpoint=endpoint,
        version=version,
        start=view.rows.start,
        end=view.rows.end,
        unit=view.declaration.kpi_unit,
        decisions=int(view.rows.answered.sum()),
        labelled=len(gain),
        value=float(money.model.sum()),
        baseline=float(money.baseline.sum()),
        difference=difference,
        low=difference - half,
        high=difference + half,
        sum_squares=variance,
        computed=now,
    )


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger over several windows. ``low`` and ``high`` are the ends of the 95% interval of ``difference``."""

    unit: str
    decisions: int
    labelled: int
    value: float
    """What the models' decisions earned."""
    baseline: float
    """What the baseline rule would have earned on them."""
    difference: float
    low: float
    high: float


def totals(entries: Sequence[LedgerEntry]) -> Totals:
    """Add up entries of any versions and windows; days are taken as independent, versions too.

    Raises InvalidInput for no entries, or entries in different units.
    """
    units = {entry.unit for entry in entries}
    if len(units) != 1:
        raise InvalidInput(
            f"Entries in {len(units)} units cannot be added up: {sorted(units)}.",
            where="value ledger",
            todo="Wait for the first labelled window, or add up each unit alone.",
        )
    difference = sum(entry.difference for entry in entries)
    variance = sum(entry.sum_squares for entry in entries)
    days = sum(max((entry.end - entry.start) // DAY, 2) - 1 for entry in entries)
    half = _half(variance, days)
    return Totals(
        unit=units.pop(),
        decisions=sum(entry.decisions for entry in entries),
        labelled=sum(entry.labelled for entry in entries),
        value=sum(entry.value for entry in entries),
        baseline=sum(entry.baseline for entry in entries),
        difference=difference,
        low=difference - half,
        high=difference + half,
    )


def _variance(gain: np.ndarray, times: np.ndarray, grid: Grid) -> tuple[float, int]:
    _, place = np.unique(times // grid.cluster, return_inverse=True)
    days = int(place.max()) + 1
    if days < 2:  # a window of one day: its rows are all there is to tell chance by
        place, days = np.arange(len(gain)), len(gain)
    deviations = np.bincount(place, weights=gain - gain.mean())
    return float((deviations**2).sum()) * days / max(days - 1, 1), max(days - 1, 1)


def _half(variance: float, freedom: int) -> float:
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance))
