"""What a worker cannot answer in time it refuses at once, and what it takes it answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.desk.test_desk import made_desk
from tests.serving.gateways import (
    PATIENCE,
    Gateway,
    arm,
    endpoint,
    linear,
    native,
    request,
    running,
)
from tests.serving.models import SlowByCall, SlowByRow

from keepwell.core.settings import ServerSettings
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.intake import TRY_SECONDS, Intake, Pace
from keepwell.serving.telemetry.metrics import gateway_page
from keepwell.serving.terms import Terms

LIMIT = 0.2
ROW = b'{"x":1,"flag":true,"dep delay":1}'


def body(rows: int = 1) -> bytes:
    return b'{"rows":[%s]}' % b",".join([ROW] * rows)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("busy")
    with running(folder, workers=1, terms=Terms(max_wait=LIMIT)) as made:
        made.publish(
            endpoint("e", arms=[arm(1, native(made.shelf, SlowByRow()))]),
            endpoint("call", arms=[arm(2, native(made.shelf, SlowByCall()))]),
            endpoint("quick", arms=[arm(3, linear(made.shelf, 1.0))]),
        )
        yield made


def ask(gateway: Gateway, rows: int, extra: str = "", name: str = "e") -> tuple[int, bytes, float]:
    """Send one request on a connection of its own; give its status, all that came, and the seconds it took."""
    path = f"/v1/endpoints/{name}/predict"
    sent = request(body(rows), path=path, extra=f"connection: close\r\n{extra}")
    began = time.monotonic()
    answer = gateway.raw(sent)
    return int(answer[9:12]), answer, time.monotonic() - began


def burst(gateway: Gateway, count: int, name: str) -> list[bytes]:
    """Send requests on as many connections at once; give what came on each."""
    path = f"/v1/endpoints/{name}/predict"
    wires = [
        socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)
        for _ in range(count)
    ]
    try:
        for wire in wires:  # a connection that was not accepted yet is not seen by the worker
            wire.sendall(request(b"", path="/live", method="GET"))
            assert wire.recv(65536).endswith(b'{"live":true}')
        # Stopped meanwhile, the worker finds all of them together, however slowly they are sent.
        (worker,) = gateway.pool.pids()
        os.kill(worker, signal.SIGSTOP)
        try:
            for wire in wires:
                wire.sendall(request(body(), path=path, extra="connection: close\r\n"))
        finally:
            os.kill(worker, signal.SIGCONT)
        answers = []
        for wire in wires:
            answer = b""
            while more := wire.recv(65536):
                answer += more
            answers.append(answer)
        return answers
    finally:
        for wire in wires:
            wire.close()


def shed(gateway: Gateway, name: str, reason: str) -> int:
    text = gateway.application.request("GET", "/metrics")[1].decode()
    line = rf'keepwell_shed_requests_total{{endpoint="{name}",reason="{reason}"}} (\d+)'
    found = re.search(line, text)
    return int(found[1]) if found else 0


def decisions(gateway: Gateway, name: str) -> int:
    return sum(each.endpoint == name for each in gateway.records()[0])


def warm(gateway: Gateway) -> None:
    for rows in (1, 4, 1, 8, 2):
        assert ask(gateway, rows)[0] == 200


def test_a_busy_worker_refuses_at_once_what_would_wait_too_long_and_answers_the_rest(busy):
    warm(busy)
    logged, counted = decisions(busy, "e"), shed(busy, "e", "busy")
    answers = burst(busy, 80, "e")  # 0.8 s of work at least
    good = [each for each in answers if each.startswith(b"HTTP/1.1 200")]
    refused = [each for each in answers if each.startswith(b"HTTP/1.1 503")]
    assert len(good) + len(refused) == 80
    assert len(good) >= 2
    assert len(refused) >= 20, "without a limit all of them would have waited"
    assert all(re.search(rb"\r\nretry-after: 1\r\n", each) for each in refused)
    assert all(each.count(b"retry-after") == 1 for each in refused)
    assert b"would pass before this request's turn" in refused[0]
    assert decisions(busy, "e") - logged == len(good), "what was refused was assigned to no arm"
    assert shed(busy, "e", "busy") - counted == len(refused)
    assert ask(busy, 1)[0] == 200


def test_a_model_whose_calls_cost_the_same_for_many_rows_is_soon_given_many(busy):
    for _ in range(3):
        assert ask(busy, 1, name="call")[0] == 200
    counts = [0]
    while (
        counts[-1] < 40 and len(counts) < 40
    ):  # a call that a busy machine held up takes some to be forgotten
        answers = burst(busy, 40, "call")  # one at a time they would take 2 s
        counts.append(sum(each.startswith(b"HTTP/1.1 200") for each in answers))
    assert counts[-1] == 40, counts


@pytest.mark.parametrize("extra", ["x-deadline-ms: 100\r\n", "request-timeout: 0.1\r\n"])
def test_a_request_that_cannot_be_answered_before_its_deadline_is_refused_at_once(busy, extra):
    for _ in range(
        20
    ):  # what is measured holds for a second, and a busy machine may take that long to ask
        warm(busy)
        logged, counted = decisions(busy, "e"), shed(busy, "e", "deadline")
        status, answer, _ = ask(busy, 40, extra)  # 0.4 s of work
        if status == 503:
            break
    assert status == 503
    assert b"It would take about" in answer
    assert b"retry-after" in answer
    assert decisions(busy, "e") == logged, "it was not computed"
    assert shed(busy, "e", "deadline") == counted + 1
    assert ask(busy, 4, "x-deadline-ms: 60000\r\n")[0] == 200


def test_a_deadline_that_seems_too_near_is_tried_again_after_a_while(busy):
    for _ in range(20):
        warm(busy)
        if ask(busy, 40, "x-deadline-ms: 100\r\n")[0] == 503:
            break
    else:
        pytest.fail("it was never refused")
    for _ in range(20):  # on a busy machine it may be late at its turn, too
        time.sleep(TRY_SECONDS + 0.1)
        if ask(busy, 40, "x-deadline-ms: 100\r\n")[0] == 200:
            break
    else:
        pytest.fail("it was never tried again")


@pytest.mark.parametrize("path", ["/v1/endpoints/quick/predict", "/v1/endpoints/quick/invocations"])
def test_what_is_late_at_its_turn_is_not_computed(busy, path):
    logged, counted = decisions(busy, "quick"), shed(busy, "quick", "late")
    sent = body() if path.endswith("predict") else b'{"dataframe_records":[%s]}' % ROW
    extra = "content-type: application/json\r\nx-deadline-ms: 0.0001\r\n"
    twice = request(sent, path=path, extra=extra)  # the second comes by the remembered head
    with socket.create_connection(("127.0.0.1", busy.port), timeout=PATIENCE) as wire:
        for _ in range(3):
            wire.sendall(twice)
            answer = wire.recv(65536)
            assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout"), answer
            assert b"Its deadline passed" in answer
    assert decisions(busy, "quick") == logged
    assert shed(busy, "quick", "late") - counted == 3


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan"])
def test_a_deadline_that_is_no_time_is_refused(busy, given):
    status, answer, _ = ask(busy, 1, f"x-deadline-ms: {given}\r\n", name="quick")
    assert (status, b"above zero" in answer) == (400, True)


def test_a_worker_without_a_limit_takes_everything(tmp_path):
    with running(tmp_path, workers=1, terms=Terms(max_wait=0)) as made:
        made.publish(endpoint("e", arms=[arm(1, native(made.shelf, SlowByRow()))]))
        warm(made)
        answers = burst(made, 60, "e")
        assert {each[9:12] for each in answers} == {b"200"}


def test_the_default_of_the_settings_is_the_default_of_the_workers():
    assert ServerSettings().max_wait == Terms().max_wait


def test_a_request_behind_another_endpoint_is_late_if_that_took_too_long(tmp_path):
    desk = made_desk(tmp_path)
    now = time.perf_counter()
    first = Ask("group", body(), now)
    second = Ask("sampled", body(), now)
    second.deadline = now  # passed already when the first is done
    third = Ask("sync", body(), now)
    third.deadline = now + 60
    desk.answer([first, second, third])
    assert [first.status, second.status, third.status] == [200, 504, 200]
    assert 'reason="late"} 1' in gateway_page(desk.meters)


def test_a_pace_parts_what_a_call_costs_from_what_its_bytes_cost():
    pace = Pace()
    pace.learn(100, 0.2, 0.0)
    assert (pace.fixed, pace.slope) == (0.0, 0.002)
    for n in range(400):
        size = 100 + (n % 7) * 100
        pace.learn(size, 0.05 + size * 1e-5, 1.0)
    assert pace.fixed == pytest.approx(0.05, rel=0.01)
    assert pace.slope == pytest.approx(1e-5, rel=0.01)


def planned(*asked: tuple[str, int, float], limit: float = 1.0) -> list[list[int]]:
    """Plan requests of (endpoint, bytes, seconds left or 0); a byte costs 1 ms. Give the places of each part."""
    intake = Intake(limit)
    for name in ("a", "b"):
        for size in (1, 2, 3):
            intake.learn(name, size, size / 1000, 99.5)
    work = []
    for place, (name, size, left) in enumerate(asked):
        one = Ask(name, b"", 100.0)
        one.size, one.deadline = size, 100.0 + left if left else 0.0
        work.append((one, place))
    return [[place for _, place in part] for part in intake.plan(work, 100.0)]


def test_what_has_a_near_deadline_goes_first_and_alone_where_company_would_make_it_late():
    assert planned(("a", 300, 0), ("b", 50, 0.1)) == [[1], [0], []]
    assert planned(("a", 300, 0), ("b", 50, 0.5)) == [[1, 0], [], []]
    assert planned(("a", 80, 0.1), ("b", 50, 0.1)) == [[0], [], [1]]


def test_one_request_is_taken_however_long_it_takes():
    assert planned(("a", 90_000, 0)) == [[0], [], []]
    assert planned(("a", 90_000, 0), ("a", 1, 0)) == [[0], [], [1]]


def test_what_was_put_off_does_not_wait_for_ever():
    intake = Intake(1.0)
    intake.learn("a", 1, 0.5, 99.9)
    hurried, old = Ask("a", b"", 100.0), Ask("a", b"", 99.0)
    hurried.size, hurried.deadline, old.size, old.postponed = 1, 100.6, 1, True
    batch, later, refused = intake.plan([(hurried,), (old,)], 100.0)
    assert (batch, later, refused) == ([(hurried,)], [], [(old,)])
    assert (old.status, old.shed) == (503, "busy")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abz"), st.integers(0, 2000), st.sampled_from([0.0, 0.0, 0.01, 0.3, 5.0])
        ),
        max_size=12,
    )
)  # fmt: skip
def test_a_plan_loses_nothing_keeps_within_the_limit_and_makes_nothing_late(asked):
    batch, later, refused = planned(*asked)
    assert sorted(batch + later + refused) == list(range(len(asked)))
    assert bool(asked) <= bool(batch + refused)
    cost = [size / 1000 * (name != "z") for name, size, _ in asked]
    for place in batch:
        left = asked[place][2]
        assert not left or sum(cost[k] for k in batch) <= left + 1e-9
    taken = [cost[k] for k in batch + later]
    assert sum(taken) <= 1.0 + max(taken, default=0.0) + 1e-9
