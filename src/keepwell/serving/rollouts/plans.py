"""Traffic plans: the one in force, the next one, and a line that says who answers."""

from __future__ import annotations

import secrets
from typing import Any, Required, TypedDict, Unpack

import msgspec

from keepwell.core.clock import Time
from keepwell.core.digest import short
from keepwell.core.plans import check_plan
from keepwell.core.ports.store import Reader, Transaction
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import (
    BUCKETS,
    Arm,
    Cohort,
    Endpoint,
    Gap,
    LinearPolicyState,
    Period,
    TrafficPlan,
)


class Content(TypedDict, total=False):
    """What a plan says, beside by whom and when."""

    arms: Required[tuple[Arm, ...]]
    mirrors: tuple[Arm, ...]
    cohorts: tuple[Cohort, ...]
    policy: LinearPolicyState | None
    period: Period | None
    holdout: Arm | None
    """Left out: it stays as it is in the plan in force."""
    fallback: str | None
    """None: the first of several arms; empty: no arm."""
    gap: Gap
    gap_seconds: float


def content_of(plan: TrafficPlan) -> Content:
    """Give what a plan says, to say it again: not whom it holds out, which is no matter of rollouts."""
    return Content(
        arms=plan.arms,
        mirrors=plan.mirrors,
        cohorts=plan.cohorts,
        policy=plan.policy,
        period=plan.period,
        # Of one arm it is nobody, or that arm itself, as somebody is held out or not.
        fallback=plan.fallback if len(plan.arms) > 1 else None,
        gap=plan.gap,
        gap_seconds=plan.gap_seconds,
    )


def latest_plan(endpoint: str, *, store: Reader) -> TrafficPlan | None:
    """Give the traffic plan in force."""
    found = store.find(TrafficPlan, {"endpoint": endpoint}, order=["-revision"], limit=1)
    return found[0] if found else None


def write_plan(
    transaction: Transaction,
    endpoint: str,
    *,
    reason: str,
    actor: str,
    now: Time,
    **content: Unpack[Content],
) -> TrafficPlan:
    """Add the next revision of an endpoint's plan, unless the plan in force says the same.

    A plan without arms takes the endpoint out of use: what is called there is answered by nobody, or waits
    for ``gap_seconds``. Without a ``fallback`` the first of several arms is it; an empty one says that there is none.
    Without a ``holdout`` that of the plan in force stays; None ends it.
    Raises Conflict if another writer was first, Refused for what ``plan_problems`` finds.
    """
    before = latest_plan(endpoint, store=transaction)
    plan = next_plan(
        before,
        endpoint,
        reason=reason,
        actor=actor,
        now=now,
        **content,
    )
    first = plan.arms[0] if plan.arms else None
    version = transaction.get(ModelVersion, first.model, first.version) if first else None
    check_plan(
        plan,
        endpoint=transaction.get(Endpoint, endpoint),
        signature=version.signature if version else None,
    )
    if plan is not before:
        transaction.add(plan, reason=reason)
    return plan


def next_plan(
    before: TrafficPlan | None,
    endpoint: str,
    *,
    reason: str,
    actor: str,
    now: Time,
    **content: Unpack[Content],
) -> TrafficPlan:
    """Make the plan that follows; the one before, if it says the same."""
    arms = content["arms"]
    held = content.get("holdout", before.holdout if before else None)
    given: dict[str, Any] = {name: value for name, value in content.items() if value is not None}
    several = len(arms) > 1 or (bool(arms) and held is not None)
    plan = TrafficPlan(
        endpoint=endpoint,
        revision=before.revision + 1 if before else 1,
        # The salt stays, so that nobody changes arms who need not.
        salt=before.salt if before else secrets.token_hex(8),
        reason=reason,
        by=actor,
        created=now,
        **({"fallback": arms[0].name if several else ""} | given | {"holdout": held}),
    )
    if before is not None and plan == msgspec.structs.replace(
        before, revision=plan.revision, reason=reason, by=actor, created=now
    ):
        return before
    return plan


def may_answer(arm: Arm, store: Reader) -> bool:
    """Tell whether a version was neither refused nor retired since a plan named it."""
    version = store.get(ModelVersion, arm.model, arm.version)
    return version is not None and version.state not in {"refused", "retired"}


def arm_of(version: ModelVersion, *, name: str = "challenger") -> Arm:
    """Make an arm of a version."""
    return Arm(name=name, model=version.model, version=version.version, artefact=version.artefact)


def describe_plan(plan: TrafficPlan) -> str:
    """Say in a line who answers: ``v3 100% (4f2a...), mirrors v4``.

    Where units are held out: ``v1 5% (9b01...) held out; of the rest v3 100% (4f2a...)``.
    """
    arms = ", ".join(f"v{a.version} {a.weight / 100:g}% ({short(a.artefact)})" for a in plan.arms)
    cohorts = "".join(f", {cohort.label} to {cohort.arm}" for cohort in plan.cohorts)
    drawn = f", drawn by {plan.policy.kind}" if plan.policy else ""
    if plan.period:
        drawn = f", in turns of {plan.period.seconds / 60:g} min" + (
            f" by {plan.period.field}" if plan.period.field else ""
        )
    mirrors = ", ".join(
        f"v{a.version}" + (f" {a.weight / 100:g}%" if 0 < a.weight < BUCKETS else "")
        for a in plan.mirrors
    )
    held = f" (requests wait {plan.gap_seconds:g} s)" if plan.gap == "hold" and not arms else ""
    out = plan.holdout
    first = (
        f"v{out.version} {out.weight / 100:g}% ({short(out.artefact)}) held out; of the rest "
        if out is not None
        else ""
    )
    return (
        first
        + (arms or "nobody")
        + held
        + cohorts
        + drawn
        + (f", mirrors {mirrors}" if mirrors else "")
    )
