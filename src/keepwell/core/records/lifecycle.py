"""Release, activation, and who allowed what."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value
from keepwell.core.records.evidence import CheckResult, Verdict

Role = Literal["viewer", "author", "approver", "operator", "admin"]
ProcedureState = Literal["running", "waiting", "passed", "failed"]

RELEASE_STEPS: tuple[str, ...] = (
    "model risk review",
    "candidate release",
    "endpoint identification",
    "parameter testing",
    "integration testing",
    "instantiation validation",
    "KPI validation",
)
ACTIVATION_STEPS: tuple[str, ...] = (
    "governance catalogue",
    "activation by approval",
    "deployment",
    "application integration",
    "production audit",
    "behaviour tracking",
    "KPI validation",
)


class User(Record, frozen=True, kw_only=True):
    """A person or a service that may act, with roles."""

    TABLE = "users"
    KEY = ("name",)

    name: str
    roles: tuple[Role, ...]
    token_hash: str = ""
    """Always empty: tokens are rows of their own. It stays because the audit trail names rows by all their fields."""
    revision: int = 1


class Token(Record, frozen=True, kw_only=True):
    """What a user proves themselves by. The text itself is shown once and kept nowhere."""

    TABLE = "tokens"
    KEY = ("id",)
    INDEX: ClassVar = (("user",),)

    id: str
    """The part of the text that is no secret: it finds the row."""
    user: str
    label: str
    hash: str
    """SHA-256 of the whole text, which holds 256 random bits: nothing to guess, so nothing to slow down."""
    created: Time
    expires: Time | None
    revoked: Time | None = None
    revision: int = 1


class Policy(Record, frozen=True, kw_only=True):
    """The limits that a release and an activation are held to; named by content, so any change is a new one."""

    TABLE = "policies"
    KEY = ("content",)

    content: Digest
    model: str
    limits: dict[str, str | int | float | bool]
    created: Time


class Procedure(Record, frozen=True, kw_only=True):
    """What a release and an activation share: a state and the place they have reached."""

    id: str
    model: str
    version: int
    state: ProcedureState
    step: str = ""
    """The step at work, or the one that it waits at or failed in."""
    waits_for: str = ""
    reason: str = ""
    policy: Digest
    requested_by: str
    started: Time
    ended: Time | None = None
    revision: int = 1


class Release(Procedure, frozen=True, kw_only=True):
    """The seven steps that make a version fit to serve."""

    TABLE = "releases"
    KEY = ("id",)
    INDEX: ClassVar = (("model", "version"), ("state",))


class Activation(Procedure, frozen=True, kw_only=True):
    """The seven steps that put a released version before users."""

    TABLE = "activations"
    KEY = ("id",)
    INDEX: ClassVar = (("model", "version"), ("state",))

    endpoint: str
    strategy: str


class StepResult(Record, frozen=True, kw_only=True):
    """The verdict of one step of a release or an activation, with the checks and the signed evidence."""

    TABLE = "step_results"
    KEY = ("procedure", "step")
    INDEX: ClassVar = (("model", "version"),)

    procedure: str
    step: str
    number: int
    model: str
    version: int
    verdict: Verdict
    results: tuple[CheckResult, ...]
    evidence: Digest
    started: Time
    ended: Time


class Bound(Value, frozen=True, kw_only=True):
    """The digests that an approval names. Any change of one voids the approval."""

    artefact: Digest
    training_set: Digest
    code: Digest
    policy: Digest
    results: Digest
    """Digest over the evidence envelopes of the release."""


class Approval(Record, frozen=True, kw_only=True):
    """A named person's consent to one version, bound to digests; or, ahead of time, to its renewals.

    ``scope`` ``renewals`` is a standing approval: it binds code and policy only and lets versions that
    differ by nothing but newer data pass the same gates without a person in between, until it expires.
    """

    TABLE = "approvals"
    KEY = ("id",)
    INDEX: ClassVar = (("model", "version"),)

    id: str
    model: str
    version: int
    scope: Literal["version", "renewals"] = "version"
    bound: Bound
    by: str
    reason: str
    envelope: Digest
    created: Time
    expires: Time
    withdrawn: Time | None = None
    revision: int = 1


class CatalogueEntry(Record, frozen=True, kw_only=True):
    """What governance must know of a model: owner, purpose, tier, data, people told."""

    TABLE = "catalogue"
    KEY = ("model",)

    model: str
    owner: str
    purpose: str
    risk: str
    task: str
    label: str
    features: tuple[str, ...]
    sources: tuple[str, ...]
    card: Digest
    """Blob of the model card, Markdown."""
    updated: Time
    revision: int = 1
