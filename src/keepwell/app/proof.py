"""Verifying everything that was signed, and everything that it speaks of."""

from __future__ import annotations

from keepwell.app.wiring import State
from keepwell.core.admission import artefact_problems
from keepwell.core.errors import KeepwellError
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.lifecycle import Approval, StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.statements import read_evidence


def evidence_problems(state: State) -> list[str]:
    """List what does not hold among evidence, approvals and artefacts; an empty list proves them all."""
    problems: list[str] = []
    known = set()
    for row in state.store.find(Evidence):
        known.add(row.envelope)
        try:
            read_evidence(row, blobs=state.blobs, verifier=state.verifier)
        except KeepwellError as error:
            problems.append(f"{row.subject}, {row.step}: {error}")
    for approval in state.store.find(Approval):
        try:
            state.verifier.open(state.blobs.get(approval.envelope))
        except KeepwellError as error:
            problems.append(
                f"approval of {approval.model}/{approval.version} by {approval.by}: {error}"
            )
    for step in state.store.find(StepResult):
        if step.evidence not in known:
            problems.append(f"{step.procedure}, {step.step}: its evidence row is gone")
    for version in state.store.find(ModelVersion):
        problems += [
            f"{version.label()}: {problem}"
            for problem in artefact_problems(version, blobs=state.blobs)
        ]
    return problems
