"""What the log says of a decision is what its caller was told, whatever protocol, log level and model it met."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.gateways import arm, endpoint, linear, native, request
from tests.serving.models import Doubling, FailingOnNegative, NanOnNegative
from tests.serving.test_fuzz import Wire, talk

from keepwell.core.errors import Unavailable
from keepwell.core.records.predictions import Prediction
from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.assign import bucket_of
from keepwell.serving.desk.codec import JSON, Decoded
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loader, Serving
from keepwell.serving.editions import Edition, Shelf
from keepwell.serving.log.batches import Answers
from keepwell.serving.log.segments import SegmentLog, SegmentWriter
from keepwell.serving.telemetry.meters import Meters
from keepwell.serving.transport.floor import MAX_KNOWN_HEADS, Floor
from keepwell.serving.transport.http import Connection

ENDPOINTS = ("group", "sync", "sampled", "timed", "failing", "nan", "safe", "both")


class Numbers:
    """A protocol of numbers only, as binary ones are: a matrix comes, and no unit with it."""

    bad_input = 400

    def decode(self, serving: Serving, body: bytes, headers: Mapping[bytes, bytes]) -> Decoded:
        matrix = np.array(msgspec.json.decode(body), dtype=np.float64).reshape(-1, 3)
        return Decoded(features=None, matrix=matrix)

    def encode(
        self, serving: Serving, ask: Ask, records: Sequence[Prediction]
    ) -> tuple[bytes, bytes]:
        assert isinstance(records, Answers)
        told = {
            "predictions": [
                {"id": r.id, "prediction": v, "version": r.version, "plan": r.plan, "arm": r.arm}
                for r, v in zip(records, records.outputs.tolist(), strict=True)
            ]
        }
        return msgspec.json.encode(told), JSON

    def error(self, status: int, message: str) -> bytes:
        return msgspec.json.encode({"error": message})


def made_desk(folder: Path) -> Desk:
    shelf = Shelf(folder / "editions")
    plain, other = linear(shelf, 10.0), linear(shelf, 20.0)
    failing = native(shelf, FailingOnNegative())
    nan = native(shelf, NanOnNegative())
    doubling = native(shelf, Doubling())
    halves = [arm(1, plain, BUCKETS // 2), arm(2, other, BUCKETS // 2)]
    desk = Desk(
        SegmentWriter(folder / "log", name="w"), worker="w", meters=Meters(folder / "m", worker="w")
    )
    desk.endpoints = Loader(shelf).load(
        Edition(
            number=1,
            endpoints=(
                endpoint("group", arms=halves, log="group"),
                endpoint("sync", arms=halves, log="sync"),
                endpoint("sampled", arms=[arm(1, plain)], log="sampled"),
                endpoint("timed", arms=[arm(1, plain)], time="at", mirrors=(arm(3, failing, 0),)),
                endpoint("failing", arms=[arm(3, failing)]),
                endpoint("nan", arms=[arm(4, nan)]),
                endpoint("safe", arms=[arm(5, doubling, 0), arm(4, nan)], fallback="v5"),
                endpoint(
                    "both", arms=[arm(3, failing, 5000), arm(4, nan, 5000)], fallback="v3"
                ),
            ),
        )
    )  # fmt: skip
    desk.edition = 1
    return desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return made_desk(tmp_path_factory.mktemp("desk"))


def logged(desk: Desk, cursor: dict[str, int]) -> tuple[list[Prediction], dict[str, int]]:
    batch = SegmentLog(desk._writer._folder).read(cursor)
    assert batch.torn == ()
    return list(batch.predictions), batch.cursor


cells = st.none() | st.sampled_from([0.0, -1.0, -3.5, 1.0, 2.25, 1e300])
rows_of = st.lists(st.tuples(cells, st.sampled_from([True, False, None]), cells), min_size=1, max_size=3)  # fmt: skip


@st.composite
def asks(draw: st.DrawFn) -> tuple[Ask, list[tuple[Any, ...]], list[str], list[str], list[int]]:
    """Draw a request and what it says: rows, ids, units, times."""
    name = draw(st.sampled_from(ENDPOINTS))
    rows = draw(rows_of)
    n = len(rows)
    binary = draw(st.booleans()) and name != "timed"
    if binary:
        numbers = [tuple(None if v is None else float(v) for v in row) for row in rows]
        body = msgspec.json.encode(numbers)
        return Ask(name, body, time.perf_counter(), Numbers()), numbers, [], [], []
    ids = [draw(st.text(max_size=3)) for _ in rows] if draw(st.booleans()) else []
    units = (
        [draw(st.sampled_from(["", "ann", "bob", "ü"])) for _ in rows]
        if draw(st.booleans())
        else [""] * n
    )
    times = [draw(st.integers(0, 10**15)) for _ in rows] if name == "timed" else []
    sent = []
    for k, (x, flag, delay) in enumerate(rows):
        one: dict[str, Any] = {"x": x, "flag": flag, "dep delay": delay}
        one |= {"user": units[k]} if units[k] else {}
        one |= {"at": times[k]} if times else {}
        sent.append(one)
    body = msgspec.json.encode({"rows": sent, "ids": ids})
    return Ask(name, body, time.perf_counter()), rows, ids, units, times


@settings(deadline=None, max_examples=300)
@given(st.lists(asks(), min_size=1, max_size=5))
def test_what_is_logged_is_what_was_answered(desk, drawn):
    _, cursor = logged(desk, {})
    desk.answer([ask for ask, *_ in drawn])
    desk.shadow()
    records, _ = logged(desk, cursor)
    decisions = [r for r in records if not r.mirror]
    mirrored = [r for r in records if r.mirror]
    by_endpoint = {name: [r for r in decisions if r.endpoint == name] for name in ENDPOINTS}
    for ask, rows, ids, units, times in drawn:
        serving = desk.endpoints[ask.endpoint]
        mine = [by_endpoint[ask.endpoint].pop(0) for _ in rows]
        assert [r.features for r in mine] == rows
        assert [[type(v) for v in r.features] for r in mine] == [[type(v) for v in row] for row in rows]  # fmt: skip
        if ids:
            assert [r.id for r in mine] == ids
        assert [r.unit for r in mine] == [
            unit or r.id for unit, r in zip(units or [""] * len(rows), mine, strict=True)
        ]
        assert [r.time for r in mine] == (times or [r.arrived for r in mine])
        for r in mine:
            assert (r.plan, r.arms) == (1, serving.names)
            bucket = bucket_of(r.unit, "s")
            if len(serving.arms) == 2:
                weight = serving.arms[1].arm.weight
                assert r.propensity == (weight if bucket < weight else BUCKETS - weight) / BUCKETS
        answer = msgspec.json.decode(ask.answer)
        negative = [row[0] is not None and row[0] < 0 for row in rows]
        missing = [row[0] is None for row in rows]
        if ask.endpoint in {"group", "sync", "sampled", "timed"}:
            assert {r.status for r in mine} == {"ok"}
        if ask.status == 503:
            assert any(missing + negative), "only what a model has no answer to is refused"
            assert {(r.status, r.output) for r in mine} == {("error", None)}
            assert re.search(r"m/\d+ failed on row \d", answer["error"])
            assert all(r.error for r in mine)
            continue
        assert ask.status == 200
        assert answer["predictions"] == [
            {"id": r.id, "prediction": r.output, "version": r.version, "plan": r.plan, "arm": r.arm}
            for r in mine
        ]
        assert all(np.isfinite(r.output) for r in mine)
        if ask.endpoint == "safe":
            assert [r.status == "fallback" for r in mine] == negative
        if ask.endpoint in {"failing", "nan"}:
            assert not any(missing + negative)
        assert ask.waits == (serving.edition.log == "sync")
    assert not any(by_endpoint.values()), "nothing else is logged"
    shadowed = [r for r in decisions if r.endpoint == "timed"]
    assert [(r.id, r.unit, r.time) for r in mirrored] == [(r.id, r.unit, r.time) for r in shadowed]
    assert all((r.features, r.propensity, r.version) == ((), 1.0, 3) for r in mirrored)


def test_one_callers_rows_send_no_other_callers_rows_to_the_fallback(desk):
    body = b'{"rows":[{"x":%s,"flag":true,"dep delay":1}]}'
    good, bad = (Ask("safe", body % x, time.perf_counter()) for x in (b"4", b"-4"))
    desk.answer([good, bad, good])
    assert [msgspec.json.decode(a.answer)["predictions"][0]["arm"] for a in (good, bad)] == ["v4", "v5"]  # fmt: skip


def test_an_answer_that_is_no_number_is_an_error_and_not_null(desk):
    body = b'{"rows":[{"x":1,"flag":true,"dep delay":1},{"x":-1,"flag":true,"dep delay":1}],"ids":["n1","n2"]}'
    _, cursor = logged(desk, {})
    ask = Ask("nan", body, time.perf_counter())
    desk.answer([ask])
    assert ask.status == 503
    assert b"m/4 failed on row 1: its answer is not a finite number" in ask.answer
    records, _ = logged(desk, cursor)
    assert [(r.id, r.status, r.output) for r in records] == [
        ("n1", "error", None),
        ("n2", "error", None),
    ]
    probe = Ask("nan", body.replace(b'"rows"', b'"probe":4,"rows"'), time.perf_counter())
    desk.answer([probe])
    assert (probe.status, b"not a finite number" in probe.answer) == (503, True)


class Gate(SegmentWriter):
    """A real writer on a disk that answers when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="w")
        self.open = threading.Event()
        self.broken = False

    def sync(self) -> None:
        self.open.wait(60)
        if self.broken:
            raise Unavailable("The disk is gone.")
        super().sync()


