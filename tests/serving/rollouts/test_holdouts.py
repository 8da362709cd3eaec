"""Rollouts while units are held out: nobody held out ever changes arm, and verdicts are those of all others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.serving.rollouts.live import Live

from keepwell.core.errors import InvalidInput, Refused
from keepwell.core.records.data import Column
from keepwell.core.records.models import Signature
from keepwell.core.records.predictions import Prediction
from keepwell.core.records.rollouts import Look
from keepwell.core.records.traffic import HOLDOUT, Arm, TrafficPlan
from keepwell.core.standing import what_stands_on
from keepwell.serving.desk.assign import held_out
from keepwell.serving.rollouts.holdouts import standing_since
from keepwell.serving.rollouts.plans import arm_of, content_of, describe_plan, write_plan

SHARE = 1_000


def write(live: Live, **content: Any) -> TrafficPlan:
    said: Any = {**content_of(live.plan), **content}
    with live.store.transaction(actor="olga") as transaction:
        return write_plan(transaction, "buys", reason="r", actor="olga", now=live.clock.at, **said)


def held(live: Live, version: int = 1, weight: int = SHARE) -> Arm:
    return msgspec.structs.replace(arm_of(live.versions[version - 1], name=HOLDOUT), weight=weight)


@pytest.fixture
def live(tmp_path) -> Live:
    made = Live(tmp_path)
    write(made, holdout=held(made))
    return made


def answers(live: Live) -> list[Prediction]:
    found: list[Prediction] = []
    cursor: dict[str, int] = {}
    while True:
        batch = live.log.read(cursor)
        cursor = dict(batch.cursor)
        if not batch.predictions and not batch.outcomes:
            return [p for p in found if not p.mirror]
        found += batch.predictions


def nobody_moved(live: Live) -> int:
    """See that whoever is held out was answered by the holdout, all the time; gives how often."""
    found = answers(live)
    plan = live.plan
    inside = held_out([p.unit for p in found], plan.holdout, plan.salt)
    for record, out in zip(found, inside, strict=True):
        if not record.cohort:
            assert (record.arm == HOLDOUT) == out, record
            assert not out or (record.version, record.propensity) == (1, SHARE / 10_000)
    return int(inside.sum())


@pytest.mark.parametrize(
    ("strategy", "rules", "requests"),
    [
        ("blue-green", {"min_rows": 100, "keep_seconds": 3600}, 100),
        ("shadow", {"tolerance": 0.9, "min_rows": 300}, 400),
        ("canary, ab", {"min_rows": 150}, 400),
        ("switchback", {"period_minutes": 20, "washout_minutes": 5, "tuned_for": 60}, 480),
        ("bandit", {"algorithm": "lints", "horizon_days": 2, "every_seconds": 3600}, 480),
    ],
)
def test_a_rollout_takes_its_course_beside_the_holdout(live, strategy, rules, requests):
    live.bias[1] = 0.5  # what is held out earns less than the challenger, as the champion does
    live.start(strategy, rules=rules)
    live.run(requests=requests)
    assert (live.rollout.state, live.serving()) == ("promoted", {2: 10_000})
    live.send(100)
    plans = live.store.find(TrafficPlan, {"endpoint": "buys"}, order=["revision"])
    assert [plan.holdout for plan in plans] == [None] + [held(live)] * (len(plans) - 1)
    since = standing_since(plans)
    assert since is not None
    assert since.revision == 2
    assert nobody_moved(live) > 10
    assert live.driver.replay("r").differences == ()


def test_the_holdouts_rows_are_not_the_champions_and_the_replay_knows_who_is_held_out(live):
    live.start("ab", rules={"min_rows": 5_000})
    live.run(rounds=1, requests=300)
    look = live.store.find(Look, {"rollout": "r"}, order=["-number"], limit=1)[0]
    units, found = look.measured["units"], answers(live)
    assert units == {name: len({p.unit for p in found if p.arm == name}) for name in units}
    assert 200 < sum(units.values()) < 300
    real = live.writer.append

    def wrong(*, predictions=(), **other):
        changed = [
            msgspec.structs.replace(p, arm=HOLDOUT) if p.id == "d307" else p for p in predictions
        ]
        real(predictions=changed, **other)

    live.writer.append = wrong
    live.run(rounds=1, requests=300)
    (said,) = live.driver.replay("r").differences
    assert "d307: it was assigned to 'holdout'; computed again it goes to" in said


def test_a_version_that_is_held_out_stays_whatever_way_traffic_is_given_back(live):
    other = Signature(inputs=(Column(name="y", dtype="float64"),), task="regression")
    whole, live.versions[1] = (
        live.versions[1],
        msgspec.structs.replace(live.versions[1], signature=other),
    )
    before = live.plan
    with pytest.raises(
        InvalidInput, match=r"buys/2 has another signature than buys/1.*end the holdout"
    ):
        live.start("ab")
    assert live.plan == before
    live.versions[1] = whole
    live.start("recreate", rules={"down_seconds": 5, "gap_seconds": 20})
    assert (live.plan.arms, live.plan.holdout) == ((), held(live))
    assert describe_plan(live.plan).startswith("v1 10% (")
    live.clock.at += 5_000_000
    live.driver.look()
    assert live.serving() == {2: 10_000}
    told = what_stands_on(live.versions[0], live.store)
    assert told == [f"arm 'holdout' of endpoint 'buys' (traffic plan {live.plan.revision})"]
    back = live.driver.roll_back("buys", actor="olga", reason="wrong offers")
    assert (back.holdout, back.fallback) == (held(live), "champion")
    write(live, holdout=None)
    assert (live.plan.holdout, live.plan.fallback) == (None, "")
    live.driver.roll_back("buys", actor="olga", reason="again")
    assert live.plan.holdout is None


def test_a_holdout_that_begins_in_the_middle_of_a_rollout_outlives_it(tmp_path):
    live = Live(tmp_path)
    live.start("ab", rules={"min_rows": 5_000})
    live.run(rounds=1, requests=100)
    write(live, holdout=held(live, weight=5_000))
    live.run(rounds=1, requests=200)
    assert live.driver.replay("r").same
    with live.store.transaction(actor="olga") as transaction:
        assert live.driver.call_off(transaction, id="r", actor="olga", reason="no")
    assert live.serving() == {1: 10_000}
    assert (live.plan.holdout, live.plan.fallback) == (held(live, weight=5_000), "champion")


def test_a_holdout_needs_a_unit_key(tmp_path):
    live = Live(tmp_path, unit="")
    with pytest.raises(Refused, match="no unit key, so nobody would stay held out"):
        write(live, holdout=held(live))
    assert live.plan.revision == 1
