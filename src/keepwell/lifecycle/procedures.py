"""How a release or an activation runs: one step after the other, each leaving a signed verdict, each run once."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeVar

import msgspec

from keepwell.core.errors import Conflict, NotFound
from keepwell.core.records.evidence import CheckResult, Verdict, joint_verdict
from keepwell.core.records.lifecycle import Procedure, StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Work
from keepwell.core.statements import TEST_RESULT, sign_evidence
from keepwell.lifecycle.policies import keep_policy, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepwell.core.ports.store import Reader, Transaction
    from keepwell.lifecycle.context import Context

P = TypeVar("P", bound=Procedure)


class Waiting(msgspec.Struct, frozen=True):
    """A step's answer when it must wait for a person, a label or a rollout."""

    what: str


class StepDeclaration(msgspec.Struct, frozen=True):
    """One step as data: its name and the function that asks its questions."""

    name: str
    ask: Callable[[Context, Procedure, ModelVersion], tuple[CheckResult, ...] | Waiting]


class Course(msgspec.Struct, frozen=True):
    """A kind of procedure: its record, its work, its steps, and what follows its end (in the ending transaction).

    ``failed`` follows a verdict that lets nobody through; ``broken`` a step that could not be asked, which
    says nothing about the version.
    """

    kind: type[Procedure]
    work: str
    steps: tuple[StepDeclaration, ...]
    passed: Callable[[Context, Transaction, Procedure, ModelVersion], None]
    failed: Callable[[Context, Transaction, Procedure, ModelVersion, str], None]
    broken: Callable[[Context, Transaction, Procedure, ModelVersion, str], None]


def check_none_under_way(kind: type[Procedure], version: ModelVersion, *, store: Reader) -> None:
    """See that no procedure of a kind is at work on a version. Raises Conflict."""
    state = ["running", "waiting"]
    found = store.find(kind, {"model": version.model, "version": version.version, "state": state})
    if found:
        word = kind.__name__.lower()
        raise Conflict(
            f"{'An' if word[0] in 'aeiou' else 'A'} {word} of {version.label()} is {found[0].state} already"
            f" at step {found[0].step or 'one'!r}.",
            where=found[0].id,
        )


def begin(
    context: Context,
    transaction: Transaction,
    kind: type[P],
    version: ModelVersion,
    *,
    actor: str,
    **more: str,
) -> P:
    """Add a procedure that begins now, held to the limits in force now; its work is the caller's to add."""
    now = context.clock.now()
    begun = kind(
        id=f"{kind.__name__.lower()}-{version.model}-{version.version}-{secrets.token_hex(3)}",
        model=version.model,
        version=version.version,
        state="running",
        policy=keep_policy(transaction, policy_of(version.model, context.settings.policy, now=now)),
        requested_by=actor,
        started=now,
        **more,  # type: ignore[arg-type]
    )
    transaction.add(begun)
    return begun


def version_of(procedure: Procedure, *, store: Reader) -> ModelVersion:
    """Give the version that a procedure is about. Raises NotFound."""
    version = store.get(ModelVersion, procedure.model, procedure.version)
    if version is None:
        raise NotFound(f"There is no version {procedure.model}/{procedure.version}.")
    return version


def revise(record: P, **changes: object) -> P:
    """Give the record's next revision."""
    return msgspec.structs.replace(record, revision=record.revision + 1, **changes)


