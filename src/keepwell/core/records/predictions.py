"""What the gateway writes down of each decision, and what came of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keepwell.core.clock import Time

Status = Literal["ok", "fallback", "error", "refused"]


class Prediction(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One answered (or mirrored) decision, as it stands in the log.

    ``array_like``: in the log the field names are not repeated; new fields go to the end.
    """

    id: str
    """Decision id: given by the caller or made by the gateway."""
    time: Time
    """Event time of the decision."""
    arrived: Time
    endpoint: str
    unit: str
    arms: tuple[str, ...]
    """Names of the arms that could have answered."""
    arm: str
    propensity: float
    """Probability with which this arm was chosen; of a mirror, with which it was asked."""
    mirror: bool
    """True for an answer that was computed beside the reply and never sent."""
    plan: int
    """Revision of the traffic plan."""
    version: int
    artefact: str
    features: tuple[Any, ...]
    """Input values in the order of the signature."""
    output: Any
    """A number (regression; probability of the positive class) or a list of class probabilities."""
    latency: int
    """Microseconds from the parsed request to the encoded reply."""
    status: Status
    error: str = ""
    cohort: str = ""
    """The plan's cohort that placed it; empty: buckets or a policy did. What chance decides leaves cohorts out."""
    chosen: str = ""
    """Arm that was assigned and failed, where another one answered in its place; else empty."""
    share: float = 1.0
    """Probability with which it was written down: it stands for 1 / share decisions."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What came of a decision: a label or a reward, known at ``time``."""

    id: str
    time: Time
    endpoint: str
    value: float
    arrived: Time = 0