@pytest.mark.parametrize("broken", [False, True])
def test_with_sync_no_answer_leaves_before_the_disk_has_it(tmp_path, broken):
    desk = made_desk(tmp_path)
    gate = desk._writer = Gate(tmp_path / "log")
    body = b'{"rows":[{"x":1,"flag":true,"dep delay":1}],"ids":["%d"]}'

    async def run() -> tuple[list[Wire], int, Wire]:
        floor = Floor(desk, asyncio.get_running_loop())
        wires = []
        for n in range(5):
            wire, connection = Wire(), Connection(floor)
            connection.connection_made(wire)
            connection.data_received(request(body % n, path="/v1/endpoints/sync/predict"))
            wires.append(wire)
            await asyncio.sleep(0.01)
        in_log = len(SegmentLog(tmp_path / "log").read({}).predictions)
        assert [wire.written for wire in wires] == [b""] * 5
        # What does not wait for the disk is answered meanwhile.
        other, connection = Wire(), Connection(floor)
        connection.connection_made(other)
        connection.data_received(request(body % 9, path="/v1/endpoints/group/predict"))
        await asyncio.sleep(0.01)
        assert other.written.startswith(b"HTTP/1.1 200")
        gate.broken = broken
        gate.open.set()
        for _ in range(10_000):
            if all(wire.written for wire in wires):
                break
            await asyncio.sleep(0.005)
        return wires, in_log, other

    wires, in_log, _ = asyncio.run(run())
    status = b"503" if broken else b"200"
    assert [wire.written[9:12] for wire in wires] == [status] * 5
    assert all((b"The disk is gone" in wire.written) == broken for wire in wires)
    assert in_log == 2, (
        "two ticks were logged, and the rest collected while two waits were under way"
    )
    assert len(SegmentLog(tmp_path / "log").read({}).predictions) == 6


