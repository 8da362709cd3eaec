"""Keeping and reading signed evidence: statement -> envelope blob -> Evidence row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keepwell.core.errors import Corrupt
from keepwell.core.ports.signing import Signer, Statement, Verifier
from keepwell.core.records.evidence import Evidence, Verdict

if TYPE_CHECKING:
    from keepwell.core.clock import Time
    from keepwell.core.digest import Digest
    from keepwell.core.ports.blobs import Blobs

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
"""Predicate of a step's verdict (in-toto attestation framework, test-result)."""
APPROVAL = "https://keepwell.dev/approval/v1"
VERDICT = "https://keepwell.dev/verdict/v1"
"""Predicate of a rollout's verdict."""
PROVENANCE = "https://slsa.dev/provenance/v1"

_RESULTS = {"pass": "PASSED", "fail": "FAILED", "inconclusive": "WARNED", "waived": "WARNED"}


def sign_evidence(
    *,
    signer: Signer,
    blobs: Blobs,
    subject: str,
    subject_digest: Digest,
    predicate: str,
    body: dict[str, Any],
    verdict: Verdict,
    now: Time,
    procedure: str = "",
    step: str = "",
) -> Evidence:
    """Sign a verdict, keep its envelope as a blob, and give the row to add to the store.

    The blob is kept first: a row without its blob never exists; a blob without a row is harmless.
    """
    full = {
        "result": _RESULTS[verdict],
        "verdict": verdict,
        "procedure": procedure,
        "step": step,
        "created": now,
        **body,
    }
    statement = Statement(
        subjects={subject: subject_digest}, predicate_type=predicate, predicate=full
    )
    envelope = blobs.put(signer.sign(statement))
    return Evidence(
        envelope=envelope,
        subject=subject,
        subject_digest=subject_digest,
        predicate=predicate,
        procedure=procedure,
        step=step,
        verdict=verdict,
        signer=signer.keyid,
        created=now,
    )


def read_evidence(row: Evidence, *, blobs: Blobs, verifier: Verifier) -> Statement:
    """Give the statement behind a row after checking everything that binds the two.

    Raises NotFound if the envelope is missing, and Corrupt if its bytes, its signature, or the row differ.
    """
    statement, keyid = verifier.open(blobs.get(row.envelope))
    said = statement.predicate
    bound = {
        "subject": statement.subjects.get(row.subject) == row.subject_digest,
        "predicate": statement.predicate_type == row.predicate,
        "signer": keyid == row.signer,
        "verdict": said.get("verdict") == row.verdict,
        "procedure": said.get("procedure") == row.procedure,
        "step": said.get("step") == row.step,
        "created": said.get("created") == row.created,
    }
    wrong = [name for name, holds in bound.items() if not holds]
    if wrong:
        raise Corrupt(
            f"The row and the signed statement disagree on {', '.join(wrong)}.",
            where=f"evidence {row.envelope}",
            todo="The row was changed after it was signed; restore the store from a backup.",
        )
    return statement
