"""What a version would have earned on the decisions of the log: nothing that is stored, it is computed when asked."""

from __future__ import annotations

from typing import Literal

from keepwell.core.clock import Time
from keepwell.core.records.base import Value

Way = Literal["propensity", "replay"]


class Range(Value, frozen=True, kw_only=True):
    """An estimate a decision and its 95% interval."""

    estimate: float
    low: float
    high: float


class Appraisal(Value, frozen=True, kw_only=True):
    """What a version would have earned a decision, in the unit of the KPI, and how far the log supports it."""

    version: str
    endpoint: str
    way: Way
    unit: str
    since: Time
    until: Time
    decisions: int
    """In the log in that time."""
    rows: int
    """Of them, those the estimate is made from."""
    trained_on: int
    """Left out, because the version's training set holds decisions of their time."""
    unknown: int
    """Left out, because their outcome (or their answer) is not known."""
    value: Range
    """What the version earns."""
    logged: float
    """What was earned on the same rows by those who answered."""
    gain: Range
    """The version's less that."""
    total: Range
    """The gain over all of the rows."""
    clusters: int
    """Days in a replay, units (or decisions, where there are none) else."""
    effective: float | None = None
    """Of the propensity way: rows or units that its weights leave."""
    snips: Range | None = None
    """Of the propensity way: the value by weights alone, for comparison."""
    over_holdout: Range | None = None
    """The version's value less that of the units that are held out; None where they or its own are too few."""
    notes: tuple[str, ...] = ()
    """What it rests on, in plain words."""
