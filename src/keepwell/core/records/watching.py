"""What monitoring writes: measurements over windows, alerts, decisions."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.records.base import Record, Value

MonitorState = Literal["ok", "alarm", "unknown"]
Severity = Literal["info", "warning", "critical"]
DecisionKind = Literal["retrain", "roll back", "none"]


class Measurement(Record, frozen=True, kw_only=True):
    """One monitor's number for one version over one window of event time."""

    TABLE = "measurements"
    KEY = ("endpoint", "monitor", "version", "start")
    INDEX: ClassVar = (("endpoint", "start"),)
    AUDITED = False

    endpoint: str
    monitor: str
    """For example ``log_loss``, ``estimated_log_loss``, ``drift:temp``, ``value``."""
    kind: str
    """``data``, ``prediction``, ``performance``, ``estimate``, ``business`` or ``traffic``."""
    version: int
    start: Time
    end: Time
    rows: int
    value: float | None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    limit: float | None = None
    score: float | None = None
    """Standard errors beyond the limit, on a normal scale: what is accumulated from window to window."""
    state: MonitorState
    message: str = ""
    computed: Time


class Delivery(Value, frozen=True, kw_only=True):
    """One attempt to bring an alert to somebody."""

    channel: str
    time: Time
    ok: bool
    detail: str = ""


class Alert(Record, frozen=True, kw_only=True):
    """A monitor's alarm that somebody must hear of."""

    TABLE = "alerts"
    KEY = ("id",)
    INDEX: ClassVar = (("endpoint", "opened"), ("state",))

    id: str
    endpoint: str
    model: str
    version: int
    monitor: str
    severity: Severity
    message: str
    event_time: Time
    """Event time at which the evidence was complete."""
    opened: Time
    state: Literal["open", "delivered", "undelivered", "closed"] = "open"
    drill: bool = False
    deliveries: tuple[Delivery, ...] = ()
    closed: Time | None = None
    revision: int = 1


class Decision(Record, frozen=True, kw_only=True):
    """What the monitors conclude should happen. Watching decides; the lifecycle acts."""

    TABLE = "decisions"
    KEY = ("id",)
    INDEX: ClassVar = (("endpoint", "event_time"), ("state",))

    id: str
    endpoint: str
    model: str
    version: int
    kind: DecisionKind
    alert: str
    reason: str
    event_time: Time
    made: Time
    state: Literal["open", "taken", "dismissed"] = "open"
    result: str = ""
    revision: int = 1


class Watermark(Record, frozen=True, kw_only=True):
    """How far one endpoint's log has been read and up to which event time its windows are complete."""

    TABLE = "watermarks"
    KEY = ("endpoint",)
    AUDITED = False

    endpoint: str
    event_time: Time
    """No earlier decision is expected any more."""
    cursor: dict[str, int]
    """Log segment by name, with the bytes read."""
    predictions: int
    outcomes: int
    updated: Time
    revision: int = 1


class LedgerEntry(Record, frozen=True, kw_only=True):
    """What one version earned over one window, against the non-ML baseline, in the KPI's unit."""

    TABLE = "ledger"
    KEY = ("endpoint", "version", "start")
    AUDITED = False

    endpoint: str
    version: int
    start: Time
    end: Time
    unit: str
    decisions: int
    labelled: int
    value: float
    baseline: float
    difference: float
    low: float
    high: float
    """Ends of the 95% interval of ``difference``."""
    sum_squares: float
    """Sum of the squared daily deviations, from which intervals over several windows are made."""
    computed: Time
