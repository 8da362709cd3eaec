"""The activation: seven steps that put a released version before users, each with real questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.admission import admission_problems, bound_of, standing_approvals
from keepwell.core.auditing import audit_problems
from keepwell.core.champion import make_champion
from keepwell.core.clock import iso
from keepwell.core.errors import Conflict, KeepwellError, NotFound, Refused, near_miss
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.lifecycle import ACTIVATION_STEPS, Activation, Procedure
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import OPEN, Rollout
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.records.watching import LedgerEntry
from keepwell.core.records.work import Work
from keepwell.lifecycle.catalogue import catalogue_entry, keep_entry
from keepwell.lifecycle.policies import read_policy
from keepwell.lifecycle.procedures import (
    Course,
    StepDeclaration,
    Waiting,
    begin,
    check_none_under_way,
    revise,
    run_step,
)
from keepwell.lifecycle.roles import require
from keepwell.lifecycle.validation import read_golden

if TYPE_CHECKING:
    from keepwell.core.ports.store import Reader, Transaction
    from keepwell.lifecycle.context import Context


def endpoint_name(context: Context, model: str) -> str:
    """Give the endpoint that serves a model. Raises NotFound."""
    for name, declared in context.settings.endpoints.items():
        if declared.model == model:
            return name
    raise NotFound(
        f"No endpoint serves the model {model!r}.",
        where="keepwell.toml",
        todo=f"Add a table [endpoints.{model}] with model = {model!r}.",
    )


def latest_plan(endpoint: str, *, store: Reader) -> TrafficPlan | None:
    """Give the traffic plan in force."""
    found = store.find(TrafficPlan, {"endpoint": endpoint}, order=["-revision"], limit=1)
    return found[0] if found else None


def start_activation(
    context: Context, version: ModelVersion, *, actor: str, strategy: str = ""
) -> Activation:
    """Begin the activation of a released version: its row and its work, in one transaction.

    Without a strategy, the first version of an endpoint goes live at once (``basic``) and a later one by the
    project's ``[rollout]`` strategy. Raises Refused if the version is not released, or Conflict if an
    activation of it is under way.
    """
    require(actor, "activate", store=context.store)
    with context.store.transaction(actor=actor) as transaction:
        return enqueue_activation(context, transaction, version, actor=actor, strategy=strategy)


def enqueue_activation(
    context: Context,
    transaction: Transaction,
    version: ModelVersion,
    *,
    actor: str,
    strategy: str = "",
) -> Activation:
    """Do what ``start_activation`` does, inside a transaction that has other things to say too."""
    endpoint, strategy = course_of(context, transaction, version, strategy=strategy)
    activation = begin(
        context,
        transaction,
        Activation,
        version,
        actor=actor,
        endpoint=endpoint,
        strategy=strategy,
    )
    transaction.add(activation_work(activation, attempt=1, now=activation.started))
    return activation


def course_of(
    context: Context, store: Reader, version: ModelVersion, *, strategy: str = ""
) -> tuple[str, str]:
    """Give the endpoint and the strategy by which a version would be activated.

    Raises Refused if it is not released, Conflict if an activation of it is under way, NotFound if nothing
    serves its model or the strategy is unknown.
    """
    if version.state not in {"released", "active"}:
        raise Refused(
            f"{version.label()} is {version.state}, not released.",
            todo=f"Run 'keepwell release {version.label()}' first.",
        )
    check_none_under_way(Activation, version, store=store)
    endpoint = endpoint_name(context, version.model)
    plan = latest_plan(endpoint, store=store)
    chosen = strategy or (context.settings.rollout.strategy if plan and plan.arms else "basic")
    context.rollouts.check(chosen)
    return endpoint, chosen


def activation_work(activation: Activation, *, attempt: int, now: int) -> Work:
    """Make the work that carries an activation on; each end of a wait is one more attempt."""
    return Work(
        id=f"{activation.id}-{attempt}",
        kind="activate",
        subject=f"{activation.model}/{activation.version}",
        args={"procedure": activation.id},
        requested_by=activation.requested_by,
        created=now,
    )


def _result(
    check: str, problems: list[str], good: str, **measured: str | float | bool | None
) -> CheckResult:
    return CheckResult(
        check=check,
        verdict="fail" if problems else "pass",
        message="; ".join(problems) if problems else good,
        measured=dict(measured),
    )


def _as_activation(procedure: Procedure) -> Activation:
    if not isinstance(procedure, Activation):
        raise TypeError(procedure)
    return procedure


def governance_catalogue(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Is everything in the catalogue that governance asks of this risk tier?"""
    entry = catalogue_entry(context, version)
    problems = [
        f"the model declares no {name}" for name in ("owner", "purpose") if not getattr(entry, name)
    ]
    keep_entry(context, entry, actor=procedure.requested_by)
    return (
        _result(
            "catalogue complete",
            problems,
            f"owner {entry.owner}, tier {entry.risk}, {len(entry.features)} features, card written",
            card=entry.card,
        ),
    )


