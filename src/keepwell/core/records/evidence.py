"""Verdicts and the signed evidence behind them."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value

Verdict = Literal["pass", "fail", "inconclusive", "waived"]

Scalar = str | int | float | bool | None


class CheckResult(Value, frozen=True, kw_only=True):
    """What one check found: a verdict, what was measured, against which limit, in a sentence."""

    check: str
    verdict: Verdict
    message: str
    measured: dict[str, Scalar] = {}
    limits: dict[str, Scalar] = {}


def joint_verdict(results: tuple[CheckResult, ...]) -> Verdict:
    """Give the verdict of several checks together: one failure fails, no result at all decides nothing."""
    verdicts = {result.verdict for result in results}
    if "fail" in verdicts:
        return "fail"
    if not verdicts or "inconclusive" in verdicts:
        return "inconclusive"
    return "pass" if "pass" in verdicts else "waived"


class Evidence(Record, frozen=True, kw_only=True):
    """A signed in-toto Statement in a DSSE envelope; the row is its index, the blob is the proof."""

    TABLE = "evidence"
    KEY = ("envelope",)
    INDEX: ClassVar = (("procedure", "step"), ("subject", "created"))

    envelope: Digest
    """Digest of the envelope's blob."""
    subject: str
    """What it speaks of, for example ``flight-delay/3``."""
    subject_digest: Digest
    predicate: str
    """Type of the predicate, a URI."""
    procedure: str = ""
    step: str = ""
    verdict: Verdict
    signer: str
    """Identifier of the signing key."""
    created: Time


class SigningKey(Record, frozen=True, kw_only=True):
    """The public half of a key that signs evidence."""

    TABLE = "signing_keys"
    KEY = ("keyid",)

    keyid: str
    public: bytes
    """Raw Ed25519 public key, 32 bytes (RFC 8032)."""
    created: Time
    revoked: Time | None = None
    revision: int = 1
