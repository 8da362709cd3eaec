"""Endpoints, traffic plans and rollouts: where a decision is made, by whom, and how that changes."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value

BUCKETS = 10_000
"""Weights are whole numbers of this many buckets (a hundredth of a per cent each)."""

HOLDOUT = "holdout"
"""The arm of units that are held out; no other arm bears this name."""
MOST_HELD_OUT = BUCKETS // 2
"""More held out than served would not be a holdout."""

LogLevel = Literal["sync", "group", "sampled"]
Gap = Literal["refuse", "hold"]


class Endpoint(Record, frozen=True, kw_only=True):
    """A decision point: the name that applications call."""

    TABLE = "endpoints"
    KEY = ("name",)
    ADDED: ClassVar = ("log_share",)

    name: str
    model: str
    unit: str = ""
    """The request field that assignment sticks to; empty: the decision id."""
    time: str = ""
    """The request field with the decision's event time; empty: the time of arrival."""
    log: LogLevel = "sync"
    log_share: float = 1.0
    """With the log level ``sampled``: the share of decisions that are written down."""
    label_delay: Time
    created: Time
    revision: int = 1


class Arm(Value, frozen=True, kw_only=True):
    """One version that may answer, with its share of the buckets."""

    name: str
    model: str
    version: int
    artefact: Digest
    weight: int = 0
    """Buckets out of 10,000. Of a mirror: the share of requests that it sees; 0 means all of them."""


class Cohort(Value, frozen=True, kw_only=True):
    """Who is sent to one arm whatever their bucket: by a header of the request, or by a field of the row."""

    arm: str
    header: str = ""
    """Lower case; over gRPC a key of the metadata."""
    field: str = ""
    """A feature, or the endpoint's unit or time."""
    values: tuple[str, ...]
    """As text: whole numbers without a point, ``true`` and ``false``, times as ISO 8601. One of them must be met."""

    @property
    def label(self) -> str:
        """Name the cohort as the prediction log does: ``x-tester=ann``, and how many values there are besides."""
        more = f"+{len(self.values) - 1}" if len(self.values) > 1 else ""
        return f"{self.header or self.field}={self.values[0] if self.values else ''}{more}"


class LinearPolicyState(Value, frozen=True, kw_only=True):
    """A bandit with context, as a gateway needs it to draw arms: what ``keepwell.stats.linear_bandit`` has learned.

    A row's d numbers are its ``fields`` in this order, and a 1 behind them where there is an ``intercept``.
    Numbers are packed as little-endian float64, so that every process draws from the very same ones.
    """

    kind: Literal["linucb", "lints"]
    arms: tuple[str, ...]
    """Names of the k arms that it draws from, in the order of ``theta``."""
    fields: tuple[str, ...]
    """Features that are numbers or true and false."""
    intercept: bool = False
    theta: bytes
    """k by d."""
    factor: bytes
    """k by d by d."""
    alpha: float
    floor: float
    """Share that is spread evenly over the arms, so that the log can be evaluated off-policy."""
    seed: int = 0
    draws: int = 128
    """Posterior draws of ``lints``."""
    missing: bytes = b""
    """d numbers that stand for missing values; empty: a row that misses one is drawn evenly."""


class Period(Value, frozen=True, kw_only=True):
    """Arms that take turns: in each period of time chance gives all traffic to one of them, by their weights."""

    seconds: int
    """Length of a period; periods begin at whole multiples of it since 1970, in the time of the decisions."""
    field: str = ""
    """A feature whose values (regions, say) take turns each by itself; empty: all traffic together."""


class TrafficPlan(Record, frozen=True, kw_only=True):
    """Who answers an endpoint. Immutable: a change is the next revision, and adding it is the compare-and-swap."""

    TABLE = "traffic_plans"
    KEY = ("endpoint", "revision")
    ADDED: ClassVar = ("cohorts", "gap", "gap_seconds", "policy", "period", "holdout")

    endpoint: str
    revision: int
    arms: tuple[Arm, ...]
    """Arms that answer; their weights add up to 10,000."""
    mirrors: tuple[Arm, ...] = ()
    """Arms that see requests after the reply and never answer: all of them, or the share of their weight."""
    cohorts: tuple[Cohort, ...] = ()
    """Looked at in this order, before the buckets; the first that a row meets decides."""
    policy: LinearPolicyState | None = None
    """Draws the arm of every row that no cohort placed; the weights then part nothing."""
    period: Period | None = None
    """Arms take turns: the weights part periods of time, not units."""
    holdout: Arm | None = None
    """Answers a random share of the units, its weight, whatever the other arms do; those part only the rest."""
    fallback: str = ""
    """Arm that answers when the chosen one fails."""
    gap: Gap = "refuse"
    """What becomes of requests while there are no arms: 503 at once, or they wait for ``gap_seconds``."""
    gap_seconds: float = 0.0
    salt: str
    reason: str
    by: str
    created: Time

    @property
    def answering(self) -> tuple[Arm, ...]:
        """List everything that may answer: the arms, and behind them the holdout."""
        return self.arms if self.holdout is None else (*self.arms, self.holdout)
