"""The storms of ``make storm`` in their short form: fewer of each, and none of them gentler."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.serving import storms
from tests.serving.fuzzing import (
    CLEAR,
    Fuzzer,
    mutated_bytes,
    mutated_json,
    seeds,
    storm_of_requests,
)
from tests.serving.gateways import arm, endpoint, linear, running

SEED = 20261121


def quiet(line: str) -> None:
    del line


def test_plans_and_workers_swap_under_load_and_no_request_fails(tmp_path):
    found = storms.storm_of_swaps(tmp_path, plans=40, workers=4, say=quiet)
    assert storms.verdict(found, storms.MUST["swaps"]) == []
    assert (found["plans_seen"], found["worker_swaps"]) == (41, 4)
    assert found["acknowledged"] == found["logged"] > 500


def test_of_killed_workers_nothing_acknowledged_is_missing_or_doubled(tmp_path):
    found = storms.storm_of_kills(tmp_path, kills=3, seed=SEED, say=quiet)
    assert storms.verdict(found, storms.MUST["kills"]) == []
    assert found["acknowledged"] > 100


def test_full_disks_lost_folders_and_corrupt_models_are_told_and_recovered_from(tmp_path):
    found = storms.storm_of_failures(tmp_path, rounds=4, say=quiet)
    assert storms.verdict(found, storms.MUST["failures"]) == []
    assert found["recovered"] == 4
    assert all("The prediction log cannot be written" in said for said in found["refused"])


def test_one_request_under_one_plan_has_one_decision_on_every_worker_and_after_restarts(tmp_path):
    found = storms.storm_of_sameness(tmp_path, units=300, restarts=2)
    assert storms.verdict(found, storms.MUST["sameness"]) == []
    assert found["workers"] >= 3
    assert found["arms_used"] == 4


def test_hostile_requests_of_every_protocol_are_refused_in_clear_words(tmp_path):
    found = storm_of_requests(tmp_path, count=4000, seed=SEED, say=quiet)
    assert storms.verdict(found, storms.MUST["fuzz"]) == []
    assert {"200", "400", "404", "405", "413", "422", "431"} <= set(found["answers"])
    assert "grpc INVALID_ARGUMENT" in found["answers"]


def test_a_steady_load_is_answered_in_flat_memory(tmp_path):
    found = storms.soak(tmp_path, seconds=6, share=0.7, say=quiet)
    assert storms.verdict(found, storms.MUST["soak"]) == []
    assert found["rows"] == found["logged"] > 1000
    assert found["memory_end_mb"] - found["memory_start_mb"] < 10


def test_the_audit_sees_what_is_missing_doubled_or_different(tmp_path):
    with running(tmp_path) as gateway:
        gateway.publish(endpoint(arms=[arm(1, linear(gateway.shelf, 10.0))]))
        with storms.Load(gateway, "known") as load:
            storms.until(lambda: len(load.acknowledged) > 20, "answers")
        assert storms.audit(gateway.log, [load])["missing"] == 0
        name, answer = next(iter(load.acknowledged.items()))
        gateway.post({"rows": [storms.ROW], "ids": [name]})
        assert storms.audit(gateway.log, [load])["duplicates"] == 1
        load.acknowledged["never answered"] = answer
        load.acknowledged[name] = (answer[0] + 1, *answer[1:])
        found = storms.audit(gateway.log, [load])
    assert (found["missing"], found["different"]) == (1, 1)
    assert storms.verdict(found, {"missing": 0, "duplicates": 1}) == ["missing is 1, not 0"]


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, b"{}", ""),
        (422, b'{"error":"why"}', ""),
        (500, b'{"error":"why"}', "status 500"),
        (422, b'{"error":""}', "without a message"),
        (400, b"oops", "no JSON"),
    ],
)
def test_the_judge_of_answers_knows_bad_ones(status, body, problem):
    judge = object.__new__(Fuzzer)
    judge.statuses, judge.wrong = Counter(), []
    judge._note(status, body, b"sent")
    assert (problem in judge.wrong[0]) if problem else (judge.wrong == [])
    assert (status in CLEAR) == (problem != "status 500")


def test_mutations_are_replayed_by_their_seed_and_differ_from_what_was_good():
    for mutate in (mutated_json, mutated_bytes):
        made = [[mutate(random.Random(n), body) for _, body, _ in seeds()] for n in range(30)]
        again = [[mutate(random.Random(n), body) for _, body, _ in seeds()] for n in range(30)]
        assert made == again
        good = [body for _, body, _ in seeds()]
        changed = sum(a != b for bodies in made for a, b in zip(bodies, good, strict=True))
        assert changed > 0.8 * 30 * len(good)