def run_step(context: Context, course: Course, procedure_id: str, number: int) -> bool:
    """Run one step unless its verdict is there already; tell whether to go on with the next.

    Safe to run again after a crash at any point: the verdict, its evidence row and the procedure's new
    state are written in one transaction, and the envelope's blob before it.
    """
    store = context.store
    procedure = store.get(course.kind, procedure_id)
    if procedure is None:
        raise NotFound(f"There is no {course.kind.__name__.lower()} {procedure_id!r}.")
    declared = course.steps[number - 1]
    done = store.get(StepResult, procedure_id, declared.name)
    if done is not None:
        return done.verdict in {"pass", "waived"}
    if procedure.state in {"passed", "failed"}:
        return False
    if procedure.step != declared.name or procedure.state != "running":
        with store.transaction(actor=procedure.requested_by) as transaction:
            procedure = revise(procedure, state="running", step=declared.name, waits_for="")
            transaction.replace(procedure, reason=f"step {number}: {declared.name}")
    started = context.clock.now()
    version = version_of(procedure, store=store)
    answer = declared.ask(context, procedure, version)
    if isinstance(answer, Waiting):
        with store.transaction(actor=procedure.requested_by) as transaction:
            transaction.replace(
                revise(procedure, state="waiting", waits_for=answer.what),
                reason=f"waits for {answer.what}",
            )
        return False
    return _conclude(context, course, procedure, number, answer, started)


def _conclude(
    context: Context,
    course: Course,
    procedure: Procedure,
    number: int,
    results: tuple[CheckResult, ...],
    started: int,
) -> bool:
    declared = course.steps[number - 1]
    verdict: Verdict = joint_verdict(results)
    now = context.clock.now()
    version = version_of(procedure, store=context.store)
    evidence = sign_evidence(
        signer=context.signer,
        blobs=context.blobs,
        subject=version.label(),
        subject_digest=version.artefact,
        predicate=TEST_RESULT,
        body={
            "number": number,
            "policy": procedure.policy,
            "checks": msgspec.to_builtins(results),
            "configuration": [
                {"name": "training_set", "digest": version.training_set},
                {"name": "code", "digest": version.code},
            ],
        },
        verdict=verdict,
        now=now,
        procedure=procedure.id,
        step=declared.name,
    )
    # A gate that cannot decide does not let anyone through.
    goes_on = verdict in {"pass", "waived"}
    reason = "; ".join(r.message for r in results if r.verdict in {"fail", "inconclusive"})
    last = number == len(course.steps)
    with context.store.transaction(actor=procedure.requested_by) as transaction:
        transaction.add(evidence)
        transaction.add(
            StepResult(
                procedure=procedure.id,
                step=declared.name,
                number=number,
                model=procedure.model,
                version=procedure.version,
                verdict=verdict,
                results=results,
                evidence=evidence.envelope,
                started=started,
                ended=now,
            )
        )
        if not goes_on:
            ended = revise(procedure, state="failed", reason=reason, ended=now)
            transaction.replace(ended, reason=f"{declared.name}: {reason}")
            course.failed(context, transaction, ended, version, reason)
        elif last:
            ended = revise(procedure, state="passed", ended=now)
            transaction.replace(ended, reason="all steps passed")
            course.passed(context, transaction, ended, version)
    return goes_on


def close_broken(context: Context, course: Course) -> int:
    """End the procedures whose work has failed, and say how many.

    A step that raises leaves no verdict, only failed work: without this its procedure would count as under
    way for ever. Level-triggered, so that looking again after any crash finds it.
    """
    closed = 0
    for procedure in context.store.find(course.kind, {"state": "running"}):
        failed = _failed_work(course, procedure, store=context.store)
        if failed is None:
            continue
        reason = failed.error.removeprefix(f"{procedure.step}: ")
        version = version_of(procedure, store=context.store)
        ended = revise(procedure, state="failed", reason=reason, ended=context.clock.now())
        try:
            with context.store.transaction(actor=procedure.requested_by) as transaction:
                transaction.replace(ended, reason=failed.error)
                course.broken(context, transaction, ended, version, reason)
        except Conflict:
            continue  # another process closed it
        closed += 1
    return closed


def _failed_work(course: Course, procedure: Procedure, *, store: Reader) -> Work | None:
    """Give the newest work of a procedure if it failed and none is left to do."""
    label = f"{procedure.model}/{procedure.version}"
    work = [
        found
        for found in store.find(
            Work, {"subject": label, "kind": course.work}, order=["created", "id"]
        )
        if found.args.get("procedure") == procedure.id
    ]
    if not work or any(found.state in {"queued", "running"} for found in work):
        return None
    return work[-1] if work[-1].state == "failed" else None
