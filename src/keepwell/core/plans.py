"""What is wrong with a traffic plan, told before anything changes; whoever writes a plan asks here first."""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator

from keepwell.core.clock import moment
from keepwell.core.errors import InvalidInput, Refused, near_miss
from keepwell.core.records.models import Signature
from keepwell.core.records.traffic import (
    BUCKETS,
    HOLDOUT,
    MOST_HELD_OUT,
    Arm,
    Cohort,
    Endpoint,
    TrafficPlan,
)

MAX_GAP_SECONDS = 600.0
LEAST_PERIOD = 60
"""Seconds: what shorter turns leave behind is still there when they come again."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
"""A header's name (RFC 9110, section 5.6.2), in lower case."""
_NUMBERS = frozenset({"float64", "int64", "bool"})
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie"})


def plan_problems(
    plan: TrafficPlan, *, endpoint: Endpoint | None = None, signature: Signature | None = None
) -> list[Refused]:
    """List what is wrong with a plan: what, where, and what to do. Empty if nothing is.

    With the ``endpoint`` and the ``signature`` of what answers there, the fields that the plan names are looked up too.
    A plan without arms is allowed: it takes the endpoint out of use.
    """
    where = f"plan of endpoint {plan.endpoint!r}"
    fields: dict[str, str] | None = None
    if signature is not None:
        fields = {column.name: column.dtype for column in signature.inputs}
        for name in (endpoint.unit, endpoint.time) if endpoint else ():
            if name:
                fields.setdefault(name, "")
    time = endpoint.time if endpoint is not None else ""
    found = [
        *_weights(plan),
        *_names(plan),
        *_reached(plan),
        *_holdout(plan, endpoint),
        *(
            problem
            for k, cohort in enumerate(plan.cohorts)
            for problem in _cohort(plan, cohort, f"cohort {k}: ", fields, time)
        ),
        *_policy(plan, fields),
        *_period(plan, fields, time),
        *_gap(plan),
    ]
    return [Refused(what, where=where, todo=todo) for what, todo in found]


def check_plan(
    plan: TrafficPlan, *, endpoint: Endpoint | None = None, signature: Signature | None = None
) -> None:
    """Raise Refused with everything that ``plan_problems`` finds."""
    problems = plan_problems(plan, endpoint=endpoint, signature=signature)
    if problems:
        first, *others = problems
        more = "".join(f" {other.what} {other.todo}".rstrip() for other in others)
        raise Refused(first.what, where=first.where, todo=first.todo + more)


_Problems = Iterator[tuple[str, str]]


def _weights(plan: TrafficPlan) -> _Problems:
    for arm in (*plan.arms, *plan.mirrors):
        if not 0 <= arm.weight <= BUCKETS:
            yield (
                f"The weight of {arm.name!r} is {arm.weight:,}.",
                f"Give it 0 to {BUCKETS:,} buckets.",
            )
    total = sum(arm.weight for arm in plan.arms)
    if plan.arms and total != BUCKETS:
        yield (
            f"The weights add up to {total:,}, not {BUCKETS:,}.",
            "Part all buckets among the arms; 1% is 100.",
        )


def _names(plan: TrafficPlan) -> _Problems:
    for kind, arms in (("arms", plan.arms), ("mirrors", plan.mirrors)):
        for name in _twice(arm.name for arm in arms):
            yield f"Two {kind} are named {name!r}.", "Give each a name of its own."
    for mirror in plan.mirrors:
        if mirror.name in _named(plan.arms):
            yield (
                f"The mirror {mirror.name!r} has the name of an arm.",
                "Give it another: records tell them apart by it.",
            )
    if not all(arm.name for arm in (*plan.arms, *plan.mirrors)):
        yield "An arm has no name.", "Give it one."
    if plan.fallback and plan.fallback not in _named(plan.arms):
        yield (
            f"The fallback {plan.fallback!r} is no arm.",
            near_miss(plan.fallback, _named(plan.arms)),
        )


def _reached(plan: TrafficPlan) -> _Problems:
    """Find arms that would never answer."""
    others = {plan.fallback, *(cohort.arm for cohort in plan.cohorts)}
    others.update(plan.policy.arms if plan.policy else ())
    for arm in plan.arms:
        if arm.weight == 0 and arm.name not in others:
            yield (
                f"The arm {arm.name!r} has no traffic: no weight, and no cohort that it answers.",
                "Give it a weight or a cohort, or make it a mirror.",
            )


def _holdout(plan: TrafficPlan, endpoint: Endpoint | None) -> _Problems:
    if HOLDOUT in _named((*plan.arms, *plan.mirrors)):
        yield (
            f"The arm name {HOLDOUT!r} is kept for units that are held out.",
            "Give the arm another: records tell them apart by it.",
        )
    held = plan.holdout
    if held is None:
        return
    if held.name != HOLDOUT:
        yield f"The holdout's arm is named {held.name!r}.", f"Name it {HOLDOUT!r}."
    if not 0 < held.weight <= MOST_HELD_OUT:
        yield (
            f"{held.weight / BUCKETS:.4g} of the units are to be held out.",
            f"Hold out a share above 0 and not above {MOST_HELD_OUT / BUCKETS:g}.",
        )
    if endpoint is not None and not endpoint.unit:
        yield (
            "The endpoint has no unit key, so nobody would stay held out.",
            "Set 'unit' of its model in the project's module, and activate a version with it.",
        )


