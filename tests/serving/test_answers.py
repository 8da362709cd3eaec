"""What an application is told, by real workers over real sockets."""

from __future__ import annotations

import re
import time

import msgspec
import pytest
from tests.serving.gateways import PATIENCE, Gateway, request

from keepwell.core.records.predictions import Prediction
from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.desk.assign import bucket_of

ROW = {"x": 1.0, "flag": True, "dep delay": None}


def bodies(answer: bytes) -> list[bytes]:
    """Split the answers of one connection by their announced lengths."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length, head
        found.append(rest[: int(length[1])])
        answer = rest[int(length[1]) :]
    return found


def test_rows_are_answered_and_logged_as_they_were_sent(gateway: Gateway):
    rows = [ROW | {"user": "ann"}, {"x": None, "flag": None, "dep delay": 3}]
    status, answer = gateway.post({"rows": rows, "ids": ["logged-1", "logged-2"]})
    assert status == 200
    assert answer["predictions"] == [
        {"id": "logged-1", "prediction": 11.0, "version": 1, "plan": 1, "arm": "v1"},
        {"id": "logged-2", "prediction": 110.0, "version": 1, "plan": 1, "arm": "v1"},
    ]
    logged = {p.id: p for p in gateway.records()[0] if p.id.startswith("logged-")}
    assert logged["logged-1"].unit == "ann"
    assert logged["logged-2"].unit == "logged-2", "without a unit, the decision is its own"
    assert logged["logged-2"].features == (None, None, 3.0)
    assert (logged["logged-1"].output, logged["logged-1"].status) == (11.0, "ok")


def test_a_single_row_may_be_sent_alone(gateway: Gateway):
    status, answer = gateway.post({"row": ROW, "id": "alone"})
    assert (status, [p["id"] for p in answer["predictions"]]) == (200, ["alone"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "object"),
        (b"{}", "no rows"),
        (b'{"rows":[]}', "no rows"),
        (b'{"rows":[{}]}', "missing required field `x`"),
        (b'{"rows":[{"x":1,"flag":true,"dep delay":1,"y":2}]}', "y"),
        (b'{"rows":[{"x":1,"flag":true,"dep dela":1}]}', "Did you mean 'dep delay'"),
        (b'{"rows":[{"x":"one","flag":true,"dep delay":1}]}', "$.rows[0].x"),
        (b'{"rows":[{"x":1e999,"flag":true,"dep delay":1}]}', "x"),
        (b'{"rows":[{"x":NaN,"flag":true,"dep delay":1}]}', "not JSON"),
        (b'{"rows":[{"x":1,"flag":true,"dep delay":1}],"ids":["a","b"]}', "2 ids for 1 rows"),
        (b'{"rows":[{"x":1,"flag":true,"dep delay":1}],"row":{"x":1,"flag":true,"dep delay":1}}', "both"),
        (b'{"rows":' + b"[" * 100_000, "nested|not JSON|Expected"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_place(gateway: Gateway, body: bytes, said: str):
    status, answer = gateway.post(body)
    assert status == 422
    assert re.search(re.escape(said).replace(r"\|", "|"), answer["error"]), answer["error"]


def test_too_many_rows_are_refused(gateway: Gateway):
    status, answer = gateway.post({"rows": [ROW] * 10_001})
    assert (status, "10,000" in answer["error"]) == (422, True)


def test_an_unknown_endpoint_names_the_nearest(gateway: Gateway):
    status, answer = gateway.post({"rows": [ROW]}, endpoint="mirored")
    assert status == 404
    assert "Did you mean 'mirrored'" in answer["error"]


def test_an_endpoint_without_an_admitted_version_says_why(gateway: Gateway):
    status, answer = gateway.post({"rows": [ROW]}, endpoint="none")
    assert status == 503
    assert "its evidence is gone" in answer["error"]


@pytest.mark.parametrize(
    ("at", "status"),
    [
        (1_700_000_000_000_000, 200),
        ("2024-05-01T06:00:00Z", 200),
        (None, 422),
        ("yesterday", 422),
        (10**30, 422),
        (1e300, 422),
        (-(10**18), 422),
        ("0001-01-01T00:00:00+23:59", 422),
    ],
)
def test_the_time_of_a_decision_is_read_or_refused(gateway: Gateway, at: object, status: int):
    assert gateway.post({"rows": [ROW | {"at": at, "user": "u"}]}, endpoint="two")[0] == status


def test_one_unit_meets_one_arm_on_every_worker_and_the_shares_hold(gateway: Gateway):
    rows = [ROW | {"user": f"u{n}", "at": 0} for n in range(400)]
    arms = []
    writers: set[str] = set()
    # A fresh connection each: the kernel gives it to a worker that waits, on a busy machine often to the same one.
    for _ in range(200):
        status, answer = gateway.post({"rows": rows}, endpoint="two")
        assert status == 200
        arms.append([p["arm"] for p in answer["predictions"]])
        writers |= {p["id"].split("-")[1] for p in answer["predictions"]}
        if len(writers) == 2 and len(arms) >= 12:
            break
    assert all(given == arms[0] for given in arms)
    assert {p["plan"] for p in answer["predictions"]} == {7}
    assert 140 < arms[0].count("v2") < 260
    assert arms[0] == ["v2" if bucket_of(f"u{n}", "s") < BUCKETS // 2 else "v1" for n in range(400)]
    assert len(writers) == 2, "both workers must have answered for this to mean something"


def test_a_mirror_that_raises_harms_nobody_and_is_recorded(gateway: Gateway):
    for n in range(5):
        status, answer = gateway.post(
            {"rows": [ROW | {"x": -1.0}], "ids": [f"mirrored-{n}"]}, endpoint="mirrored"
        )
        assert (status, answer["predictions"][0]["prediction"]) == (200, 9.0)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        shadows = [p for p in gateway.records()[0] if p.mirror and p.id.startswith("mirrored-")]
        if len(shadows) == 5:
            break
        time.sleep(0.02)
    assert len(shadows) == 5
    assert {(p.status, p.version, p.output) for p in shadows} == {("error", 3, None)}
    assert "negative rows" in shadows[0].error


def test_a_row_on_which_a_mirror_raises_takes_none_with_it(gateway: Gateway):
    rows = [ROW | {"x": x} for x in (1.0, -1.0, 2.0, -5.0)]
    ids = [f"beside-{n}" for n in range(4)]
    assert gateway.post({"rows": rows, "ids": ids}, endpoint="mirrored")[0] == 200
    deadline = time.monotonic() + PATIENCE
    shadows: dict[str, Prediction] = {}
    while len(shadows) < 4 and time.monotonic() < deadline:
        shadows = {p.id: p for p in gateway.records()[0] if p.mirror and p.id in ids}
    assert [shadows[id].status for id in ids] == ["ok", "error", "ok", "error"]
    assert [shadows[id].output for id in ids] == [2.0, None, 4.0, None]
    assert "negative rows" in shadows["beside-3"].error


def test_a_probe_of_a_mirror_is_answered_and_not_logged(gateway: Gateway):
    status, answer = gateway.post(
        {"rows": [ROW | {"x": 4.0}], "ids": ["probed"], "probe": 3}, endpoint="mirrored"
    )
    assert (status, answer["predictions"]) == (200, [{"prediction": 8.0, "version": 3}])
    assert gateway.post({"rows": [ROW | {"x": -4.0}], "probe": 3}, endpoint="mirrored")[0] == 503
    assert gateway.post({"rows": [ROW], "probe": 99}, endpoint="mirrored")[0] == 409
    assert "probed" not in {p.id for p in gateway.records()[0]}


def test_where_an_arm_fails_the_fallback_answers_and_both_are_recorded(gateway: Gateway):
    status, answer = gateway.post(
        {"rows": [ROW | {"x": -3.0}], "ids": ["fell-back"]}, endpoint="safe"
    )
    assert (status, answer["predictions"][0]["prediction"], answer["predictions"][0]["arm"]) == (
        200,
        -6.0,
        "v1",
    )
    (logged,) = [p for p in gateway.records()[0] if p.id == "fell-back"]
    assert (logged.status, logged.arm, logged.propensity) == ("fallback", "v1", 1.0)
    assert "negative rows" in logged.error


def test_without_a_fallback_a_failing_model_is_unavailable(gateway: Gateway):
    status, answer = gateway.post({"rows": [ROW | {"x": -3.0}]}, endpoint="failing")
    assert (status, "negative rows" in answer["error"]) == (503, True)
    assert gateway.post({"rows": [ROW]}, endpoint="failing")[0] == 200


def test_a_model_that_loses_rows_is_unavailable_not_wrong(gateway: Gateway):
    assert gateway.post({"rows": [ROW, ROW | {"x": -1.0}]}, endpoint="few")[0] == 503
    assert gateway.post({"rows": [ROW, ROW]}, endpoint="few")[0] == 200


def test_one_callers_row_that_the_model_refuses_fails_no_other_request(gateway: Gateway):
    good = request(msgspec.json.encode({"rows": [ROW]}), path="/v1/endpoints/failing/predict")
    bad = request(
        msgspec.json.encode({"rows": [ROW | {"x": -1.0}]}), path="/v1/endpoints/failing/predict"
    )
    # Pipelined, so that one tick of one worker has them all.
    answer = gateway.raw(good + bad + good, half_close=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"503", b"200"]


def test_pipelined_requests_are_answered_in_their_order(gateway: Gateway):
    asked = b"".join(
        request(msgspec.json.encode({"rows": [ROW | {"x": float(n)}], "ids": [f"p{n}"]}))
        if n % 3
        else request(b"", method="GET", path="/live")
        for n in range(60)
    )
    answers = bodies(gateway.raw(asked, half_close=True))
    assert len(answers) == 60
    for n, answer in enumerate(answers):
        read = msgspec.json.decode(answer)
        assert read == {"live": True} if n % 3 == 0 else read["predictions"][0]["id"] == f"p{n}"


def test_a_half_closed_connection_is_answered_and_then_closed(gateway: Gateway):
    began = time.monotonic()
    answer = gateway.raw(request(msgspec.json.encode({"rows": [ROW]})), half_close=True)
    assert answer.startswith(b"HTTP/1.1 200")
    assert time.monotonic() - began < PATIENCE / 2


def test_a_chunked_body_is_read(gateway: Gateway):
    body = msgspec.json.encode({"rows": [ROW]})
    chunks = (
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))
        + b"0\r\n\r\n"
    )
    head = b"POST /v1/endpoints/e/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    assert gateway.raw(head + chunks).startswith(b"HTTP/1.1 200")


def test_a_client_that_expects_to_be_asked_is_told_to_go_on(gateway: Gateway):
    body = msgspec.json.encode({"rows": [ROW]})
    answer = gateway.raw(request(body, extra="expect: 100-continue\r\nconnection: close\r\n"))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_head_has_the_length_and_no_body(gateway: Gateway):
    answer = gateway.raw(request(b"", method="HEAD", path="/live", extra="connection: close\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"content-length: 13\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"POST /v1/endpoints/e/predict HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", b"413"),
        (b"POST /v1/endpoints/e/predict HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"431"),
    ],
)
def test_what_is_no_acceptable_request_is_refused_and_the_connection_closed(
    gateway: Gateway, content, status
):
    began = time.monotonic()
    answer = gateway.raw(content)
    assert re.match(rb"HTTP/1.1 (" + status + rb") ", answer), answer[:80]
    assert time.monotonic() - began < PATIENCE / 2


def test_paths_and_methods_that_are_not_served_say_so(gateway: Gateway):
    assert gateway.application.request("GET", "/nothing")[0] == 404
    assert gateway.application.request("DELETE", "/live")[0] == 405
    assert gateway.application.request("GET", "/v1/endpoints/e/predict")[0] == 404


def test_outcomes_are_logged(gateway: Gateway):
    outcomes = [
        {"id": "o1", "endpoint": "e", "value": 1.0, "time": "2024-01-01"},
        {"id": "o2", "endpoint": "two", "value": 0},
    ]
    status, answer = gateway.application.request(
        "POST", "/v1/outcomes", msgspec.json.encode({"outcomes": outcomes})
    )
    assert (status, msgspec.json.decode(answer)) == (200, {"accepted": 2})
    found = {o.id: o for o in gateway.records()[1]}
    assert (found["o1"].time, found["o1"].value) == (1_704_067_200_000_000, 1.0)
    assert found["o2"].time == found["o2"].arrived


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 422),
        (b'{"outcomes":[{"id":"a","endpoint":"nowhere","value":1}]}', 404),
        (b'{"outcomes":[{"id":"a","endpoint":"e","value":"high"}]}', 422),
        (b'{"outcomes":[{"id":"a","endpoint":"e","value":1,"time":"soon"}]}', 422),
        (b'{"outcomes":[{"id":"a","endpoint":"e","value":1,"time":%d}]}' % 10**40, 422),
        (b'{"outcomes":[]}', 200),
    ],
)
def test_bad_outcomes_are_refused(gateway: Gateway, body: bytes, status: int):
    assert gateway.application.request("POST", "/v1/outcomes", body)[0] == status


def test_metrics_count_what_was_answered_over_all_workers(gateway: Gateway):
    def total() -> int:
        text = gateway.application.request("GET", "/metrics")[1].decode()
        found = re.search(r'predictions_total\{endpoint="failing".*status="ok"\} (\d+)', text)
        return int(found[1]) if found else 0

    gateway.wait_for_counters()
    before = total()
    for _ in range(8):
        gateway.post({"rows": [ROW]}, endpoint="failing")
    gateway.wait_for_counters()
    assert total() == before + 8


def test_the_endpoints_describe_themselves(gateway: Gateway):
    answer = msgspec.json.decode(gateway.application.request("GET", "/v1/endpoints")[1])
    described = {e["name"]: e for e in answer["endpoints"]}
    assert described["e"]["columns"] == ["x", "flag", "dep delay"]
    assert described["none"]["refused"] == "m/1: its evidence is gone"
