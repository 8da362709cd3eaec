"""May this version serve? One answer, asked by the activation, by the gateway and by the auditor alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.digest import Digest, digest_of
from keepwell.core.errors import KeepwellError
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.lifecycle import (
    RELEASE_STEPS,
    Approval,
    Bound,
    Policy,
    Release,
    StepResult,
)
from keepwell.core.records.models import Artefact, ModelVersion
from keepwell.core.statements import APPROVAL, read_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepwell.core.clock import Time
    from keepwell.core.ports.blobs import Blobs
    from keepwell.core.ports.signing import Verifier
    from keepwell.core.ports.store import Reader


def results_digest(steps: Sequence[StepResult]) -> Digest:
    """Name the results of a release: the envelopes of its steps, in order."""
    return digest_of([step.evidence for step in sorted(steps, key=lambda step: step.number)])


def release_of(version: ModelVersion, *, store: Reader) -> Release | None:
    """Give the version's newest release, whatever its state."""
    found = store.find(
        Release,
        {"model": version.model, "version": version.version},
        order=["-started"],
        limit=1,
    )
    return found[0] if found else None


def bound_of(version: ModelVersion, *, store: Reader) -> Bound | None:
    """Give the digests that an approval of this version must name; None while no release has passed."""
    release = release_of(version, store=store)
    if release is None or release.state != "passed":
        return None
    steps = store.find(StepResult, {"procedure": release.id})
    return Bound(
        artefact=version.artefact,
        training_set=version.training_set,
        code=version.code,
        policy=release.policy,
        results=results_digest(steps),
    )


def artefact_problems(version: ModelVersion, *, blobs: Blobs) -> list[str]:
    """Hash the artefact's manifest and every file again, and tell what does not hold."""
    try:
        artefact = msgspec.json.decode(blobs.get(version.artefact), type=Artefact)
        for digest in artefact.files.values():
            blobs.get(digest)
    except KeepwellError as error:
        return [f"artefact: {error}"]
    except msgspec.DecodeError as error:
        return [f"artefact {version.artefact}: its manifest cannot be read ({error})"]
    return []


def release_problems(
    version: ModelVersion, *, store: Reader, blobs: Blobs, verifier: Verifier
) -> list[str]:
    """Tell what is missing for the version's release to count: state, seven verdicts, seven signatures."""
    release = release_of(version, store=store)
    if release is None:
        return [f"{version.label()} has no release"]
    if release.state != "passed":
        return [f"the release of {version.label()} is {release.state}, not passed"]
    problems = []
    steps = {step.step: step for step in store.find(StepResult, {"procedure": release.id})}
    for name in RELEASE_STEPS:
        step = steps.get(name)
        if step is None:
            problems.append(f"release step {name!r} has no result")
            continue
        if step.verdict not in {"pass", "waived"}:
            problems.append(f"release step {name!r} has the verdict {step.verdict}")
        row = store.get(Evidence, step.evidence)
        if row is None:
            problems.append(f"release step {name!r} has no evidence")
            continue
        try:
            statement = read_evidence(row, blobs=blobs, verifier=verifier)
        except KeepwellError as error:
            problems.append(f"release step {name!r}: {error}")
            continue
        if statement.subjects.get(version.label()) != version.artefact:
            problems.append(f"the evidence of release step {name!r} names another artefact")
        if statement.predicate.get("verdict") != step.verdict:
            problems.append(f"the evidence of release step {name!r} has another verdict")
    return problems


def standing_approvals(
    version: ModelVersion,
    *,
    store: Reader,
    blobs: Blobs,
    verifier: Verifier,
    now: Time,
) -> tuple[list[Approval], list[str]]:
    """Give the approvals that hold for this version now, one a person, and why others do not."""
    bound = bound_of(version, store=store)
    if bound is None:
        return [], [f"{version.label()} has no passed release to approve"]
    held: dict[str, Approval] = {}
    problems = []
    for approval in store.find(Approval, {"model": version.model}, order=["created"]):
        own = approval.scope == "version"
        if own and approval.version != version.version:
            continue
        if not own and version.renews is None:
            continue
        problem = _approval_problem(
            approval, version, bound, blobs=blobs, verifier=verifier, now=now
        )
        if problem:
            problems.append(f"approval by {approval.by}: {problem}")
        else:
            held[approval.by] = approval
    return list(held.values()), problems


def _approval_problem(
    approval: Approval,
    version: ModelVersion,
    bound: Bound,
    *,
    blobs: Blobs,
    verifier: Verifier,
    now: Time,
) -> str:
    if approval.withdrawn is not None:
        return "it was withdrawn"
    if approval.expires <= now:
        return "it has expired"
    if approval.by == version.author:
        return "an author cannot approve their own version"
    names = ("code", "policy") if approval.scope == "renewals" else Bound.__struct_fields__
    changed = [name for name in names if getattr(approval.bound, name) != getattr(bound, name)]
    if changed:
        return f"it names another {', '.join(changed)}"
    try:
        statement, _ = verifier.open(blobs.get(approval.envelope))
    except KeepwellError as error:
        return str(error)
    said = statement.predicate
    if (
        statement.predicate_type != APPROVAL
        or said.get("bound") != msgspec.to_builtins(approval.bound)
        or said.get("by") != approval.by
        or said.get("scope") != approval.scope
        or said.get("expires") != approval.expires
    ):
        return "the row differs from what was signed"
    return ""


def approvals_needed(model: str, *, store: Reader) -> int:
    """Give how many people must have approved a version of a model, by its newest policy."""
    policies = store.find(Policy, {"model": model}, order=["-created"], limit=1)
    return int(policies[0].limits["approvals"]) if policies else 1


def admission_problems(
    version: ModelVersion,
    *,
    approvals: int,
    store: Reader,
    blobs: Blobs,
    verifier: Verifier,
    now: Time,
) -> list[str]:
    """List everything that forbids this version to answer; an empty list admits it.

    ``approvals`` is how many people, none of them the author, must have approved; 0 for a mirror,
    which computes but never answers.
    """
    problems = artefact_problems(version, blobs=blobs)
    problems += release_problems(version, store=store, blobs=blobs, verifier=verifier)
    if version.state in {"refused", "retired"}:
        problems.append(f"{version.label()} is {version.state}")
    if approvals and not problems:
        held, refused = standing_approvals(
            version, store=store, blobs=blobs, verifier=verifier, now=now
        )
        if len(held) < approvals:
            problems.append(f"{len(held)} of {approvals} approvals hold")
            problems += refused
    return problems
