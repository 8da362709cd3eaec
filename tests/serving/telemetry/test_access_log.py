"""The access log tells each request once, in whole lines, and never what was asked or by which token."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc
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
from tests.serving.models import FailingOnNegative

from keepwell.core.errors import Unavailable
from keepwell.serving.telemetry.accesslog import MAX_IDS, MAX_WAITING, AccessLog, check_place
from keepwell.serving.telemetry.notes import Note, parent_of
from keepwell.serving.terms import Terms

TOKEN = "correct-horse-battery-staple"
FEATURE = 4711.25
ROW = {"x": FEATURE, "flag": True, "dep delay": 0.0}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    folder = tmp_path_factory.mktemp("told")
    path = folder / "access.log"
    tokens = folder / "tokens"
    tokens.write_text(f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()} tests\n")
    terms = Terms(access_log=str(path), tokens=str(tokens))
    with running(folder, workers=2, grpc=True, terms=terms) as made:
        made.application._headers = {"authorization": f"Bearer {TOKEN}"}
        one, two = linear(made.shelf, 10.0), linear(made.shelf, 20.0)
        made.publish(
            endpoint("e", arms=[arm(1, one)], plan=3),
            endpoint("two", arms=[arm(1, one, 5000), arm(2, two, 5000)], log="group", plan=7),
            endpoint("failing", arms=[arm(3, native(made.shelf, FailingOnNegative()))]),
        )
        yield made, path


def lines(file: Path, at_least: int = 0, /, **fields: Any) -> list[dict[str, Any]]:
    """The lines with these values, once there are so many of them."""
    deadline = time.monotonic() + PATIENCE
    while True:
        # A reader may see a write half done: what has no end yet is no line.
        whole, _, _ = file.read_text().rpartition("\n") if file.exists() else ("", "", "")
        every = [json.loads(line) for line in whole.splitlines()]
        found = [line for line in every if fields.items() <= line.items()]
        if len(found) >= at_least or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def ask(gateway: Gateway, body: Any, *, name: str = "e", extra: str = "") -> bytes:
    sent = request(
        msgspec.json.encode(body),
        path=f"/v1/endpoints/{name}/predict",
        extra=f"authorization: Bearer {TOKEN}\r\nconnection: close\r\n{extra}",
    )
    return gateway.raw(sent)


def test_a_decision_is_told_with_who_answered_how_long_it_took_and_its_trace(
    told: tuple[Gateway, Path],
):
    gateway, path = told
    before = dt.datetime.now(dt.UTC)
    body = {"rows": [ROW, ROW], "ids": ["first-a", "first-b"]}
    answer = ask(gateway, body, extra=f"traceparent: {PARENT}\r\n")
    assert b"200 OK" in answer
    (line,) = lines(path, 1, trace=TRACE)
    assert 0 < line["seconds"] < PATIENCE
    assert abs((dt.datetime.fromisoformat(line["time"]) - before).total_seconds()) < PATIENCE
    assert line["client"].startswith("127.0.0.1:")
    assert line["bytes_out"] == len(answer.partition(b"\r\n\r\n")[2])
    assert line == line | {
        "method": "POST", "path": "/v1/endpoints/e/predict", "endpoint": "e", "status": 200, "rows": 2,
        "ids": ["first-a", "first-b"], "arm": "v1", "version": 1, "plan": 3, "bytes_in": len(msgspec.json.encode(body)),
    }  # fmt: skip


def test_features_predictions_and_tokens_are_never_in_it(told: tuple[Gateway, Path]):
    gateway, path = told
    ask(gateway, {"row": ROW, "id": "secretive"})
    ask(gateway, {"row": {"x": FEATURE, "unknown": FEATURE}})
    gateway.raw(request(b"{}", extra=f"authorization: Bearer {TOKEN}x\r\nconnection: close\r\n"))
    gateway.raw(f"GET /live?token={TOKEN} HTTP/1.1\r\nconnection: close\r\n\r\n".encode())
    assert lines(path, 1, ids=["secretive"])
    assert lines(path, 1, status=422)
    assert lines(path, 1, status=401)
    assert lines(path, 1, path="/live")
    written = path.read_text()
    assert TOKEN not in written
    assert "4711.25" not in written
    assert "4721.25" not in written


def test_requests_of_several_arms_are_told_by_arm_and_ids_are_bounded(told: tuple[Gateway, Path]):
    gateway, path = told
    ids = [f"many-{k}" for k in range(400)]
    assert b"200 OK" in ask(gateway, {"rows": [ROW] * 400, "ids": ids}, name="two")
    (line,) = lines(path, 1, endpoint="two")
    assert line["ids"] == ids[:MAX_IDS]
    assert set(line["arms"]) == {"v1", "v2"}
    assert sum(line["arms"].values()) == line["rows"] == 400
    assert line["arms"]["v1"] == sum(
        r.arm == "v1" for r in gateway.records()[0] if r.id.startswith("many-")
    )


def test_a_model_that_fails_and_what_cannot_be_read_are_told_too(told: tuple[Gateway, Path]):
    gateway, path = told
    ask(gateway, {"rows": [ROW | {"x": -1.0}]}, name="failing")
    gateway.raw(b"nonsense\r\n\r\n")
    assert lines(path, 1, endpoint="failing", status=503)
    assert lines(path, 1, method="", status=400)


def test_grpc_calls_are_told_with_their_traces(told: tuple[Gateway, Path]):
    gateway, path = told
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        given = tritonclient.grpc.InferInput("all", [2, 3], "FP64")
        given.set_data_from_numpy(np.ones((2, 3)))
        trace = TRACE[::-1]
        metadata = {"authorization": f"Bearer {TOKEN}", "traceparent": PARENT.replace(TRACE, trace)}
        client.infer("e", [given], headers=metadata)
        client.is_server_live()
    (line,) = lines(path, 1, trace=trace)
    assert (line["rows"], line["arm"], line["status"], line["endpoint"]) == (2, "v1", 200, "e")
    assert line["path"] == "/inference.GRPCInferenceService/ModelInfer"
    assert lines(path, 1, path="/inference.GRPCInferenceService/ServerLive", status=200)


def test_two_workers_tell_each_request_once_while_the_file_is_rotated(told: tuple[Gateway, Path]):
    gateway, path = told

    def one(number: int) -> None:
        assert b"200 OK" in ask(gateway, {"row": ROW, "id": f"rotated-{number}"})

    moved = [path.with_suffix(f".{k}") for k in range(3)]
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(one, number) for number in range(400)]
        for each in moved:
            while not path.exists() and not all(future.done() for future in asked):
                time.sleep(0.01)
            time.sleep(0.05)
            if path.exists():
                path.rename(each)  # as logrotate does without copytruncate
        for future in asked:
            future.result()
    assert moved[0].exists()
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [
            line["ids"][0]
            for file in (path, *moved)
            for line in lines(file)
            if line.get("ids", [""])[0].startswith("rotated-")
        ]
        if len(found) >= 400 or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert sorted(found) == sorted(f"rotated-{k}" for k in range(400))


def note(path: str = "/") -> Note:
    return Note(time.perf_counter(), "GET", path, "c", 0, status=200, ended=time.perf_counter())


def test_lines_for_a_pipe_that_nobody_reads_are_dropped_counted_and_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
):
    reading, writing = os.pipe()
    monkeypatch.setattr("keepwell.serving.telemetry.accesslog.CLOSE_SECONDS", 0.1)
    real = os.write
    monkeypatch.setattr(
        "keepwell.serving.telemetry.accesslog.os.write", lambda _, content: real(writing, content)
    )

    async def flood() -> AccessLog:
        log = AccessLog("-", asyncio.get_running_loop())
        for _ in range(40):
            began = time.perf_counter()
            for _ in range(1000):
                log.saw(note("/" + "x" * 190))
            assert time.perf_counter() - began < 10, "it waited for the pipe"
            await asyncio.sleep(0.025)
        return log

    log = asyncio.run(flood())
    counts = log.counts()
    assert counts["access_log_lines"] == 40_000
    assert 0 < counts["access_log_dropped"] < 40_000
    assert (40_000 - counts["access_log_dropped"]) * 200 < MAX_WAITING + 2 * 65536
    log.close()
    os.set_blocking(reading, False)
    while log._thread.is_alive():  # the writer ends once somebody reads again
        with suppress(BlockingIOError):
            assert os.read(reading, 1 << 20)
        log._thread.join(0.002)
    os.close(reading)
    os.close(writing)


def test_a_disk_that_takes_nothing_is_counted(tmp_path: Path):
    async def write() -> dict[str, int]:
        log = AccessLog(str(tmp_path / "gone" / "access.log"), asyncio.get_running_loop())
        log.saw(note())
        log.close()
        return log.counts()

    assert asyncio.run(write()) == {"access_log_lines": 1, "access_log_dropped": 1}


def test_a_place_that_cannot_be_written_is_told_at_the_start(tmp_path: Path):
    check_place("-")
    check_place(str(tmp_path / "access.log"))
    with pytest.raises(Unavailable, match="its folder must exist"):
        check_place(str(tmp_path / "nowhere" / "access.log"))


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (PARENT, TRACE),
        (PARENT[:-2] + "00", TRACE),
        ("01" + PARENT[2:] + "-more", TRACE),
        (PARENT + "-more", None),
        ("ff" + PARENT[2:], None),
        (PARENT.upper(), None),
        (PARENT.replace(TRACE, "0" * 32), None),
        (PARENT[:-1], None),
        ("", None),
    ],
)
def test_only_a_whole_traceparent_counts(header: str, trace: str | None):
    found = parent_of(Note(0.0, "", "", "", 0, header.encode()))
    assert (found[0] if found else None) == trace