def test_a_head_that_came_before_is_not_read_again_and_says_the_same(desk):
    body = b'{"rows":[{"x":1,"flag":true,"dep delay":1}],"ids":["a"]}'
    asked = request(body, path="/v1/endpoints/group/predict")
    longer = asked[:-1] + b" }"
    wire, problems = talk(desk, [asked, asked, asked[:-4], asked[-4:], asked + asked, asked])
    assert (problems, wire.written.count(b"HTTP/1.1 200 OK")) == ([], 6)
    wire, problems = talk(desk, [asked, asked, longer, asked])
    # The last byte of the longer body begins another request, which is none.
    assert re.findall(rb"HTTP/1.1 (\d+)", wire.written) == [b"200", b"200", b"422", b"400"]
    assert (problems, wire.closed) == ([], True)


@pytest.mark.parametrize(
    ("extra", "remembered"),
    [("", 1), ("x-request-id: 7\r\n", 1), ("connection: close\r\n", 0), ("expect: 100-continue\r\n", 0)],
)  # fmt: skip
def test_only_heads_that_say_nothing_beyond_the_body_are_remembered(desk, extra, remembered):
    async def run() -> tuple[int, bytes, bytes]:
        floor = Floor(desk, asyncio.get_running_loop())
        wire, connection = Wire(), Connection(floor)
        connection.connection_made(wire)
        body = b'{"rows":[{"x":1,"flag":true,"dep delay":1}],"ids":["a"]}'
        asked = request(body, path="/v1/endpoints/group/predict", extra=extra)
        connection.data_received(asked)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first, wire.written = wire.written, b""
        connection.data_received(asked)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return len(floor.heads), first, wire.written

    count, first, second = asyncio.run(run())
    assert count == remembered
    assert b"200 OK" in first
    if remembered:
        assert first == second


def test_no_more_heads_are_remembered_than_fit(desk):
    async def run() -> int:
        floor = Floor(desk, asyncio.get_running_loop())
        wire, connection = Wire(), Connection(floor)
        connection.connection_made(wire)
        for n in range(MAX_KNOWN_HEADS * 2 + 7):
            body = b'{"rows":[{"x":1,"flag":true,"dep delay":1}]}'
            connection.data_received(
                request(body, path="/v1/endpoints/group/predict", extra=f"x: {n}\r\n")
            )
            assert len(floor.heads) <= MAX_KNOWN_HEADS
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return wire.written.count(b"200 OK")

    assert asyncio.run(run()) == MAX_KNOWN_HEADS * 2 + 7
