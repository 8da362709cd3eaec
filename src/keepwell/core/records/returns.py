"""What a version cost and what it returned, as the value ledger tells it: computed when asked, never stored."""

from __future__ import annotations

from keepwell.core.records.base import Value


class Cost(Value, frozen=True, kw_only=True):
    """One part of what a version cost."""

    name: str
    """``training``, ``serving``, ``artefact``, ``log`` or ``labels``."""
    unit: str
    """Of ``quantity``: ``cpu hours``, ``GB months`` or ``labels``."""
    quantity: float | None
    """None: not measured."""
    price: float | None
    """None: not set."""
    amount: float | None
    """None unless it is measured and priced."""


class Rate(Value, frozen=True, kw_only=True):
    """Earned less cost, over cost: 0 is what was paid, 1 is twice that. With the 95% interval of what was earned."""

    estimate: float
    low: float
    high: float


class Return(Value, frozen=True, kw_only=True):
    """One version in the value ledger: what it earned over the baseline, what it cost, and the return on it."""

    endpoint: str
    model: str
    version: int
    unit: str
    earned: float
    low: float
    high: float
    """Ends of the 95% interval of ``earned``."""
    decisions: int
    labelled: int
    currency: str
    costs: tuple[Cost, ...]
    cost: float
    """The sum of what is measured and priced."""
    rate: Rate | None
    """None where the cost is not whole; ``notes`` say why."""
    notes: tuple[str, ...] = ()
