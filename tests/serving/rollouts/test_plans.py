"""Writing a plan: what is wrong is refused before anything changes, and what says the same is no revision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.gateways import arm

from keepwell.adapters.stores.sql import SqlStore, open_store
from keepwell.core.errors import Refused
from keepwell.core.records.traffic import BUCKETS, Cohort, Period, TrafficPlan
from keepwell.serving.rollouts.plans import describe_plan, write_plan

BLUE, GREEN = arm(1, "sha256:0"), arm(2, "sha256:1", 0)
TESTERS = Cohort(arm="v2", header="x-tester", values=("yes",))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    made = open_store(f"sqlite:///{tmp_path}/a.db")
    yield made
    made.close()


def write(store: SqlStore, **given: Any) -> TrafficPlan:
    with store.transaction(actor="ana") as transaction:
        return write_plan(
            transaction, "e", **{"mirrors": (), "reason": "r", "actor": "ana", "now": 5, **given}
        )


def test_a_wrong_plan_is_refused_and_nothing_changes(store: SqlStore):
    first = write(store, arms=(BLUE,))
    with pytest.raises(Refused, match=r"plan of endpoint 'e': .*no arm 'v2'"):
        write(store, arms=(BLUE,), cohorts=(TESTERS,))
    with pytest.raises(Refused, match="add up to 9,999"):
        write(store, arms=(arm(1, "sha256:0", BUCKETS - 1),))
    assert store.find(TrafficPlan) == [first]


def test_what_a_plan_says_is_kept_and_saying_the_same_again_is_no_revision(store: SqlStore):
    write(store, arms=(BLUE,))
    second = write(store, arms=(BLUE, GREEN), cohorts=(TESTERS,))
    again = write(store, arms=(BLUE, GREEN), cohorts=(TESTERS,), reason="another", now=9)
    assert (second.revision, second.fallback, again) == (2, "v1", second)
    assert store.get(TrafficPlan, "e", 2) == second
    third = write(store, arms=(BLUE, GREEN), cohorts=(TESTERS,), fallback="")
    assert (third.revision, third.fallback, third.salt) == (3, "", second.salt)
    turns = write(
        store,
        arms=(arm(1, "sha256:0", 4_000), arm(2, "sha256:1", 6_000)),
        period=Period(seconds=5400),
    )
    assert store.get(TrafficPlan, "e", 4) == turns
    assert "in turns of 90 min" in describe_plan(turns)
    held = write(store, arms=(), gap="hold", gap_seconds=20)
    assert (held.revision, held.gap_seconds) == (5, 20.0)
    assert describe_plan(held) == "nobody (requests wait 20 s)"
    assert "x-tester=yes to v2" in describe_plan(third)
