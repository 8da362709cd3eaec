"""The value ledger added up: what several windows earned together, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import msgspec
from scipy import special

from keepwell.core.clock import DAY
from keepwell.core.errors import InvalidInput
from keepwell.core.records.watching import LedgerEntry

LEVEL = 0.95


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
    half = half_width(variance, days)
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


def half_width(variance: float, freedom: int) -> float:
    """Give half the width of the 95% interval (Student's t) of a sum with this variance."""
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * sqrt(variance)
