"""What versions earned, cost and returned, as the value ledger tells it: computed when asked, never stored."""

from __future__ import annotations

from typing import Literal

from keepwell.core.clock import Time
from keepwell.core.records.appraisals import Range
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


Against = Literal["baseline", "holdout"]
"""What earnings are held against: the rule without a model on the same decisions, or the units that are held out."""


class HeldOut(Value, frozen=True, kw_only=True):
    """An endpoint's holdout, and what the decisions outside it have earned over those inside."""

    endpoint: str
    model: str
    version: int
    """The version that answers the units that are held out."""
    share: float
    since_plan: int
    """The comparison counts from this traffic plan on, since which the holdout has stood as it is."""
    since: Time
    """When that plan was written, by the clock."""
    by: str
    reason: str
    units: int
    """Outside the holdout."""
    units_held_out: int
    decisions: int
    """Outside the holdout, labelled or not; decisions that a cohort placed are on neither side."""
    decisions_held_out: int
    labelled: int
    """Of those outside, the ones that ``earned`` is made from."""
    labelled_held_out: int
    astray: int
    """Decisions of units that are held out which another arm answered; they count as held out all the same."""
    unit: str
    """Of money."""
    earned: float | None = None
    """A decision, outside; None while too little is labelled, or without a KPI."""
    earned_held_out: float | None = None
    gain: Range | None = None
    """A decision, outside less inside."""
    total: Range | None = None
    """The gain over all labelled decisions outside."""
    notes: tuple[str, ...] = ()


class Earned(Value, frozen=True, kw_only=True):
    """What one version earned at one endpoint, over the baseline or over the units that are held out."""

    endpoint: str
    model: str
    version: int
    against: Against = "baseline"
    """What ``earned`` is the gain over."""
    since_plan: int = 0
    """Traffic plan since which the holdout stands; 0: it is over the baseline."""
    unit: str
    earned: float
    low: float
    high: float
    """Ends of the 95% interval of ``earned``."""
    decisions: int
    labelled: int
    """Decisions that ``earned`` is made from; ``decisions`` counts those without an outcome too."""


class Return(Earned, frozen=True, kw_only=True):
    """One version in the value ledger: what it earned over the baseline or the holdout, what it cost, the return."""

    currency: str
    costs: tuple[Cost, ...]
    cost: float
    """The sum of what is measured and priced."""
    rate: Rate | None
    """None where the cost is not whole; ``notes`` say why."""
    notes: tuple[str, ...] = ()
