"""Promises of the studies: each bar of `make bench-stats` holds in a shorter run as well."""

import time

import msgspec
import numpy as np
import pytest

from benchmarks.endpoints import START, Log, Traffic, arm, state_of, steer
from benchmarks.rows import Row, at_least, at_most, share_error, within
from benchmarks.stats import run_study, study_names
from keepwell.core.clock import DAY
from keepwell.core.records.traffic import TrafficPlan
from keepwell.serving.desk.assign import assigned
from keepwell.serving.log.batches import ERROR, FALLBACK
from keepwell.serving.rollouts.strategies.canary import Canary, CanaryRules


@pytest.mark.parametrize("name", study_names())
def test_the_bars_of_a_study_hold_in_its_shorter_run(name: str) -> None:
    started = time.process_time()
    rows, _ = run_study(name, quick=True)
    assert rows
    assert [row for row in rows if not row.ok] == []
    assert time.process_time() - started < 30, "a shortened study takes seconds"


def test_a_missed_bar_is_told_and_the_slack_of_a_shorter_run_is_said() -> None:
    assert not at_most("x", 0.051, 0.05, runs=2000, seed=1).ok
    assert not at_least("x", 0.94, 0.95, runs=2000, seed=1).ok
    assert not within("x", 0.98, 0.93, 0.97, runs=2000, seed=1).ok
    shorter = at_most("x", 0.06, 0.05, runs=100, seed=1, slack=share_error(0.05, 100))
    assert shorter == Row(
        name="x",
        value=0.06,
        bar="at most 0.05 (shorter run: 0.065 allowed)",
        ok=True,
        runs=100,
        seed=1,
    )


def made(n: int, *, failing: float) -> Traffic:
    """The challenger fails so often, and the champion in one decision of eight of those too."""
    rng = np.random.default_rng(1)
    failed = np.zeros((n, 2), dtype=np.bool_)
    failed[:, 1] = rng.random(n) < failing
    failed[::8, 0] = True
    time = START + np.arange(n) * (DAY // n)
    return Traffic(
        time=time, unit=rng.integers(0, 500, n), output=np.tile([0.1, 0.2], (n, 1)), failed=failed,
        outcome=np.tile([1.0, 2.0], (n, 1)), labelled=time + DAY // 2,
    )  # fmt: skip


def test_a_simulated_endpoint_assigns_falls_back_and_labels_as_the_gateway_does() -> None:
    traffic = made(2000, failing=0.5)
    weights = (
        msgspec.structs.replace(arm(0), weight=7000),
        msgspec.structs.replace(arm(1), weight=3000),
    )
    plan = TrafficPlan(endpoint="e", revision=1, arms=weights, fallback="champion", salt="s", reason="", by="", created=0)  # fmt: skip
    log = Log(names=("champion", "challenger"), room=2000)
    for rows in (slice(0, 700), slice(700, 2000)):
        log.add(traffic, rows, plan)
    now = START + DAY * 3 // 4
    seen = log.seen(now)
    own = assigned([str(unit) for unit in traffic.unit.tolist()], plan.arms, "s")
    assert (seen.arm == own).all()
    ours, theirs = own == 1, own == 0
    failed = traffic.failed
    assert (seen.status[ours & failed[:, 1] & ~failed[:, 0]] == FALLBACK).all()
    assert (seen.status[(failed[:, 0] & theirs) | (failed.all(axis=1) & ours)] == ERROR).all()
    assert set(seen.output[seen.status == FALLBACK]) == {0.1}
    assert (np.isnan(seen.outcome) == (traffic.labelled > now)).all()


def test_a_controller_steers_the_simulated_endpoint_until_its_verdict() -> None:
    looks = [START + k * DAY // 20 for k in range(1, 21)]
    state = state_of(CanaryRules(steps=(0.1, 0.5), min_rows=100))
    assert steer(Canary(), state, made(4000, failing=0.0), looks, seed="a").verdict == "promote"
    end = steer(Canary(), state, made(4000, failing=0.9), looks, seed="a")
    assert (end.verdict, end.winner) == ("roll back", 0)
    assert end.rows < 2000