def activation_by_approval(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...] | Waiting:
    """Have enough people, none of them the author, consented to exactly this?"""
    needed = read_policy(procedure.policy, store=context.store).approvals
    bound = bound_of(version, store=context.store)
    held, problems = standing_approvals(
        version,
        store=context.store,
        blobs=context.blobs,
        verifier=context.verifier,
        now=context.clock.now(),
    )
    if bound is not None and len(held) < needed:
        return Waiting(f"{needed - len(held)} of {needed} approvals")
    return (
        _result(
            "four eyes",
            problems if len(held) < needed else [],
            f"{len(held)} of {needed} needed approvals hold: "
            + ", ".join(f"{a.by} ({a.scope})" for a in held),
            approvals=len(held),
        ),
    )


def deployment(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Does the rollout begin, with a traffic plan that names this artefact?"""
    activation = _as_activation(procedure)
    ensure_endpoint(context, activation.endpoint, actor=activation.requested_by)
    rollout = context.rollouts.start(
        id=f"rollout-{activation.id}",
        endpoint=activation.endpoint,
        version=version,
        strategy=activation.strategy,
        actor=activation.requested_by,
    )
    plan = latest_plan(activation.endpoint, store=context.store)
    named = plan is not None and version.artefact in {
        arm.artefact for arm in (*plan.arms, *plan.mirrors)
    }
    problems = (
        [] if named or rollout.state != "running" else ["no traffic plan names this artefact"]
    )
    return (
        _result(
            "traffic plan",
            problems,
            f"{rollout.strategy} on {activation.endpoint}: plan revision {plan.revision if plan else 0}",
            rollout=rollout.id,
            plan=plan.revision if plan else 0,
        ),
    )


def ensure_endpoint(context: Context, name: str, *, actor: str) -> Endpoint:
    """Give the endpoint's record, written from the project's values the first time and whenever they change."""
    declared = context.settings.endpoints.get(name)
    if declared is None:
        raise NotFound(
            f"There is no endpoint {name!r}.", todo=near_miss(name, context.settings.endpoints)
        )
    model = context.project.model(declared.model)
    wanted = Endpoint(
        name=name,
        model=declared.model,
        unit=model.unit,
        time=declared.time,
        log=declared.log,
        log_share=declared.log_share if declared.log == "sampled" else 1.0,
        label_delay=model.label_delay,
        created=context.clock.now(),
    )
    with context.store.transaction(actor=actor) as transaction:
        before = transaction.get(Endpoint, name)
        if before is None:
            transaction.add(wanted)
            return wanted
        same = msgspec.structs.replace(wanted, created=before.created, revision=before.revision)
        if same == before:
            return before
        plan = latest_plan(name, store=transaction)
        if plan is not None and plan.holdout is not None and wanted.unit != before.unit:
            raise Refused(
                f"Units are held out at {name!r} by {before.unit!r}, and the project names {wanted.unit!r} now:"
                " others would be held out.",
                where=f"endpoint {name!r}",
                todo=f"End it first: keepwell holdout end {name} --reason '...'.",
            )
        changed = msgspec.structs.replace(same, revision=before.revision + 1)
        transaction.replace(changed, reason="the project's values changed")
        return changed


def application_integration(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Does an application that calls the live endpoint get the answer that was released?"""
    activation = _as_activation(procedure)
    rows, expected, tolerance = read_golden(version, blobs=context.blobs)
    endpoint = context.store.get(Endpoint, activation.endpoint)
    if endpoint is None:
        raise NotFound(f"There is no endpoint {activation.endpoint!r}.")
    answers = context.application.probe(
        activation.endpoint, version=version.version, rows=rows, within=30.0
    )
    worst = max(
        (abs(float(a) - float(e)) for a, e in zip(answers, expected, strict=True)), default=0.0
    )
    problems = (
        []
        if worst <= tolerance
        else [f"answers differ from the released predictions by up to {worst:.3g}"]
    )
    return (
        _result(
            "live answers equal released predictions",
            problems,
            f"{len(rows)} golden rows answered live by {version.label()}; "
            f"largest difference {worst:.2g}",
            rows=len(rows),
            largest_difference=worst,
        ),
    )


def production_audit(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Do chain, signatures, digests and approvals hold for what is in the traffic plan now?"""
    activation = _as_activation(procedure)
    needed = read_policy(procedure.policy, store=context.store).approvals
    chain = audit_problems(context.store)
    admission = admission_problems(
        version,
        approvals=needed,
        store=context.store,
        blobs=context.blobs,
        verifier=context.verifier,
        now=context.clock.now(),
    )
    plan = latest_plan(activation.endpoint, store=context.store)
    named = [
        arm
        for arm in ((*plan.arms, *plan.mirrors) if plan else ())
        if (arm.model, arm.version) == (version.model, version.version)
    ]
    differing = [
        f"the plan's arm {arm.name!r} names another artefact"
        for arm in named
        if arm.artefact != version.artefact
    ]
    return (
        _result("audit chain", chain, "the audit trail is unbroken"),
        _result("admission", admission, "artefact, seven verdicts, signatures and approvals hold"),
        _result("plan names the approved artefact", differing, f"{len(named)} arm(s) checked"),
    )


def behaviour_tracking(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Would a drift be noticed, and would anybody hear of it? A made one must arrive."""
    activation = _as_activation(procedure)
    return (context.drills.alert(activation.endpoint, version),)


def kpi_validation(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...] | Waiting:
    """Does it earn, live, what it was released for? Waits for labels or for the rollout's verdict."""
    activation = _as_activation(procedure)
    limits = read_policy(procedure.policy, store=context.store)
    rollout = context.store.get(Rollout, f"rollout-{activation.id}")
    if (
        rollout is not None
        and rollout.challenger != rollout.champion
        and rollout.champion is not None
    ):
        if rollout.state in OPEN:
            return Waiting(f"the verdict of {rollout.id}")
        return (
            CheckResult(
                check="rollout verdict",
                verdict="pass" if rollout.state == "promoted" else "fail",
                message=f"{rollout.strategy}: {rollout.state}. {rollout.reason}",
                measured={"rollout": rollout.id, "evidence": rollout.evidence},
            ),
        )
    return live_gain(context, activation, version, rows=limits.kpi_rows)


def live_gain(
    context: Context, activation: Activation, version: ModelVersion, *, rows: int
) -> tuple[CheckResult, ...] | Waiting:
    """Judge the version's gain over the baseline on its labelled live decisions, once there are enough."""
    entries = context.store.find(
        LedgerEntry, {"endpoint": activation.endpoint, "version": version.version}, order=["start"]
    )
    labelled = sum(entry.labelled for entry in entries)
    if labelled < rows:
        return Waiting(f"{rows - labelled} more labelled decisions")
    difference = sum(entry.difference for entry in entries)
    half = sum(((entry.high - entry.low) / 2) ** 2 for entry in entries) ** 0.5
    unit = entries[0].unit
    # Live, the question is only whether it clearly loses money: the release has already shown that it gains.
    losing = difference + half < 0
    return (
        CheckResult(
            check="live gain over the baseline",
            verdict="fail" if losing else "pass",
            message=(
                f"{difference:,.0f} {unit} more than the baseline over {labelled:,} labelled decisions"
                f" (95% interval {difference - half:,.0f} to {difference + half:,.0f})"
                f" until {iso(entries[-1].end)}"
            ),
            measured={
                "labelled": labelled,
                "difference": difference,
                "low": difference - half,
                "high": difference + half,
                "unit": unit,
            },
            limits={"rows": rows, "difference": 0.0},
        ),
    )


_ASK = (
    governance_catalogue,
    activation_by_approval,
    deployment,
    application_integration,
    production_audit,
    behaviour_tracking,
    kpi_validation,
)


def _passed(
    context: Context, transaction: Transaction, procedure: Procedure, version: ModelVersion
) -> None:
    make_champion(
        transaction,
        version.model,
        version.version,
        now=context.clock.now(),
        reason=f"activated by {procedure.id}",
    )


def _failed(
    context: Context,
    transaction: Transaction,
    procedure: Procedure,
    version: ModelVersion,
    reason: str,
) -> None:
    _broken(context, transaction, procedure, version, reason)
    current = transaction.get(ModelVersion, version.model, version.version)
    if current is None or current.state == "refused":
        return
    transaction.replace(
        msgspec.structs.replace(
            current,
            state="refused",
            reason=f"{procedure.step}: {reason}",
            updated=context.clock.now(),
            revision=current.revision + 1,
        ),
        reason=reason,
    )


def _broken(
    context: Context,
    transaction: Transaction,
    procedure: Procedure,
    version: ModelVersion,
    reason: str,
) -> None:
    """Give the endpoint back to the plan that was in force before the deployment."""
    context.rollouts.call_off(
        transaction,
        id=f"rollout-{procedure.id}",
        actor=procedure.requested_by,
        reason=f"the activation of {version.label()} failed at {procedure.step!r}: {reason}",
    )


ACTIVATION = Course(
    kind=Activation,
    work="activate",
    steps=tuple(
        StepDeclaration(name, ask) for name, ask in zip(ACTIVATION_STEPS, _ASK, strict=True)
    ),
    passed=_passed,
    failed=_failed,
    broken=_broken,
)


def run_activation_step(context: Context, activation_id: str, number: int) -> bool:
    """Run one step of an activation; tell whether to go on."""
    return run_step(context, ACTIVATION, activation_id, number)


def wake_waiting(context: Context) -> int:
    """Enqueue the activations whose wait has ended, and say how many.

    Level-triggered on purpose: what they wait for is a row, so looking again after any crash finds it.
    """
    woken = 0
    for activation in context.store.find(Activation, {"state": "waiting"}):
        declared = ACTIVATION.steps[ACTIVATION_STEPS.index(activation.step)]
        if declared.ask not in _WAITING or not _wait_is_over(context, activation):
            continue
        attempts = context.store.count(
            Work, {"subject": f"{activation.model}/{activation.version}", "kind": "activate"}
        )
        try:
            with context.store.transaction(actor=activation.requested_by) as transaction:
                transaction.replace(
                    revise(activation, state="running", waits_for=""), reason="the wait is over"
                )
                transaction.add(
                    activation_work(activation, attempt=attempts + 1, now=context.clock.now())
                )
        except Conflict:
            continue  # another process woke it
        woken += 1
    return woken


_WAITING = (activation_by_approval, kpi_validation)


def _wait_is_over(context: Context, activation: Activation) -> bool:
    version = context.store.get(ModelVersion, activation.model, activation.version)
    if version is None:
        return True
    ask = ACTIVATION.steps[ACTIVATION_STEPS.index(activation.step)].ask
    try:
        return not isinstance(ask(context, activation, version), Waiting)
    except KeepwellError:
        # Let the step itself fail, with its evidence, where people look.
        return True
