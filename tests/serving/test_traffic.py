"""What a traffic plan can say besides weights, over real HTTP and gRPC: cohorts, shares of mirrors, draws, gaps."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving import gateways
from tests.serving.gateways import (
    COLUMNS,
    PATIENCE,
    Gateway,
    arm,
    endpoint,
    hold,
    linear,
    native,
    running,
)
from tests.serving.models import Doubling, Lengths
from tests.serving.protocols.conftest import WORDS
from tritonclient.utils import InferenceServerException

from keepwell.core.errors import InvalidInput
from keepwell.core.records.predictions import Prediction
from keepwell.core.records.traffic import BUCKETS, HOLDOUT, Arm, Cohort, Period
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.assign import (
    Assignment,
    Rows,
    bucket_of,
    draw_of,
    held_out,
    in_turns,
    log_draw_of,
    mirror_bucket_of,
)
from keepwell.serving.desk.gaps import MAX_HELD, MAX_HELD_BYTES, Gap
from keepwell.serving.desk.policies import Drawing, inputs_of, pack_policy, unpack_policy
from keepwell.serving.editions import EndpointEdition
from keepwell.serving.gateway import _rebalanced
from keepwell.stats.linear_bandit import Kind, LinearState

ROW = {"x": 1.0, "flag": True, "dep delay": 0.0}
HEADER = Cohort(arm="v2", header="x-color", values=("green", "grün"))
ANN = Cohort(arm="v1", field="user", values=("ann", "7"))
SEVEN = Cohort(arm="v2", field="x", values=("7", "8.5"))
NEW_YEAR = Cohort(arm="v2", field="at", values=("2026-01-01T00:00:00Z",))
SHARE = 3_000
CLOSE = "connection: close\r\n"


def policy_state(kind: Kind = "lints"):
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.normal(size=(60, 2)), np.ones(60)])
    taken = rng.integers(0, 2, 60)
    reward = np.where(taken == 0, x[:, 0], -x[:, 0]) + rng.normal(size=60)
    learned = LinearState.start(arms=2, features=3).update(x, taken, reward)
    return pack_policy(
        replace(learned.policy(kind, alpha=1.0, floor=0.1, seed=7), missing=x.mean(axis=0)),
        arms=("v1", "v2"),
        fields=("dep delay", "x"),
        intercept=True,
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("traffic"), workers=2, grpc=True) as made:
        shelf = made.shelf
        plain, other = linear(shelf, 10.0), linear(shelf, 20.0)
        words = native(shelf, Lengths(), WORDS, [["abc", 1.0, True]])
        more = native(shelf, Doubling())
        blue, green = arm(1, plain), arm(2, other, 0)
        halves = [arm(1, plain, 5_000), arm(2, other, 5_000)]
        made.publish(
            endpoint("e", arms=[blue, green], cohorts=(HEADER, ANN, SEVEN), fallback="v1"),
            endpoint("timed", arms=halves, time="at", cohorts=(NEW_YEAR,)),
            endpoint("halves", arms=halves, cohorts=(ANN,)),
            endpoint(
                "words", arms=[arm(1, words), arm(2, words, 0)],
                cohorts=(
                    Cohort(arm="v2", field="flag", values=("true",)), Cohort(arm="v2", field="word", values=("abc", "ü")),
                ),
            ),
            endpoint("shared", arms=[blue], mirrors=(arm(3, more, SHARE), arm(4, other, 0))),
            endpoint(
                "sampled", arms=halves, mirrors=(arm(3, more, 0),), log="sampled", log_share=0.2
            ),
            endpoint("drawn", arms=halves, policy=policy_state(), cohorts=(ANN,)),
            endpoint("turning", arms=halves, time="at", period=Period(seconds=60, field="flag"), cohorts=(ANN,)),
            endpoint("flagged", arms=halves, unit="flag"),
            endpoint(
                "held", arms=halves, cohorts=(ANN,), fallback="v1",
                holdout=hold(2_000, version=9, artefact=linear(shelf, 90.0)),
            ),
        )  # fmt: skip
        yield made


def asked(
    gateway: Gateway, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    connection.request(
        "POST", path, content, {"content-type": "application/json"} | (headers or {})
    )
    answer = connection.getresponse()
    try:
        return answer.status, msgspec.json.decode(answer.read())
    finally:
        connection.close()


def decisions(gateway: Gateway, prefix: str, *, mirror: bool = False) -> dict[str, Prediction]:
    found = [p for p in gateway.records()[0] if p.id.startswith(prefix) and p.mirror is mirror]
    assert len({p.id for p in found}) == len(found)
    return {p.id: p for p in found}


def ask_in_every_protocol(
    gateway: Gateway, name: str, identity: str, row: dict[str, Any], headers: dict[str, str]
) -> None:
    """Send one row with its decision id ``identity`` and a number, once a protocol."""
    split = {"columns": list(row), "data": [list(row.values())]}
    tensors = [
        {"name": n, "shape": [1], "datatype": "BYTES" if isinstance(v, str) else "BOOL" if isinstance(v, bool) else "FP64", "data": [v]}
        for n, v in row.items()
    ]  # fmt: skip
    path = f"/v1/endpoints/{name}"
    sent = [
        asked(gateway, f"{path}/predict", {"row": row, "id": f"{identity}-0"}, headers),
        asked(
            gateway,
            f"{path}/invocations",
            {"dataframe_split": split, "params": {"ids": [f"{identity}-1"]}},
            headers,
        ),
        asked(
            gateway,
            f"/v2/models/{name}/infer",
            {"inputs": tensors, "parameters": {"ids": [f"{identity}-2"]}},
            headers,
        ),
    ]
    assert [status for status, _ in sent] == [200] * 3, sent
    inputs = []
    for one in tensors:
        made = triton.InferInput(one["name"], [1], one["datatype"])
        dtype: Any = {"BYTES": object, "BOOL": bool, "FP64": np.float64}[str(one["datatype"])]
        inputs.append(made.set_data_from_numpy(np.array(one["data"], dtype=dtype)))
    with triton.InferenceServerClient(gateway.grpc) as client:
        client.infer(name, inputs, headers=headers or None, parameters={"ids": f'["{identity}-3"]'})


@pytest.mark.parametrize(
    ("identity", "row", "headers", "arm_", "cohort"),
    [
        ("c-header", ROW, {"x-color": "green"}, "v2", "x-color=green+1"),
        ("c-first", ROW | {"user": "ann"}, {"x-color": "green"}, "v2", "x-color=green+1"),
        ("c-other", ROW, {"x-color": "Green"}, "v1", ""),
        ("c-none", ROW, {}, "v1", ""),
        ("c-unit", ROW | {"user": "ann", "x": 7.0}, {}, "v1", "user=ann+1"),
        ("c-number", ROW | {"x": 7.0, "user": "bob"}, {}, "v2", "x=7+1"),
        ("c-decimal", ROW | {"x": 8.5}, {"x-shape": "green"}, "v2", "x=7+1"),
    ],
)
def test_a_cohort_meets_its_arm_in_every_protocol_and_the_log_says_so(
    gateway: Gateway, identity, row, headers, arm_, cohort
):
    ask_in_every_protocol(gateway, "e", identity, row, headers)
    found = decisions(gateway, f"{identity}-")
    assert sorted(found) == [f"{identity}-{k}" for k in range(4)]
    for record in found.values():
        assert (record.arm, record.cohort, record.propensity) == (arm_, cohort, 1.0)
        assert record.arms == ("v1", "v2")
        assert record.output == row["x"] + (20.0 if arm_ == "v2" else 10.0)


def test_rows_that_are_not_all_numbers_are_looked_at_by_text(gateway: Gateway):
    rows = [
        {"word": "abc", "number": 1, "flag": False},
        {"word": "ü", "number": None, "flag": None},
        {"word": "xy", "number": 1, "flag": True},
        {"word": "xy", "number": 1, "flag": False},
        {"word": None, "number": 1, "flag": None},
    ]
    body = {"rows": rows, "ids": [f"w-{k}" for k in range(5)]}
    assert asked(gateway, "/v1/endpoints/words/predict", body)[0] == 200
    found = decisions(gateway, "w-")
    assert [found[f"w-{k}"].arm for k in range(5)] == ["v2", "v2", "v2", "v1", "v1"]
    assert found["w-1"].cohort == "word=abc+1"
    assert found["w-2"].cohort == "flag=true"


def test_a_time_is_met_however_it_is_written(gateway: Gateway):
    times = ["2026-01-01T01:00:00+01:00", 1_767_225_600_000_000, "2026-01-02"]
    rows = [ROW | {"at": at, "user": f"t{k}"} for k, at in enumerate(times)]
    body = {"rows": rows, "ids": ["t-0", "t-1", "t-2"]}
    assert asked(gateway, "/v1/endpoints/timed/predict", body)[0] == 200
    found = decisions(gateway, "t-")
    assert [found[f"t-{k}"].cohort for k in range(3)] == ["at=2026-01-01T00:00:00Z"] * 2 + [""]
    assert found["t-2"].propensity == 0.5


def test_who_is_in_no_cohort_keeps_the_arm_of_the_buckets(gateway: Gateway):
    users = ["ann", "7", *(f"u{n}" for n in range(40))]
    rows = [ROW | {"user": user} for user in users]
    body = {"rows": rows, "ids": [f"h-{user}" for user in users]}
    assert asked(gateway, "/v1/endpoints/halves/predict", body)[0] == 200
    found = decisions(gateway, "h-")
    for user in users[2:]:
        record = found[f"h-{user}"]
        assert record.arm == ("v2" if bucket_of(user, "s") < 5_000 else "v1")
        assert (record.cohort, record.propensity) == ("", 0.5)
    assert {(found[f"h-{u}"].arm, found[f"h-{u}"].propensity) for u in ("ann", "7")} == {
        ("v1", 1.0)
    }


def test_units_that_are_held_out_keep_their_version_on_every_worker_and_the_log_says_each_chance(
    gateway: Gateway,
):
    users = ["ann", *(f"u{n}" for n in range(60))]
    held = dict(zip(users, held_out(users, hold(2_000), "s").tolist(), strict=True))
    assert 3 < sum(held.values()) < 25
    for turn in range(4):
        rows = [ROW | {"user": user} for user in users]
        body = {"rows": rows, "ids": [f"o-{turn}-{user}" for user in users]}
        assert asked(gateway, "/v1/endpoints/held/predict", body)[0] == 200
    found = decisions(gateway, "o-")
    assert len(found) == 4 * len(users)
    for record in found.values():
        if record.unit == "ann":
            assert (record.arm, record.cohort, record.propensity) == ("v1", "user=ann+1", 1.0)
        elif held[record.unit]:
            assert (record.arm, record.version, record.output) == (HOLDOUT, 9, ROW["x"] + 90.0)
            assert record.propensity == 0.2
        else:
            assert record.arm == ("v2" if bucket_of(record.unit, "s") < 5_000 else "v1")
            assert record.propensity == 0.4
        assert record.arms == ("v1", "v2", HOLDOUT)
    # Named by its version it is a probe, and no decision.
    tensor = {"name": "all", "shape": [1, 3], "datatype": "FP64", "data": [1.0, 1.0, 0.0]}
    status, answer = asked(gateway, "/v2/models/held/versions/9/infer", {"inputs": [tensor]})
    assert (status, answer["parameters"]["probe"]) == (200, True)
    text = gateway.application.request("GET", "/metrics")[1].decode()
    shares = {
        line.partition('arm="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith('keepwell_arm_weight_ratio{endpoint="held"')
    }
    assert shares == {"v1": 0.4, "v2": 0.4, HOLDOUT: 0.2}


def test_on_one_connection_each_request_is_placed_by_its_own_header(gateway: Gateway):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    body = msgspec.json.encode({"rows": [ROW]})
    arms = []
    colours = ["green", "blue", None, "green", "grün", None, "blue", "green"] * 4
    for colour in colours:
        headers = {} if colour is None else {"X-Color": colour.encode().decode("latin-1")}
        connection.request("POST", "/v1/endpoints/e/predict", body, headers)
        arms.append(msgspec.json.decode(connection.getresponse().read())["predictions"][0]["arm"])
    connection.close()
    assert arms == ["v2" if colour in {"green", "grün"} else "v1" for colour in colours]


def test_a_pinned_version_is_a_probe_where_a_cohort_may_place_the_request(gateway: Gateway):
    tensor = {"name": "all", "shape": [1, 3], "datatype": "FP64", "data": [1.0, 1.0, 0.0]}
    path = "/v2/models/e/versions/1/infer"
    status, answer = asked(gateway, path, {"inputs": [tensor]}, {"x-color": "green"})
    assert (status, answer["parameters"]["probe"], answer["model_version"]) == (200, True, "1")


def test_a_mirror_with_a_share_sees_the_units_of_its_buckets_and_the_log_says_its_share(
    gateway: Gateway,
):
    users = [f"m{n}" for n in range(200)]
    body = {
        "rows": [ROW | {"user": u} for u in users], "ids": [f"s-{u}" for u in users],
    }  # fmt: skip
    assert asked(gateway, "/v1/endpoints/shared/predict", body)[0] == 200
    # Without units and ids of their own, the ids that the gateway made decide.
    anonymous = asked(gateway, "/v1/endpoints/shared/predict", {"rows": [ROW] * 50})[1]
    made = [p["id"] for p in anonymous["predictions"]]
    deadline = time.monotonic() + PATIENCE
    while True:
        records = gateway.records()[0]
        mirrored = [p for p in records if p.mirror and p.id.startswith(("s-", *made))]
        if len([p for p in mirrored if p.version == 4]) == 250 or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    shared = {p.id: p for p in mirrored if p.version == 3}
    wanted = {f"s-{u}" for u in users if mirror_bucket_of(u, "s") < SHARE}
    wanted |= {i for i in made if mirror_bucket_of(i, "s") < SHARE}
    assert set(shared) == wanted
    assert 40 < len(shared) < 110
    assert {p.propensity for p in shared.values()} == {SHARE / BUCKETS}
    assert {p.propensity for p in mirrored if p.version == 4} == {1.0}
    answered = {p.id: p for p in records if not p.mirror}
    for identity, record in shared.items():
        assert record.output == ROW["x"] * 2
        assert (record.unit, record.time) == (answered[identity].unit, answered[identity].time)


def test_a_sampled_log_has_its_share_of_the_decisions_and_of_their_mirrored_answers(
    gateway: Gateway,
):
    users = [f"p{n}" for n in range(400)]
    rows = [ROW | {"user": user} for user in users]
    ids = [f"p-{user}" for user in users]
    status, whole = asked(gateway, "/v1/endpoints/sampled/predict", {"rows": rows, "ids": ids})
    assert status == 200
    answered = [p["id"] for p in whole["predictions"]]
    # Alone, so that some ticks write nothing at all; the gateway makes these ids.
    for _ in range(30):
        one = asked(gateway, "/v1/endpoints/sampled/predict", {"rows": [ROW]})[1]["predictions"]
        answered.append(one[0]["id"])
    assert len(answered) == 430
    wanted = {i for i in answered if log_draw_of(i, "s") < 0.2}
    assert 50 < len(wanted) < 130
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [p for p in gateway.records()[0] if p.id in set(answered)]
        if len(found) >= 2 * len(wanted) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for mirror in (False, True):
        assert sorted(p.id for p in found if p.mirror is mirror) == sorted(wanted)
    assert {p.share for p in found} == {0.2}
    plain = {p["id"]: p for p in whole["predictions"]}
    for record in (p for p in found if p.id in plain):
        if record.mirror:
            assert record.output == ROW["x"] * 2
        else:
            assert (record.arm, record.output) == (plain[record.id]["arm"], plain[record.id]["prediction"])  # fmt: skip
            assert (record.unit, record.features) == (record.id[2:], (1.0, True, 0.0))
    counted = gateway.application.request("GET", "/metrics")[1].decode()
    told = [line for line in counted.splitlines() if 'predictions_total{endpoint="sampled"' in line]
    assert told, "what is not written down is counted all the same"


def test_a_share_of_a_mirror_has_nothing_to_do_with_the_buckets_of_the_arms():
    units = [f"u{n}" for n in range(4_000)]
    inside = [mirror_bucket_of(u, "s") < 5_000 for u in units]
    both = sum(m and bucket_of(u, "s") < 5_000 for u, m in zip(units, inside, strict=True))
    assert 900 < both < 1_100


def test_a_policy_draws_the_arm_and_the_log_has_each_rows_own_propensity(gateway: Gateway):
    rng = np.random.default_rng(5)
    rows = [
        {"x": float(x), "flag": True, "dep delay": float(d), "user": "same"}
        for x, d in rng.normal(size=(300, 2))
    ]
    rows[7]["x"] = None
    rows[8]["user"] = "ann"
    ids = [f"d-{k}" for k in range(300)]
    status, answer = asked(gateway, "/v1/endpoints/drawn/predict", {"rows": rows, "ids": ids})
    assert status == 200
    found = decisions(gateway, "d-")
    signature = gateways.signature_of(COLUMNS)
    matrix = np.array([[r["x"], r["flag"], r["dep delay"]] for r in rows], dtype=np.float64)
    state = policy_state()
    matrix[7, 0] = np.frombuffer(state.missing)[1]  # what stands for an "x" that is missing
    chances = unpack_policy(state).probabilities(inputs_of(state, signature, matrix))
    for k, identity in enumerate(ids):
        record = found[identity]
        if k == 8:
            assert (record.arm, record.cohort, record.propensity) == ("v1", "user=ann+1", 1.0)
            continue
        place = 0 if draw_of(identity, "s") < chances[k, 0] else 1
        assert (record.arm, record.cohort) == (f"v{place + 1}", "")
        assert record.propensity == pytest.approx(chances[k, place], abs=1e-12)
    assert len({r.propensity for r in found.values()}) > 20
    assert [p["arm"] for p in answer["predictions"]] == [found[i].arm for i in ids]


def test_arms_take_turns_by_the_time_of_the_decision_and_each_group_by_itself(gateway: Gateway):
    start = 1_767_225_600_000_000
    rows: list[dict[str, Any]] = [
        ROW | {"at": start + k * 1_000_000, "flag": k % 2 == 0, "user": f"p{k}"} for k in range(600)
    ]
    rows[5]["user"] = "ann"
    ids = [f"turn-{k}" for k in range(600)]
    for part in (
        slice(0, 601, 2),
        slice(1, 601, 2),
    ):  # whichever worker, whatever stands beside them
        status, _ = asked(
            gateway, "/v1/endpoints/turning/predict", {"rows": rows[part], "ids": ids[part]}
        )
        assert status == 200
    found = decisions(gateway, "turn-")
    arms: dict[tuple[int, bool], set[str]] = {}
    for row, identity in zip(rows, ids, strict=True):
        record = found[identity]
        if row["user"] == "ann":
            assert (record.arm, record.propensity) == ("v1", 1.0)
            continue
        assert record.propensity == 0.5
        arms.setdefault((row["at"] // 60_000_000, row["flag"]), set()).add(record.arm)
    assert len(arms) == 20
    assert {len(each) for each in arms.values()} == {1}
    assert set.union(*arms.values()) == {"v1", "v2"}
    halves = [arm(1, "", 5_000), arm(2, "", 5_000)]
    turns = list(arms)
    times = [turn * 60_000_000 for turn, _ in turns]
    words = [str(flag).lower() for _, flag in turns]
    again = in_turns(times, words, halves, "s", Period(seconds=60, field="flag"))
    assert [{f"v{place + 1}"} for place in again.tolist()] == list(arms.values())


def test_the_same_request_is_drawn_the_same_arm_on_every_worker_alone_or_among_others(
    gateway: Gateway,
):
    rng = np.random.default_rng(6)
    rows = [ROW | {"x": float(x), "dep delay": float(d)} for x, d in rng.normal(size=(12, 2))]
    seen: dict[int, set[tuple[str, float]]] = {k: set() for k in range(12)}
    writers: set[str] = set()
    for turn in range(200):
        for k, row in enumerate(rows) if turn % 2 else [(-1, ROW)]:
            body = (
                {"rows": [row], "ids": [f"r-{k}"]}
                if k >= 0
                else {"rows": rows, "ids": [f"r-{n}" for n in range(12)]}
            )
            answer = asked(gateway, "/v1/endpoints/drawn/predict", body)[1]["predictions"]
            for one in answer:
                seen[int(one["id"][2:])].add(one["arm"])
        made = asked(gateway, "/v1/endpoints/drawn/predict", {"rows": [ROW]})[1]["predictions"]
        writers |= {one["id"].split("-")[1] for one in made}
        if len(writers) == 2 and turn >= 6:
            break
    assert len(writers) == 2, "both workers must have answered for this to mean something"
    assert {len(arms) for arms in seen.values()} == {1}
    logged: dict[str, set[float]] = {}
    for record in gateway.records()[0]:
        if record.id.startswith("r-"):
            logged.setdefault(record.id, set()).add(record.propensity)
    assert {len(found) for found in logged.values()} == {1}


@pytest.mark.parametrize("flag", [True, False])
def test_a_unit_of_true_and_false_is_one_text_in_every_protocol(gateway: Gateway, flag: bool):
    identity = f"f-{flag}"
    ask_in_every_protocol(gateway, "flagged", identity, ROW | {"flag": flag}, {})
    csv = f"x,flag,dep delay\n1,{flag},0\n".encode()
    path = "/v1/endpoints/flagged/invocations"
    status, answer = asked(gateway, path, csv, {"content-type": "text/csv"})
    assert status == 200
    whole = {"name": "all", "shape": [1, 3], "datatype": "FP64", "data": [1.0, float(flag), 0.0]}
    body = {"inputs": [whole], "parameters": {"ids": [f"{identity}-4"]}}
    assert asked(gateway, "/v2/models/flagged/infer", body)[0] == 200
    found = [*decisions(gateway, identity).values(), *decisions(gateway, answer["ids"][0]).values()]
    assert len(found) == 6
    assert {p.unit for p in found} == {str(flag).lower()}
    assert len({p.arm for p in found}) == 1


def test_a_whole_number_is_one_unit_whether_it_comes_as_7_or_as_7_0(gateway: Gateway):
    for k, user in enumerate([7, 7.0]):
        ask_in_every_protocol(gateway, "halves", f"n-{k}", ROW | {"user": user}, {})
    found = decisions(gateway, "n-")
    assert len(found) == 8
    assert {(p.unit, p.cohort) for p in found.values()} == {("7", "user=ann+1")}


def test_a_plan_that_begins_to_read_a_header_is_obeyed_on_connections_that_were_open_before(
    tmp_path: Path,
):
    with running(tmp_path) as made:
        arms = [arm(1, linear(made.shelf, 10.0)), arm(2, linear(made.shelf, 20.0), 0)]
        made.publish(endpoint("e", arms=arms[:1]))
        connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=PATIENCE)

        def answered() -> str:
            body = msgspec.json.encode({"rows": [ROW]})
            connection.request("POST", "/v1/endpoints/e/predict", body, {"x-color": "green"})
            answer = msgspec.json.decode(connection.getresponse().read())
            return str(answer["predictions"][0]["arm"])

        assert [answered() for _ in range(3)] == ["v1"] * 3
        made.publish(endpoint("e", arms=arms, cohorts=(HEADER,), plan=2))
        assert [answered() for _ in range(3)] == ["v2"] * 3
        made.publish(endpoint("e", arms=arms[:1], plan=3))
        assert [answered() for _ in range(3)] == ["v1"] * 3
        connection.close()


def test_requests_wait_in_a_gap_that_holds_and_are_answered_once_there_are_arms(tmp_path: Path):
    with running(tmp_path, grpc=True) as made:
        plain = linear(made.shelf, 10.0)
        held = endpoint("e", arms=[], gap="hold", gap_seconds=30.0, plan=2)
        brief = endpoint("brief", arms=[], gap="hold", gap_seconds=0.3)
        made.publish(held, brief, endpoint("closed", arms=[]))
        began = time.monotonic()
        status, answer = made.post({"rows": [ROW]}, endpoint="brief")
        assert (status, time.monotonic() - began > 0.25) == (503, True)
        assert "has had no version" in answer["error"]
        said = made.raw(gateways.request(b"{}", path="/v1/endpoints/brief/predict", extra=CLOSE))
        assert b"\r\nretry-after: 1\r\n" in said
        said = made.raw(gateways.request(b"{}", path="/v1/endpoints/closed/predict", extra=CLOSE))
        assert said.startswith(b"HTTP/1.1 503")
        assert b"\r\nretry-after: 1\r\n" in said

        answers: list[Any] = []

        def ask(k: int) -> None:
            answers.append(made.post({"rows": [ROW], "ids": [f"g-{k}"]}))

        def call() -> None:
            one = triton.InferInput("all", [1, 3], "FP64")
            one.set_data_from_numpy(np.array([[1.0, 1.0, 0.0]]))
            with triton.InferenceServerClient(made.grpc) as client:
                answers.append((200, client.infer("e", [one]).as_numpy("prediction").tolist()))

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(20)]
        threads.append(threading.Thread(target=call))
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert answers == [], "they wait"
        assert made.post({"rows": [ROW]}, endpoint="closed")[0] == 503, "others do not"
        made.publish(endpoint("e", arms=[arm(1, plain)], plan=3))
        for thread in threads:
            thread.join(PATIENCE)
        assert [status for status, _ in answers] == [200] * 21
        assert (200, [11.0]) in answers
        found = decisions(made, "g-")
        assert len(found) == 20
        assert {p.plan for p in found.values()} == {3}
        shed = made.application.request("GET", "/metrics")[1].decode()
        assert 'keepwell_shed_requests_total{endpoint="brief",reason="gap"} 2' in shed


def test_a_caller_in_a_gap_waits_no_longer_than_its_deadline_and_a_worker_that_ends_tells_it(
    tmp_path: Path,
):
    with running(tmp_path) as made:
        made.publish(endpoint("e", arms=[], gap="hold", gap_seconds=30.0))
        began = time.monotonic()
        said = made.raw(gateways.request(b"{}", extra=f"x-deadline-ms: 200\r\n{CLOSE}"))
        assert said.startswith(b"HTTP/1.1 503")
        assert time.monotonic() - began < 25, "and not the thirty seconds of the gap"
        with socket.create_connection(("127.0.0.1", made.port), timeout=PATIENCE) as held:
            held.sendall(gateways.request(b"", method="GET", path="/live"))
            assert held.recv(65536).startswith(b"HTTP/1.1 200")  # so it is accepted
            held.sendall(gateways.request(msgspec.json.encode({"rows": [ROW]})))
            for _ in range(2):  # what was sent before is read before
                assert made.application.request("GET", "/live")[0] == 200
            assert not select.select([held], [], [], 0)[0], "it waits"
            made.pool.stop()
            assert held.recv(65536).startswith(b"HTTP/1.1 503")


def test_a_gap_is_bounded_in_requests_and_in_bytes():
    def work(count: int, size: int) -> list[tuple[Ask]]:
        return [(Ask("e", b"x" * size, 100.0),) for _ in range(count)]

    gap: Gap[tuple[Ask]] = Gap()
    gap.seconds = {"e": 5.0}
    now, refused = gap.part(work(MAX_HELD + 3, 10))
    assert (len(now), len(gap.held), len(refused)) == (0, MAX_HELD, 3)
    assert all((ask.status, ask.shed) == (503, "gap") for (ask,) in refused)
    assert b"retry-after: 5" in refused[0][0].content
    assert gap.next() == 105.0
    assert gap.expired(104.9) == []
    assert len(gap.expired(105.0)) == MAX_HELD
    assert gap.part(work(5, MAX_HELD_BYTES // 4))[1] != []
    assert len(gap.held) == 4


def laid_out(unit: str, salt: str, arms: tuple[Arm, ...]) -> int:
    """Find an arm as the reference page says it: all arms but the first from bucket 0 upwards, the first has the rest."""
    bucket, upper = bucket_of(unit, salt), 0
    for place in range(1, len(arms)):
        upper += arms[place].weight
        if bucket < upper:
            return place
    return 0


@st.composite
def plans(draw: st.DrawFn) -> tuple[Arm, ...]:
    cuts = sorted(draw(st.lists(st.sampled_from([0, 1, 5_000, 9_999, BUCKETS]) | st.integers(0, BUCKETS), max_size=4)))  # fmt: skip
    weights = [b - a for a, b in zip([0, *cuts], [*cuts, BUCKETS], strict=True)]
    return tuple(arm(k + 1, "sha256:0", weight) for k, weight in enumerate(weights))


@settings(deadline=None, max_examples=200)
@given(plans(), st.lists(st.text(max_size=4), min_size=1, max_size=20), st.text(max_size=80))
def test_all_rows_of_a_tick_get_the_arm_that_each_would_get_alone(arms, units, salt):
    edition = endpoint("e", arms=arms, salt=salt)
    n = len(units)
    ids = [f"id-{k}" for k in range(n)]
    placed = Assignment(edition, None).place(
        Rows(lambda: ids, units, (), np.zeros((n, 0)), list(range(n + 1)), ())
    )
    wanted = [laid_out(unit or name, salt, arms) for unit, name in zip(units, ids, strict=True)]
    assert ([0] * n if placed.arms is None else placed.arms.tolist()) == wanted


@given(st.text(max_size=8), st.integers(0, 9_999), st.integers(0, 9_999))
def test_an_arm_that_grows_keeps_the_units_it_has(unit, one, other):
    small, large = sorted((one, other))
    arms = [(arm(1, "a", BUCKETS - w), arm(2, "b", w)) for w in (small, large)]
    before, after = (laid_out(unit, "s", given) for given in arms)
    assert not (before == 1 and after == 0)


def test_the_rows_of_a_cohort_whose_arm_is_refused_are_assigned_like_all_others():
    edition = endpoint("e", arms=[arm(1, "a")], cohorts=(HEADER, ANN))
    made = Assignment(edition, gateways.signature_of(COLUMNS))
    assert [cohort.label for cohort in made.cohorts] == ["user=ann+1"]
    assert made.headers == frozenset()


def test_refused_arms_leave_their_buckets_to_one_that_has_some_or_is_the_fallback():
    idle, busy = arm(1, "a", 0), arm(2, "b", 4_000)
    assert [a.weight for a in _rebalanced([idle, busy], "")] == [0, BUCKETS]
    assert [a.weight for a in _rebalanced([idle, busy], "v1")] == [6_000, 4_000]
    assert [a.weight for a in _rebalanced([idle], "")] == [BUCKETS]


@pytest.mark.parametrize("kind", ["lints", "linucb"])
def test_a_policy_is_the_same_after_its_way_through_an_edition(kind: Kind):
    state = policy_state(kind)
    edition = endpoint("e", arms=[arm(1, "a"), arm(2, "b", 0)], policy=state)
    back = msgspec.json.decode(msgspec.json.encode(edition), type=EndpointEdition)
    assert back.policy is not None
    assert back.policy == state
    x = np.random.default_rng(1).normal(size=(9, 3))
    one, other = (unpack_policy(each).probabilities(x) for each in (state, back.policy))
    assert (one == other).all()


def test_an_arm_of_a_policy_that_may_not_answer_leaves_its_share_to_the_heir():
    signature = gateways.signature_of(COLUMNS)
    made = Drawing(policy_state(), ["v1", "other"], 1, signature)
    rows = np.random.default_rng(2).normal(size=(5, 3))
    given_ = made.probabilities(rows)
    whole = Drawing(policy_state(), ["v1", "v2"], 0, signature).probabilities(rows)
    assert (given_ == whole).all()
    assert np.allclose(given_.sum(axis=1), 1.0)
    with pytest.raises(InvalidInput, match="'x', which is no feature"):
        Drawing(policy_state(), ["v1", "v2"], 0, gateways.signature_of({"dep delay": "float64"}))


def test_a_held_call_over_grpc_that_is_given_up_is_unavailable(tmp_path: Path):
    with running(tmp_path, grpc=True) as made:
        made.publish(endpoint("e", arms=[], gap="hold", gap_seconds=0.2))
        one = triton.InferInput("all", [1, 3], "FP64")
        one.set_data_from_numpy(np.array([[1.0, 1.0, 0.0]]))
        with (
            triton.InferenceServerClient(made.grpc) as client,
            pytest.raises(InferenceServerException, match="has had no version"),
        ):
            client.infer("e", [one])
