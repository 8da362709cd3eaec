"""A wrong traffic plan is refused with what is wrong, where, and what to do."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from keepwell.core.errors import Refused
from keepwell.core.plans import check_plan, plan_problems
from keepwell.core.records.data import Column
from keepwell.core.records.models import Signature
from keepwell.core.records.traffic import (
    Arm,
    Cohort,
    Endpoint,
    LinearPolicyState,
    Period,
    TrafficPlan,
)

SIGNATURE = Signature(
    inputs=(
        Column(name="delay", dtype="float64", nullable=True),
        Column(name="carrier", dtype="string", nullable=True),
    ),
    task="regression",
)
ENDPOINT = Endpoint(name="e", model="m", unit="user", time="at", label_delay=0, created=0)


def arm(name: str, weight: int = 0) -> Arm:
    return Arm(name=name, model="m", version=1, artefact="sha256:0", weight=weight)


def cohort(**fields: Any) -> Cohort:
    return Cohort(**{"arm": "green", "header": "x-tester", "values": ("yes",), **fields})


def policy(**fields: Any) -> LinearPolicyState:
    given: dict[str, Any] = {
        "kind": "lints", "arms": ("blue", "green"), "fields": ("delay",), "alpha": 1.0, "floor": 0.1,
        "theta": struct.pack("<2d", 0.5, 1.0), "factor": struct.pack("<2d", 1.0, 1.0),
    }  # fmt: skip
    return LinearPolicyState(**{**given, **fields})


def plan(*arms: Arm, **fields: Any) -> TrafficPlan:
    return TrafficPlan(
        endpoint="e", revision=1, arms=arms, salt="s", reason="", by="", created=0, **fields
    )


BLUE, GREEN = arm("blue", 10_000), arm("green")
GOOD = [
    plan(),
    plan(gap="hold", gap_seconds=30.0),
    plan(BLUE),
    plan(arm("blue", 6_000), arm("green", 4_000), mirrors=(arm("white", 100),), fallback="blue"),
    plan(BLUE, GREEN, cohorts=(cohort(),)),
    plan(BLUE, GREEN, cohorts=(cohort(header="", field="carrier", values=("UA", "DL")),)),
    plan(BLUE, GREEN, cohorts=(cohort(header="", field="user"),)),
    plan(BLUE, GREEN, cohorts=(cohort(header="", field="at", values=("2026-01-01",)),)),
    plan(BLUE, GREEN, fallback="green"),
    plan(arm("blue", 6_000), arm("green", 4_000), period=Period(seconds=60, field="carrier")),
    plan(BLUE, GREEN, policy=policy()),
    plan(BLUE, GREEN, policy=policy(missing=struct.pack("<d", 0.5))),
]
WRONG = [
    (plan(arm("blue", 9_000)), "add up to 9,000", "Part all buckets"),
    (plan(arm("blue", 10_100), arm("green", -100)), "'green' is -100", "0 to 10,000"),
    (plan(arm("blue", 5_000), arm("blue", 5_000)), "Two arms are named 'blue'", "name of its own"),
    (plan(BLUE, mirrors=(GREEN, GREEN)), "Two mirrors are named 'green'", "name of its own"),
    (plan(BLUE, mirrors=(arm("blue"),)), "The mirror 'blue' has the name", "another"),
    (plan(BLUE, mirrors=(arm("white", 10_001),)), "'white' is 10,001", "0 to 10,000"),
    (plan(arm("", 10_000)), "no name", "Give it one"),
    (plan(BLUE, fallback="bleu"), "fallback 'bleu'", "Did you mean 'blue'?"),
    (plan(BLUE, GREEN), "'green' has no traffic", "a cohort"),
    (plan(BLUE, GREEN, cohorts=(cohort(arm="grean"),)), "no arm 'grean'", "Did you mean 'green'?"),
    (plan(BLUE, GREEN, cohorts=(cohort(field="user"),)), "cohort 0: it has both", "one of them"),
    (plan(BLUE, GREEN, cohorts=(cohort(header=""),)), "cohort 0: it has neither", "one of them"),
    (plan(BLUE, GREEN, cohorts=(cohort(header="X-Tester"),)), "'X-Tester' is no name", "x-tester"),
    (plan(BLUE, GREEN, cohorts=(cohort(header="cookie"),)), "'cookie' holds secrets", "of its own"),
    (plan(BLUE, GREEN, cohorts=(cohort(), cohort(values=()))), "cohort 1: it has no values", "for"),
    (plan(BLUE, GREEN, cohorts=(cohort(values=("",)),)), "is empty", "Take it out"),
    (plan(BLUE, GREEN, cohorts=(cohort(values=("a", "a")),)), "'a' is there twice", "once"),
    (
        plan(BLUE, GREEN, cohorts=(cohort(header="", field="carier"),)),
        "no field 'carier'",
        "Did you mean 'carrier'?",
    ),
    (
        plan(BLUE, GREEN, cohorts=(cohort(header="", field="at", values=("noon",)),)),
        "'noon' is not a date",
        "2013-04-01",
    ),
    (plan(BLUE, GREEN, policy=policy(arms=("blue", "red"))), "no arm 'red'", "Allowed"),
    (plan(BLUE, GREEN, policy=policy(arms=("green",))), "fewer than two arms", "at least two"),
    (plan(BLUE, GREEN, policy=policy(fields=("carrier",))), "'carrier' is no feature", "delay"),
    (plan(BLUE, GREEN, policy=policy(fields=("delay", "delay"))), "is there twice", "once"),
    (plan(BLUE, GREEN, policy=policy(intercept=True)), "theta has 16 bytes", "Pack it"),
    (plan(BLUE, GREEN, policy=policy(theta=struct.pack("<2d", 0, float("nan")))), "not finite", ""),
    (plan(BLUE, GREEN, policy=policy(missing=b"12")), "missing has 2 bytes", "Pack it"),
    (plan(BLUE, GREEN, policy=policy(missing=struct.pack("<d", float("nan")))), "not finite", ""),
    (plan(BLUE, GREEN, policy=policy(floor=1.5)), "floor is 1.5", "0 to 1"),
    (plan(BLUE, GREEN, period=Period(seconds=59)), "it takes 59 s", "60 s or more"),
    (
        plan(BLUE, GREEN, period=Period(seconds=60), policy=policy()),
        "cannot take turns",
        "Leave out",
    ),
    (
        plan(BLUE, GREEN, period=Period(seconds=60, field="carier")),
        "'carier' is no feature",
        "carrier",
    ),
    (plan(BLUE, GREEN, period=Period(seconds=60, field="user")), "'user' is no feature", "carrier"),
    (plan(BLUE, GREEN, period=Period(seconds=60, field="at")), "by time already", "region"),
    (plan(BLUE, GREEN, policy=policy(alpha=-1.0)), "alpha is -1.0", "0 or more"),
    (plan(gap="hold"), "held for 0 s", "gap_seconds"),
    (plan(gap="hold", gap_seconds=601.0), "held for 601 s", "600"),
]


@pytest.mark.parametrize("good", GOOD)
def test_a_good_plan_has_no_problems(good):
    assert plan_problems(good, endpoint=ENDPOINT, signature=SIGNATURE) == []
    assert plan_problems(good) == []


@pytest.mark.parametrize(("wrong", "what", "todo"), WRONG)
def test_a_wrong_plan_is_refused_with_what_is_wrong_and_the_way_out(wrong, what, todo):
    problems = plan_problems(wrong, endpoint=ENDPOINT, signature=SIGNATURE)
    assert any(what in problem.what and todo in problem.todo for problem in problems), problems
    assert all(problem.where == "plan of endpoint 'e'" for problem in problems)
    with pytest.raises(Refused) as told:
        check_plan(wrong, endpoint=ENDPOINT, signature=SIGNATURE)
    assert what in str(told.value)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(Refused) as told:
        check_plan(plan(arm("blue", 9_000), arm("green", -1), fallback="red"))
    for part in ("8,999", "'green' is -1", "'red' is no arm"):
        assert part in str(told.value)
