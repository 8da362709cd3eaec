"""Behind an ASGI server the gateway answers and logs what it answers and logs by itself."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.serving import gateways
from tests.serving.gateways import (
    PATIENCE,
    Gateway,
    arm,
    endpoint,
    linear,
    native,
    process,
    request,
)
from tests.serving.models import Doubling, FailingOnNegative, Lengths, Saved
from tests.serving.protocols.conftest import WORDS
from tests.serving.storms import until
from tests.serving.test_under_load import Load, loaded
from tests.stories.projects import free_port

from keepwell.core.errors import KeepwellError
from keepwell.serving.application import HttpApplication
from keepwell.serving.asgi import app_for
from keepwell.serving.log.segments import SegmentLog
from keepwell.serving.transport.floor import MAX_BODY

ROW = {"x": 1.0, "flag": True, "dep delay": None}


@contextmanager
def uvicorn(state: Path, *more: str) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", "keepwell.serving.asgi:app", "--port", str(port),
         "--no-access-log", "--log-level", "warning", *more],
        env={**os.environ, "KEEPWELL_STATE": str(state)},
    )  # fmt: skip
    try:
        yield Server(state, port, process)
    finally:
        process.terminate()
        process.wait(PATIENCE)


class Server:
    """What tests of gateways need of another server: a port, ``post``, ``raw`` and the records of its own log."""

    def __init__(self, state: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.log = state / "log"
        self.port = port
        self.process = process
        self.application = HttpApplication(f"http://127.0.0.1:{port}", timeout=PATIENCE)

    post = Gateway.post
    raw = Gateway.raw
    records = Gateway.records

    def wait(self, edition: int, times: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE
        seen = 0
        while seen < times:
            try:
                told = msgspec.json.decode(self.application.request("GET", "/ready")[1])
                fresh = told["ready"] and told["edition"] == edition
            except (KeepwellError, KeyError):
                fresh = False
            seen = seen + 1 if fresh else 0
            if not fresh:
                assert time.monotonic() < deadline
                time.sleep(0.02)


class Both:
    """Our own server and uvicorn on the same editions, each with its own log."""

    def __init__(self, own: Gateway, other: Server) -> None:
        self.own = own
        self.other = other


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    with gateways.running(folder / "own") as own:
        shelf = own.shelf
        plain, other = linear(shelf, 10.0), linear(shelf, 20.0)
        failing = native(shelf, FailingOnNegative())
        halves = [arm(1, plain, 5000), arm(2, other, 5000)]
        own.publish(
            endpoint("e", arms=[arm(1, plain)]),
            endpoint("two", arms=halves, time="at", plan=7),
            endpoint("failing", arms=[arm(3, failing)]),
            endpoint("safe", arms=[arm(1, native(shelf, Doubling()), 0), arm(3, failing)], fallback="v1"),
            endpoint("words", arms=[arm(1, native(shelf, Lengths(), WORDS, [["abc", 1.0, True]]))]),
            endpoint("with space", arms=[arm(1, plain)], log="group"),
            endpoint("beside", arms=[arm(6, process(shelf, Saved(3.0)))]),
            endpoint("none", arms=[], refused="m/1: its evidence is gone"),
        )  # fmt: skip
        state = folder / "other"
        state.mkdir()
        (state / "editions").symlink_to(shelf.folder)
        with uvicorn(state) as server:
            server.wait(own.number)
            yield Both(own, server)


def rows(n: int = 1, tag: str = "", **more: Any) -> bytes:
    ids = [f"{tag}{k}" for k in range(n)]
    return msgspec.json.encode(
        {"rows": [{**ROW, "x": k / 3, **more} for k in range(n)], "ids": ids}
    )


def tensors(parameters: dict[str, Any], n: int = 2) -> bytes:
    data = [k / 7 for k in range(3 * n)]
    tensor = {"name": "all", "datatype": "FP64", "shape": [n, 3], "data": data}
    return msgspec.json.encode({"id": "q", "inputs": [tensor], "parameters": parameters})


def binary() -> tuple[bytes, str]:
    matrix = np.arange(6, dtype="<f4").reshape(2, 3)
    tensor = {
        "name": "all", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24},
    }  # fmt: skip
    head = {"inputs": [tensor], "parameters": {"ids": ["b1", "b2"], "binary_data_output": True}}
    said = msgspec.json.encode(head)
    return said + matrix.tobytes(), f"inference-header-content-length: {len(said)}\r\n"


def corpus() -> dict[str, bytes]:
    """What is asked of both: every protocol, every kind of refusal, and the odd ones."""
    at = {"at": "2026-01-02T03:04:05Z"}
    predict = "/v1/endpoints/{}/predict".format
    csv = b"x,flag,dep delay\n1.5,true,\n2.5,false,3\n"
    raw, length = binary()
    split = {"columns": [*ROW, "more"], "data": [[1, True, None, "z"], [2, False, 1, "z"]]}
    named = {"params": {"ids": ["s1", "s2"]}, "dataframe_split": split}
    asked: dict[str, tuple[Any, ...]] = {
        "one row": (rows(1, "a"),),
        "many rows": (rows(500, "b"),),
        "units": (rows(9, "c", user="ann", **at), predict("two")),
        "no units": (rows(9, "d", **at), predict("two")),
        "text": (msgspec.json.encode({"rows": [{"word": "ü", "number": 1, "flag": None}], "ids": ["w"]}), predict("words")),
        "beside": (rows(3, "p"), predict("beside")),
        "fallback": (msgspec.json.encode({"rows": [{**ROW, "x": -1}], "ids": ["f"]}), predict("safe")),
        "failing": (msgspec.json.encode({"rows": [{**ROW, "x": -1}], "ids": ["g"]}), predict("failing")),
        "probe": (msgspec.json.encode({"row": ROW, "probe": 1}), predict("two")),
        "probe of nothing": (msgspec.json.encode({"row": ROW, "probe": 77}), predict("two")),
        "no JSON": (b"{",),
        "unknown column": (b'{"row":{"z":1}}',),
        "empty": (b"",),
        "unknown endpoint": (rows(1, "h"), predict("nowhere")),
        "nothing may answer": (rows(1, "h"), predict("none")),
        "query": (rows(1, "i"), predict("e") + "?a=b"),
        "deadline": (rows(1, "j"), predict("e"), "POST", "x-deadline-ms: 60000\r\n"),
        "bad deadline": (rows(1, "k"), predict("e"), "POST", "x-deadline-ms: soon\r\n"),
        "passed deadline": (rows(1, "k"), predict("e"), "POST", "request-timeout: 0.0000000001\r\n"),
        "wrong method": (b"", predict("e"), "DELETE"),
        "live": (b"", "/live", "GET"),
        "head": (b"", "/live", "HEAD"),
        "ready": (b"", "/ready", "GET"),
        "endpoints": (b"", "/v1/endpoints", "GET"),
        "nothing there": (b"", "/%7Euser", "GET"),
        "server": (b"", "/v2", "GET"),
        "metadata": (b"", "/v2/models/e", "GET"),
        "metadata by version": (b"", "/v2/models/two/versions/2", "GET"),
        "escaped name": (b"", "/v2/models/with%20space", "GET"),
        "index": (b"{}", "/v2/repository/index"),
        "unload": (b"{}", "/v2/repository/models/e/unload"),
        "tensors": (tensors({"ids": ["t1", "t2"]}), "/v2/models/e/infer"),
        "binary": (raw, "/v2/models/e/infer", "POST", length),
        "binary cut off": (raw[:-4], "/v2/models/e/infer", "POST", length),
        "pinned": (tensors({}), "/v2/models/two/versions/2/infer"),
        "split": (msgspec.json.encode(named), "/v1/endpoints/e/invocations"),
        "csv, no path": (csv, "/invocations", "POST", "content-type: text/csv\r\n"),
        "parquet": (b"PAR1", "/v1/endpoints/e/invocations", "POST", "content-type: application/x-parquet\r\n"),
        "compressed": (gzip.compress(csv, mtime=0), "/v1/endpoints/e/invocations", "POST", "content-encoding: gzip\r\n"),
        "version": (b"", "/version", "GET"),
        "ping": (b"", "/ping", "GET"),
        "outcomes": (b'{"outcomes":[{"id":"a0","endpoint":"e","value":1,"time":5}]}', "/v1/outcomes"),
        "outcomes of nothing": (b'{"outcomes":[{"id":"a0","endpoint":"z","value":1}]}', "/v1/outcomes"),
        "outcome without id": (b'{"outcomes":[{"endpoint":"e","value":1}]}', "/v1/outcomes"),
        "long URL": (b"", "/" + "a" * 9000, "GET"),
        "announced too large": (b"", predict("e"), "POST", f"content-length: {MAX_BODY + 1}\r\n"),
    }  # fmt: skip
    made = {}
    for name, (body, *more) in asked.items():
        path = more[0] if more else "/v1/endpoints/e/predict"
        method = more[1] if len(more) > 1 else "POST"
        extra = more[2] if len(more) > 2 else ""
        sent = request(body, path=path, method=method, extra=f"connection: close\r\n{extra}")
        if "content-length" in extra.split("inference-header-")[0]:
            sent = sent.replace(b"content-length: 0\r\n", b"", 1)
        made[name] = sent
    chunk = rows(1, "l")
    made["chunked"] = (
        b"POST /v1/endpoints/e/predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, chunk[:9], len(chunk) - 9, chunk[9:])
    )
    return made


TOLD = {b"content-type", b"content-length", b"retry-after", b"www-authenticate", b"inference-header-content-length"}  # fmt: skip


def parsed(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(b":") for line in lines)}
    return status.split()[1], {n: v for n, v in headers.items() if n in TOLD}, body


def steady(body: bytes) -> bytes:
    """Leave out what cannot be the same: how long something has been late."""
    text, found, rest = body.partition(b"Its deadline passed ")
    return text + found + rest.partition(b" ms")[2] if found else body


def test_every_request_is_answered_bit_for_bit_as_by_our_own_server(both):
    for name, sent in corpus().items():
        own, other = (parsed(side.raw(sent, timeout=PATIENCE)) for side in (both.own, both.other))
        assert own[0], name
        if name == "long URL":  # uvicorn's own parser may have a bound of its own
            assert (own[0], other[0] in {b"431", b"400"}) == (b"431", True)
            continue
        if b"Its deadline passed" in own[2]:
            own, other = ((s, {}, steady(b)) for s, _, b in (own, other))
        assert other == own, name
    kept = []
    for side in (both.own, both.other):
        predictions, outcomes, torn = side.records()
        assert torn == ()
        decided = {
            p.id: msgspec.structs.replace(p, time=0, arrived=0, latency=0)
            for p in predictions
            if len(p.id) < 8
        }
        kept.append((decided, [o.id for o in outcomes]))
    assert kept[0] == kept[1]
    assert len(kept[0][0]) > 500


def whole(caller: socket.socket) -> bytes:
    """Read one answer: uvicorn sends the head and the body apart."""
    answer = b""
    while True:
        head, found, body = answer.partition(b"\r\n\r\n")
        if found and len(body) >= int(parsed(head)[1][b"content-length"]):
            return answer
        answer += caller.recv(65536)


def test_requests_of_one_tick_become_one_model_call(both):
    def counted() -> tuple[int, int]:
        told = both.other.application.request("GET", "/v2/models/e/stats")[1]
        (stats,) = msgspec.json.decode(told)["model_stats"]
        return stats["inference_count"], stats["execution_count"]

    before = counted()
    with ExitStack() as stack:
        place = ("127.0.0.1", both.other.port)
        callers = [stack.enter_context(socket.create_connection(place)) for _ in range(20)]
        for caller in callers:  # each has asked before, so that it is accepted
            caller.sendall(request(b"", path="/live", method="GET"))
            assert whole(caller).startswith(b"HTTP/1.1 200")
        both.other.process.send_signal(signal.SIGSTOP)
        for caller in callers:
            caller.sendall(request(rows(1)))
        both.other.process.send_signal(signal.SIGCONT)
        for caller in callers:
            assert whole(caller).startswith(b"HTTP/1.1 200")
    after = counted()
    assert after[0] - before[0] == 20
    assert after[1] - before[1] <= 3


def test_several_processes_follow_the_editions_and_drain_with_nothing_lost(tmp_path):
    own = Gateway(tmp_path / "own", workers=0)
    artefacts = {v: linear(own.shelf, 10.0 * v) for v in (1, 2)}
    own.publish(endpoint(arms=[arm(1, artefacts[1])]), wait=False)
    own.pool.tend()
    with uvicorn(tmp_path / "own", "--workers", "2") as server:
        server.wait(1, times=12)
        with loaded(server) as load:  # type: ignore[arg-type]
            until(lambda: load.acknowledged, "an answer under the first plan")
            for plan in range(2, 8):
                own.publish(
                    endpoint(arms=[arm(2 - plan % 2, artefacts[2 - plan % 2])], plan=plan),
                    wait=False,
                )
                time.sleep(0.15)
            server.wait(own.number, times=12)
            until(lambda: load.acknowledged[-1][-1] == 7, "an answer under the last plan")
        assert load.failures == []
        assert {plan for *_, plan in load.acknowledged} >= {1, 7}
        ending = Load(server)  # type: ignore[arg-type]
        with ended(server, ending):
            pass
    logged = {p.id for p in SegmentLog(server.log).read({}, limit=10**6).predictions}
    acknowledged = {i for i, *_ in (*load.acknowledged, *ending.acknowledged)}
    assert acknowledged <= logged
    assert len({name.name.split("-")[1] for name in server.log.glob("*.seg")}) == 2
    own.close()


@contextmanager
def ended(server: Server, load: Load) -> Iterator[None]:
    """End the server while somebody asks."""
    asking = threading.Thread(target=load.ask, args=(9,))
    asking.start()
    until(lambda: load.acknowledged, "an answer")
    server.process.terminate()
    server.process.wait(PATIENCE)
    load.stop.set()
    asking.join()
    assert load.acknowledged
    yield


def test_without_its_lifespan_it_says_so(tmp_path):
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/live", "headers": []}
    asyncio.run(app_for(tmp_path)(scope, receive, send))
    assert (sent[0]["status"], b"lifespan" in sent[1]["body"]) == (503, True)


def test_where_nobody_publishes_it_does_not_start(tmp_path):
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    asyncio.run(app_for(tmp_path)({"type": "lifespan"}, receive, send))
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "gateway_workers = 0 first" in sent[0]["message"]
