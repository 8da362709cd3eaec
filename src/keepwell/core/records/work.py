"""The queue: what is to be done, by whom it is held, and how it ended."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.records.base import Record

WorkState = Literal["queued", "running", "done", "failed"]


class Work(Record, frozen=True, kw_only=True):
    """One piece of durable work. Adding the row in the transaction that causes it is what enqueues it."""

    TABLE = "work"
    KEY = ("id",)
    INDEX: ClassVar = (("state", "created"), ("subject",))
    AUDITED = False

    id: str
    """Chosen by the cause, so that the same cause never enqueues twice."""
    kind: str
    """Name of the procedure: ``train``, ``release``, ``activate``..."""
    subject: str
    args: dict[str, str | int | float | bool | None] = {}
    """References and settings, never data."""
    requested_by: str
    state: WorkState = "queued"
    progress: str = ""
    result: str = ""
    """Of failed work, the code of its error (``unavailable``, ``invalid_input``...)."""
    error: str = ""
    created: Time
    started: Time | None = None
    ended: Time | None = None
    revision: int = 1


class Lease(Record, frozen=True, kw_only=True):
    """Who may act as the only one of a kind, until when. ``token`` rises with every new holder (fencing)."""

    TABLE = "leases"
    KEY = ("name",)
    AUDITED = False

    name: str
    holder: str
    token: int
    expires: Time
    revision: int = 1


class Replay(Record, frozen=True, kw_only=True):
    """Past decisions sent through the gateway as if live, in order, in compressed time."""

    TABLE = "replays"
    KEY = ("id",)

    id: str
    endpoint: str
    source: str
    since: Time
    until: Time
    state: Literal["running", "done", "failed"]
    position: Time
    """Event time up to which everything has been sent and acknowledged."""
    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    retried: int = 0
    outcomes: int = 0
    started: Time
    ended: Time | None = None
    revision: int = 1
