"""Holds units out of an endpoint's rollouts, and tells what the versions have earned over them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from keepwell.app.rolling import need_reason, refuse_unfit
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Refused, near_miss
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import (
    BUCKETS,
    HOLDOUT,
    MOST_HELD_OUT,
    Arm,
    Endpoint,
    TrafficPlan,
)
from keepwell.lifecycle.roles import require
from keepwell.serving.rollouts.holdouts import misfits, standing_since
from keepwell.serving.rollouts.plans import (
    Content,
    arm_of,
    content_of,
    latest_plan,
    next_plan,
    write_plan,
)

if TYPE_CHECKING:
    from keepwell.app.wiring import State
    from keepwell.core.ports.store import Reader

MOST_KEPT = 64
FEW_UNITS = 30
"""Under so many units on a side the interval is told to be a rough one."""


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of an endpoint's holdout."""

    endpoint: str
    """Empty: the only one."""
    version: int | None = None
    """None: nobody is held out any more."""
    share: float = 0.0
    reason: str
    anew: bool = False
    """Whether the comparison with a holdout that stands may end, and another one begin."""


def wanted_version(version: int | None) -> int:
    """See that a version is named. Raises InvalidInput."""
    if version is None:
        raise InvalidInput(
            "Which version is to answer the units that are held out?",
            todo="keepwell holdout set ENDPOINT --version NUMBER --share 0.05 --reason '...'",
        )
    return version


def hold_out(state: State, wanted: Holding, *, actor: str) -> TrafficPlan:
    """Let a version answer a random share of the units from now on, or end that.

    Raises Refused if the version or the person may not, InvalidInput for a wrong share or no reason, NotFound for the
    endpoint or the version, Conflict if nothing answers there, or if a comparison would end unasked.
    """
    require(actor, "rollout", store=state.store)
    need_reason(wanted.reason)
    endpoint, content = _content(state, wanted, store=state.store)
    with state.store.transaction(actor=actor) as transaction:
        # Looked at again: somebody may have moved the traffic since.
        endpoint, content = _content(state, wanted, store=transaction, looked=True)
        return write_plan(
            transaction,
            endpoint,
            reason=wanted.reason,
            actor=actor,
            now=state.clock.now(),
            **content,
        )


def preview_hold_out(
    state: State, wanted: Holding, *, actor: str
) -> tuple[TrafficPlan | None, TrafficPlan]:
    """Give the plan in force and the one that ``hold_out`` would write. Changes nothing.

    Raises as it does, but needs no reason.
    """
    require(actor, "rollout", store=state.store)
    endpoint, content = _content(state, wanted, store=state.store)
    before = latest_plan(endpoint, store=state.store)
    now = state.clock.now()
    return before, next_plan(
        before, endpoint, reason=wanted.reason, actor=actor, now=now, **content
    )


def _content(
    state: State, wanted: Holding, *, store: Reader, looked: bool = False
) -> tuple[str, Content]:
    """Check what is wanted whole, and give it as a plan's content. ``looked``: the evidence was read already."""
    endpoint = _endpoint(wanted.endpoint, store=store)
    plan = latest_plan(endpoint.name, store=store)
    if plan is None or not plan.arms:
        raise Conflict(
            f"Nothing answers at {endpoint.name!r} now.",
            todo="Activate a version first; a holdout is held out of what others get.",
        )
    if wanted.version is None:
        if plan.holdout is None:
            raise Conflict(f"Nobody is held out at {endpoint.name!r}.")
        return endpoint.name, content_of(plan) | Content(arms=plan.arms, holdout=None)
    arm = _arm(endpoint, wanted.version, wanted.share, store=store)
    _refuse_unsuitable(state, endpoint, plan, arm, store=store, looked=looked)
    if plan.holdout not in {None, arm} and not wanted.anew:
        since = standing_since(store.find(TrafficPlan, {"endpoint": endpoint.name}))
        assert since is not None
        assert plan.holdout is not None
        raise Conflict(
            f"At {endpoint.name!r} {plan.holdout.weight / BUCKETS:g} of the units are held out at version"
            f" {plan.holdout.version} since plan {since.revision}; another holdout would end that comparison.",
            todo="If it may end and a new one begin, say so: --anew (in the API: anew).",
        )
    return endpoint.name, content_of(plan) | Content(arms=plan.arms, holdout=arm)


def _arm(endpoint: Endpoint, number: int, share: float, *, store: Reader) -> Arm:
    weight = round(share * BUCKETS) if math.isfinite(share) else 0
    if not 0 < weight <= MOST_HELD_OUT:
        raise InvalidInput(
            f"A share of {share:g} cannot be held out.",
            todo=f"Give {1 / BUCKETS:g} to {MOST_HELD_OUT / BUCKETS:g} of the units; 0.05 is one in twenty.",
        )
    version = store.get(ModelVersion, endpoint.model, number)
    if version is None:
        known = [each.label() for each in store.find(ModelVersion, {"model": endpoint.model})]
        raise NotFound(
            f"There is no version {endpoint.model}/{number}.",
            todo=near_miss(f"{endpoint.model}/{number}", known),
        )
    return msgspec.structs.replace(arm_of(version, name=HOLDOUT), weight=weight)


def _refuse_unsuitable(
    state: State, endpoint: Endpoint, plan: TrafficPlan, arm: Arm, *, store: Reader, looked: bool
) -> None:
    version = store.get(ModelVersion, arm.model, arm.version)
    assert version is not None
    if not endpoint.unit:
        raise Refused(
            f"The endpoint {endpoint.name!r} has no unit key, so nobody would stay held out.",
            todo=f"Set 'unit' of the model {endpoint.model!r} in the project's module, and activate a version with it.",
        )
    if not looked:
        refuse_unfit(state, version)
    named = [store.get(ModelVersion, each.model, each.version) for each in plan.arms]
    with_it = msgspec.structs.replace(plan, holdout=arm)
    others = misfits(with_it, [each for each in named if each is not None], store=store)
    if others:
        champion = plan.arms[0]
        raise Refused(
            f"{version.label()} has another signature than {champion.model}/{champion.version}, which answers:"
            " one signature reads the requests of all.",
            todo="Hold out a version that reads the same columns.",
        )


def _endpoint(name: str, *, store: Reader) -> Endpoint:
    endpoints = store.find(Endpoint)
    if not name and len(endpoints) == 1:
        return endpoints[0]
    found = store.get(Endpoint, name) if name else None
    if found is None:
        known = [each.name for each in endpoints]
        raise NotFound(
            f"There is no endpoint {name!r}." if name else "Which endpoint?",
            todo=near_miss(name, known) if name else f"There are: {', '.join(known) or 'none'}.",
        )
    return found
