"""Models in processes of their own: whatever they do, the workers go on, and what is answered is in the log."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.serving import gateways
from tests.serving.gateways import (
    PATIENCE,
    Gateway,
    arm,
    endpoint,
    linear,
    process,
    request,
    running,
)
from tests.serving.models import Counted, Doubling, Saved, Unruly, Worded
from tests.serving.protocols.conftest import WORDS
from tests.serving.test_under_load import ROW, _alive, loaded

from keepwell.serving.terms import Terms

SECONDS = 2.0
FALLBACK = "v2"


def row(x: float, **more: Any) -> dict[str, Any]:
    return {"x": x, "flag": True, "dep delay": None, **more}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> Iterator[Gateway]:
    terms = Terms(runtime_seconds=SECONDS)
    with running(tmp_path_factory.mktemp("runtimes"), workers=2, terms=terms) as made:
        shelf = made.shelf
        unruly = process(shelf, Unruly(5.0))
        plain = linear(shelf, 10.0)
        halves = [arm(2, plain, 5000), arm(1, unruly, 5000)]
        made.publish(
            endpoint("e", arms=[arm(1, unruly)]),
            endpoint("safe", arms=[arm(2, plain, 0), arm(1, unruly)], fallback=FALLBACK),
            # Their lanes learn from slow requests alone.
            endpoint("over", arms=[arm(1, unruly)]),
            endpoint("over-safe", arms=[arm(2, plain, 0), arm(1, unruly)], fallback=FALLBACK),
            endpoint("halves", arms=halves, fallback=FALLBACK),
            endpoint("plain", arms=[arm(2, plain)], mirrors=(arm(1, unruly, 0),)),
            endpoint("pid", arms=[arm(3, process(shelf, Counted()))]),
            endpoint("pickled", arms=[arm(4, process(shelf, Doubling(), NUMBER))]),
            endpoint("words", arms=[arm(5, process(shelf, Worded(), WORDS, [["abc", 1.0, True]]))]),
        )
        yield made


NUMBER = gateways.signature_of({"x": "float64"})


def ready(gateway: Gateway, name: str = "e") -> None:
    """Tend the processes until every arm of an endpoint has its runtime again, as both workers see it."""
    deadline = time.monotonic() + PATIENCE
    seen = 0
    while seen < 12:
        gateway.pool.tend()
        told = msgspec.json.decode(gateway.application.request("GET", "/v1/endpoints")[1])
        (found,) = [one for one in told["endpoints"] if one["name"] == name]
        good = all(one["runtime"]["ready"] for one in found["arms"] if "runtime" in one)
        seen = seen + 1 if good else 0
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def value(answer: Any) -> float:
    return float(answer["predictions"][0]["prediction"])


def test_a_model_answers_from_a_process_that_both_workers_share(gateway):
    pids = {value(gateway.post({"rows": [row(0.0)]}, "pid")[1]) for _ in range(20)}
    assert len(pids) == 1
    assert pids <= set(gateway.pool.runtimes.pids())
    assert not pids & set(gateway.pool.pids())


def test_numbers_gaps_and_texts_reach_the_model_as_they_were_sent(gateway):
    status, answer = gateway.post({"rows": [row(1.5), row(-0.25)], "ids": ["a", "b"]})
    assert (status, [p["prediction"] for p in answer["predictions"]]) == (200, [8.0, 4.5])
    words = [{"word": "abcd", "number": 2, "flag": None}, {"word": None, "number": 1, "flag": True}]
    _, answer = gateway.post({"rows": words}, "words")
    assert [p["prediction"] for p in answer["predictions"]] == [6.0, 101.0]
    # A pickle that passes the scan needs no save of its own.
    assert value(gateway.post({"rows": [{"x": 4.0}]}, "pickled")[1]) == 8.0
    logged = {p.id: p for p in gateway.records()[0]}
    assert [logged[i].features for i in ("a", "b")] == [(1.5, True, None), (-0.25, True, None)]
    assert [logged[i].output for i in ("a", "b")] == [8.0, 4.5]


def test_tensors_and_invocations_reach_it_too(gateway):
    body = {
        "inputs": [{"name": "all", "datatype": "FP64", "shape": [1, 3], "data": [2.0, 1.0, 0.0]}]
    }
    _, said = gateway.application.request("POST", "/v2/models/e/infer", msgspec.json.encode(body))
    assert msgspec.json.decode(said)["outputs"][0]["data"] == [9.0]
    rows = {"instances": [[3.0, 1.0, 0.0]]}
    _, said = gateway.application.request(
        "POST", "/v1/endpoints/e/invocations", msgspec.json.encode(rows)
    )
    assert msgspec.json.decode(said)["predictions"] == [11.0]


def test_what_a_model_raises_fails_its_own_request_alone(gateway):
    bodies = [
        msgspec.json.encode({"rows": [row(x)], "ids": [f"alone{x}"]}) for x in (1.0, -1.0, 2.0)
    ]
    said = gateway.raw(b"".join(request(body) for body in bodies), half_close=True)
    assert said.count(b"HTTP/1.1 200") == 2
    assert said.count(b"HTTP/1.1 503") == 1
    assert b"minus one is not understood" in said
    logged = {p.id: p.status for p in gateway.records()[0] if p.id.startswith("alone")}
    assert logged == {"alone1.0": "ok", "alone-1.0": "error", "alone2.0": "ok"}


def test_what_a_model_prints_reaches_no_caller_and_fills_no_disk(gateway):
    for _ in range(3):
        assert value(gateway.post({"rows": [row(-4.0)]})[1]) == -3.0
    said = list((gateway.shelf.folder / "runtimes").glob("*.log"))
    assert said
    assert sum(path.stat().st_size for path in said) < 4_000_000


def test_probes_and_mirrors_ask_the_process(gateway):
    status, answer = gateway.post({"rows": [row(1.0)], "probe": 1}, "plain")
    assert (status, value(answer)) == (200, 7.0)
    assert gateway.post({"rows": [row(-1.0)], "probe": 1}, "plain")[0] == 503
    assert gateway.post({"rows": [row(3.0), row(-1.0)], "ids": ["m1", "m2"]}, "plain")[0] == 200
    deadline = time.monotonic() + PATIENCE
    mirrored: dict[str, Any] = {}
    while len(mirrored) < 2 and time.monotonic() < deadline:
        mirrored = {p.id: p for p in gateway.records()[0] if p.mirror and p.id in {"m1", "m2"}}
    assert (mirrored["m1"].arm, mirrored["m1"].status) == ("v1", "ok")
    assert (mirrored["m2"].arm, mirrored["m2"].status) == ("v1", "error")
    assert "minus one" in mirrored["m2"].error


def test_a_model_that_hangs_holds_up_nobody_else_and_the_fallback_answers(gateway):
    ready(gateway, "safe")
    told: list[Any] = []
    hanging = threading.Thread(
        target=lambda: told.append(gateway.post({"rows": [row(-2.0)], "ids": ["hang"]}, "safe"))
    )
    hanging.start()
    meanwhile = 0
    while hanging.is_alive():
        assert gateway.post({"rows": [row(1.0)]}, "plain")[0] == 200
        meanwhile += hanging.is_alive()
    assert meanwhile > 2
    status, answer = told[0]
    assert (status, value(answer), answer["predictions"][0]["arm"]) == (200, 8.0, FALLBACK)
    (record,) = [p for p in gateway.records()[0] if p.id == "hang"]
    assert (record.status, record.arm, record.output) == ("fallback", FALLBACK, 8.0)
    assert "has not answered" in record.error
    # The kernel ends the process; meanwhile nobody waits for it.
    waited = []
    for _ in range(5):
        began = time.monotonic()
        assert gateway.post({"rows": [row(1.0)]}, "safe")[0] == 200
        waited.append(time.monotonic() - began)
    assert min(waited) < SECONDS
    ready(gateway)
    assert value(gateway.post({"rows": [row(1.0)]})[1]) == 7.0


def test_who_is_not_assigned_to_a_slow_challenger_does_not_wait_for_it(gateway):
    ready(gateway, "halves")
    # Units that the plan gives to the champion, told by asking.
    arms = {
        unit: gateway.post({"rows": [row(1.0, user=unit)]}, "halves")[1]["predictions"][0]["arm"]
        for unit in (f"u{n}" for n in range(12))
    }
    assert set(arms.values()) == {"v1", "v2"}
    theirs, ours = (next(u for u, by in arms.items() if by == name) for name in ("v1", "v2"))
    slow, quick = (
        request(
            msgspec.json.encode({"rows": [row(x, user=unit)] * 2}),
            path="/v1/endpoints/halves/predict",
        )
        for x, unit in ((-6.0, theirs), (-6.0, ours))
    )
    for _ in range(20):  # a busy machine may hold up some
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as first,
            socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as second,
        ):
            first.sendall(slow)
            second.sendall(quick)
            assert second.recv(65536).startswith(b"HTTP/1.1 200")
            overtaken = not select.select([first], [], [], 0)[0]
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
        if overtaken:
            return
    pytest.fail("it was never answered before the slow one")


def test_a_process_that_is_killed_again_and_again_costs_no_request_where_there_is_a_fallback(
    gateway,
):
    ready(gateway, "safe")
    before = set(gateway.pool.runtimes.pids())
    with loaded(gateway, path="safe") as load:
        for _ in range(2):
            answered = len(load.acknowledged)
            while len(load.acknowledged) < answered + 30 and not load.failures:
                time.sleep(0.01)
            for pid in gateway.pool.runtimes.pids()[:1]:
                os.kill(pid, signal.SIGKILL)
            ready(gateway, "safe")
    assert load.failures == []
    assert set(gateway.pool.runtimes.pids()) != before
    logged = {p.id: p for p in gateway.records()[0]}
    assert all(logged[i].output == given for i, _, given, _ in load.acknowledged)
    statuses = {logged[i].status for i, *_ in load.acknowledged}
    assert statuses == {"ok", "fallback"}
    assert len(load.acknowledged) > 50


def test_what_a_runtime_cannot_take_is_refused_at_once_or_answered_by_the_fallback(gateway):
    body = msgspec.json.encode({"rows": [row(-6.0)]})  # 0.2 s, and at most one second may be ahead
    for name, statuses in (("over", {200, 503}), ("over-safe", {200})):
        ready(gateway, name)
        path = f"/v1/endpoints/{name}/predict"
        writers: set[str] = set()
        for _ in range(100):  # until both workers know what a batch takes
            said = gateway.raw(request(body, path=path, extra="connection: close\r\n"))
            assert said.startswith(b"HTTP/1.1 200")
            (given,) = msgspec.json.decode(said.partition(b"\r\n\r\n")[2])["predictions"]
            writers.add(given["id"].split("-")[1])
            if len(writers) == 2:
                break
        with ExitStack() as stack:
            callers = [
                stack.enter_context(
                    socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)
                )
                for _ in range(24)
            ]
            began = time.monotonic()
            for caller in callers:
                caller.sendall(request(body, path=path))
                time.sleep(0.002)
            sending = time.monotonic() - began
            said = [caller.recv(65536) for caller in callers]
        assert {int(one.split()[1]) for one in said} == statuses
        arms = [one.rpartition(b'"arm":"')[2][:2] for one in said if b"200" in one[:13]]
        if name == "over":
            refused = next(one for one in said if b"is ahead" in one)
            assert b"retry-after: " in refused
            assert b"s of work is ahead" in refused
            assert set(arms) == {b"v1"}
        else:
            assert {b"v1", b"v2"} == set(arms)
        # Two workers have a second ahead of them at most, five batches each; the rest did not wait.
        assert arms.count(b"v1") <= 16 + sending / 0.1
    kept = [
        p.error
        for p in gateway.records()[0]
        if p.endpoint == "over-safe" and p.status == "fallback"
    ]
    assert any("more to do than may wait" in said for said in kept)


def test_a_process_that_leaks_is_replaced_without_one_failed_request(tmp_path):
    with running(tmp_path, terms=Terms(runtime_memory=200)) as gateway:
        gateway.publish(endpoint(arms=[arm(1, process(gateway.shelf, Unruly(5.0)))]))
        (before,) = gateway.pool.runtimes.pids()
        with loaded(gateway, threads=2) as load:
            for _ in range(10):
                assert gateway.post({"rows": [row(-5.0)]})[0] == 200
            deadline = time.monotonic() + PATIENCE
            while before in gateway.pool.runtimes.pids() and time.monotonic() < deadline:
                gateway.pool.tend()
                time.sleep(0.02)
            deadline = time.monotonic() + PATIENCE
            while _alive(before) and time.monotonic() < deadline:
                gateway.pool.tend()
                time.sleep(0.02)
        assert load.failures == []
        assert not _alive(before)
        assert gateway.post({"rows": [row(1.0)]})[0] == 200


def test_versions_are_swapped_under_load_and_their_processes_end(tmp_path):
    with running(tmp_path, workers=2) as gateway:
        artefacts = {n: process(gateway.shelf, Saved(float(n))) for n in (1, 2)}
        gateway.publish(endpoint(arms=[arm(1, artefacts[1])]))
        seen = set(gateway.pool.runtimes.pids())
        with loaded(gateway) as load:
            for plan in (2, 3, 4):
                version = 2 - plan % 2
                gateway.publish(endpoint(arms=[arm(version, artefacts[version])], plan=plan))
                seen |= set(gateway.pool.runtimes.pids())
            gateway.pool.swap()
        assert load.failures == []
        assert {plan for *_, plan in load.acknowledged} == {1, 2, 3, 4}
        assert all(given == 2.0 + version for _, version, given, _ in load.acknowledged)
        now = set(gateway.pool.runtimes.pids())
        deadline = time.monotonic() + PATIENCE
        while any(map(_alive, seen - now)) and time.monotonic() < deadline:
            gateway.pool.tend()
            time.sleep(0.02)
        assert len(now) == 1
        assert not any(map(_alive, seen - now))
    assert not any(map(_alive, now))


def test_processes_that_cannot_answer_as_packaged_are_not_served(tmp_path):
    with running(tmp_path) as gateway:
        good = process(gateway.shelf, Saved(1.0))
        gateway.publish(endpoint(arms=[arm(1, good)]))
        for plan, (estimator, spoil, said) in enumerate(
            (
                (Saved(2.0), ("model/weights.txt", b"3.0"), b"was changed"),
                (Saved(4.0), None, b"golden rows differ"),
                (Saved(5.0), None, b"would call posix.system"),
            ),
            start=2,
        ):
            bad = _spoilt(gateway, estimator, spoil, said)
            gateway.publish(endpoint(arms=[arm(plan, bad)], plan=plan), wait=False)
            deadline = time.monotonic() + PATIENCE
            told = b""
            while said not in told and time.monotonic() < deadline:
                gateway.pool.tend()
                told = gateway.application.request("GET", "/ready")[1]
                time.sleep(0.02)
            assert said in told
            assert gateway.post({"rows": [ROW]})[1]["predictions"][0]["version"] == 1


def _spoilt(gateway: Gateway, estimator: Any, spoil: Any, said: bytes) -> str:
    import pickle
    import shutil

    digest = process(gateway.shelf, estimator)
    folder = gateway.shelf.artefact_folder(digest)
    if spoil:
        (folder / spoil[0]).write_bytes(spoil[1])
        return digest
    made = Path(shutil.copytree(folder, gateway.shelf.folder / f"made{len(said)}"))
    (made / "artefact.json").unlink(missing_ok=True)
    if b"golden" in said:
        golden = made / "golden.json"
        golden.write_bytes(
            golden.read_bytes().replace(b"6.0", b"6.5", 1).replace(b"6,", b"6.5,", 1)
        )
    else:

        class Evil:
            def __reduce__(self):
                return os.system, ("true",)

        (made / "model" / "tokeniser.bin").write_bytes(pickle.dumps(Evil(), protocol=4))
    return gateways.lay_out(gateway.shelf, made)


def test_a_process_ends_when_the_gateway_is_killed(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from tests.serving.gateways import Gateway, arm, endpoint, process
        from tests.serving.models import Saved
        gateway = Gateway(Path(sys.argv[1]), workers=1)
        gateway.publish(endpoint(arms=[arm(1, process(gateway.shelf, Saved(1.0)))]))
        print(gateway.pool.runtimes.pids()[0], flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    runtime = int(parent.stdout.readline())
    assert _alive(runtime)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + PATIENCE
    while _alive(runtime) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(runtime)
