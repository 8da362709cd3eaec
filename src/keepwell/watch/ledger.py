"""The value ledger: what each version earned, window by window, against the non-ML baseline on the same decisions."""

from __future__ import annotations

import numpy as np

from keepwell.core.clock import Time
from keepwell.core.records.watching import LedgerEntry
from keepwell.watch.grid import Grid
from keepwell.watch.readings import View
from keepwell.watch.totals import half_width


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
    half = half_width(variance, freedom)
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


def _variance(gain: np.ndarray, times: np.ndarray, grid: Grid) -> tuple[float, int]:
    _, place = np.unique(times // grid.cluster, return_inverse=True)
    days = int(place.max()) + 1
    if days < 2:  # a window of one day: its rows are all there is to tell chance by
        place, days = np.arange(len(gain)), len(gain)
    deviations = np.bincount(place, weights=gain - gain.mean())
    return float((deviations**2).sum()) * days / max(days - 1, 1), max(days - 1, 1)