def _cohort(
    plan: TrafficPlan, cohort: Cohort, place: str, fields: dict[str, str] | None, time: str
) -> _Problems:
    if cohort.arm not in _named(plan.arms):
        yield (
            f"{place}there is no arm {cohort.arm!r}.",
            near_miss(cohort.arm, _named(plan.arms)),
        )
    if bool(cohort.header) == bool(cohort.field):
        both = "both a header and a field" if cohort.header else "neither a header nor a field"
        yield f"{place}it has {both}.", "Give it one of them."
    if cohort.header in _SECRET:
        yield (
            f"{place}the header {cohort.header!r} holds secrets, and a plan is read by many.",
            "Let the caller send a header of its own.",
        )
    elif cohort.header and not _TOKEN.fullmatch(cohort.header):
        yield (
            f"{place}{cohort.header!r} is no name of a header in lower case.",
            "Write it like 'x-tester'.",
        )
    if fields is not None and cohort.field and cohort.field not in fields:
        yield (
            f"{place}rows have no field {cohort.field!r}.",
            near_miss(cohort.field, fields),
        )
    if not cohort.values:
        yield f"{place}it has no values.", "Name those that it is for."
    if any(not value for value in cohort.values):
        yield (
            f"{place}one of its values is empty.",
            "Take it out: a row without a value is in no cohort.",
        )
    for value in _twice(cohort.values):
        yield f"{place}the value {value!r} is there twice.", "Write it once."
    dtype = fields.get(cohort.field, "") if fields else ""
    for value in cohort.values if cohort.field != time else ():
        if (dtype == "bool" and value not in {"true", "false"}) or (
            dtype in {"float64", "int64"} and not _is_number(value)
        ):
            yield (
                f"{place}{cohort.field!r} is never {value!r}.",
                "Write 'true' or 'false'."
                if dtype == "bool"
                else "Write numbers like '7' or '0.5'.",
            )
    if cohort.field and cohort.field == time:
        for value in cohort.values:
            try:
                moment(value)
            except InvalidInput as error:
                yield f"{place}{error.what}", error.todo


def _policy(plan: TrafficPlan, fields: dict[str, str] | None) -> _Problems:
    policy = plan.policy
    if policy is None:
        return
    for name in dict.fromkeys(policy.arms):
        if name not in _named(plan.arms):
            yield f"policy: there is no arm {name!r}.", near_miss(name, _named(plan.arms))
    for name in _twice(policy.arms):
        yield f"policy: the arm {name!r} is there twice.", "Name each once."
    for name in _twice(policy.fields):
        yield f"policy: the field {name!r} is there twice.", "Name each once."
    if len(policy.arms) < 2:
        yield "policy: it has fewer than two arms to draw from.", "Name at least two."
    if policy.kind not in {"linucb", "lints"}:
        yield (
            f"policy: there is no kind {policy.kind!r}.",
            near_miss(policy.kind, ["linucb", "lints"]),
        )
    if not (math.isfinite(policy.alpha) and policy.alpha >= 0):
        yield f"policy: alpha is {policy.alpha}.", "Give it a number of 0 or more."
    if not 0 <= policy.floor <= 1:
        yield f"policy: the floor is {policy.floor}.", "Give it a share from 0 to 1."
    if policy.seed < 0 or policy.draws < 1:
        yield (
            f"policy: the seed is {policy.seed}, and there are {policy.draws} draws.",
            "Take a seed of 0 or more and at least one draw.",
        )
    k, d = len(policy.arms), len(policy.fields) + policy.intercept
    if d == 0:
        yield "policy: it has no fields.", "Name the features that it looks at."
    for name, packed, count in (
        ("theta", policy.theta, k * d),
        ("factor", policy.factor, k * d * d),
        ("missing", policy.missing, d if policy.missing else 0),
    ):
        if len(packed) != 8 * count:
            yield (
                f"policy: {name} has {len(packed):,} bytes, and {k} arms of {d} numbers make {8 * count:,}.",
                "Pack it from the policy that was learned for these arms and fields.",
            )
        elif not all(math.isfinite(value) for (value,) in struct.iter_unpack("<d", packed)):
            yield f"policy: {name} has a number that is not finite.", "Learn it anew."
    for name in policy.fields if fields is not None else ():
        dtype = (fields or {}).get(name, "")
        if dtype not in {"float64", "int64", "bool"}:
            yield (
                f"policy: {name!r} is no feature that is a number.",
                near_miss(
                    name,
                    [n for n, t in (fields or {}).items() if t in {"float64", "int64", "bool"}],
                ),
            )


def _period(plan: TrafficPlan, fields: dict[str, str] | None, time: str) -> _Problems:
    period = plan.period
    if period is None:
        return
    if period.seconds < LEAST_PERIOD:
        yield (
            f"period: it takes {period.seconds} s.",
            f"Give it {LEAST_PERIOD} s or more.",
        )
    if plan.policy is not None:
        yield (
            "period: a policy draws the arms, row by row, so that they cannot take turns.",
            "Leave out one of them.",
        )
    if period.field and period.field == time:
        yield "period: it is by time already.", "Name a feature, such as a region, or none."
    elif fields is not None and period.field and not fields.get(period.field):
        features = [name for name, dtype in fields.items() if dtype]
        yield f"period: {period.field!r} is no feature.", near_miss(period.field, features)


def _gap(plan: TrafficPlan) -> _Problems:
    if plan.gap not in {"refuse", "hold"}:
        yield f"There is no gap {plan.gap!r}.", near_miss(plan.gap, ["refuse", "hold"])
    if plan.gap == "hold" and not 0 < plan.gap_seconds <= MAX_GAP_SECONDS:
        yield (
            f"Requests are to be held for {plan.gap_seconds:g} s while there are no arms.",
            f"Set gap_seconds above 0 and not above {MAX_GAP_SECONDS:g}.",
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _named(arms: Iterable[Arm]) -> list[str]:
    return [arm.name for arm in arms]


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
