"""Whatever bytes come, a worker answers or refuses: no exception leaves a connection or the codec."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.gateways import arm, endpoint, linear, request

from keepwell.core.errors import KeepwellError
from keepwell.core.records.data import Column, Dtype
from keepwell.core.records.models import Signature
from keepwell.serving.desk.codec import Codec
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loader
from keepwell.serving.editions import Edition, Shelf
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.telemetry.meters import Meters
from keepwell.serving.transport.floor import Floor
from keepwell.serving.transport.http import Connection

GOOD = request(b'{"rows":[{"x":1,"flag":true,"dep delay":null}]}')


class Wire(asyncio.Transport):
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data) -> None:
        assert not self.closed, "nothing may be written behind a close"
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    shelf = Shelf(folder / "editions")
    made = Desk(
        SegmentWriter(folder / "log", name="w"),
        worker="w",
        meters=Meters(folder / "meters", worker="w"),
    )
    plain = arm(1, linear(shelf, 1.0))
    made.endpoints = Loader(shelf).load(
        Edition(
            number=1,
            endpoints=(
                endpoint(arms=[plain], log="group"),
                endpoint("timed", arms=[plain], time="at"),
            ),
        )
    )
    made.edition = 1
    return made


def talk(desk: Desk, parts: list[bytes]) -> tuple[Wire, list[str]]:
    """Feed a connection piece by piece and give what it wrote, and what the loop had to catch."""
    problems: list[str] = []

    async def run() -> Wire:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(str(context)))
        wire = Wire()
        connection = Connection(Floor(desk, loop))
        connection.connection_made(wire)
        for part in parts:
            connection.data_received(part)
            await asyncio.sleep(0)
        if not connection.eof_received():
            wire.close()
        for _ in range(16):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        return wire

    return asyncio.run(run()), problems


requests = st.one_of(
    st.binary(max_size=200),
    st.just(GOOD),
    st.sampled_from([GOOD[:-3], request(b"", method="HEAD", path="/live"), b"GET /metrics HTTP/1.0\r\n\r\n"]),
    st.builds(
        lambda body, path, method: request(body, path=path, method=method),
        st.binary(max_size=100),
        st.sampled_from(["/v1/endpoints/e/predict", "/v1/endpoints/timed/predict", "/v1/outcomes", "/ready", "/x?y", "*"]),
        st.sampled_from(["POST", "GET", "PUT", "OPTIONS", "CONNECT", "PRI"]),
    ),
    st.builds(
        lambda line, body: f"POST /v1/outcomes HTTP/1.1\r\n{line}\r\n\r\n".encode() + body,
        st.sampled_from(["content-length: 5", "transfer-encoding: chunked", "expect: 100-continue", "upgrade: x\r\nconnection: upgrade"]),
        st.binary(max_size=30),
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=250)
@given(st.lists(requests, min_size=1, max_size=6))
def test_whatever_bytes_come_the_connection_answers_or_closes(desk, parts):
    wire, problems = talk(desk, parts)
    assert problems == []
    assert re.fullmatch(rb"|HTTP/1\.1 .*", wire.written, re.DOTALL)
    assert b"HTTP/1.1 500" not in wire.written


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, len(GOOD) * 3 - 1), max_size=8))
def test_however_requests_are_cut_into_packets_each_is_answered_once(desk, cuts):
    stream = GOOD * 3
    edges = [0, *sorted(set(cuts)), len(stream)]
    wire, problems = talk(desk, [stream[a:b] for a, b in pairwise(edges)])
    assert (problems, wire.written.count(b"HTTP/1.1 200 OK")) == ([], 3)


def test_more_requests_in_a_pipeline_than_are_held_at_once_are_all_answered(desk):
    wire, problems = talk(desk, [GOOD * 700])
    assert (problems, wire.written.count(b"HTTP/1.1 200 OK")) == ([], 700)


values = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**40), 10**40), st.text(max_size=5)
)  # fmt: skip
rows = st.dictionaries(st.sampled_from(["x", "flag", "dep delay", "user", "at", "other"]), values)


@settings(deadline=None, max_examples=400)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            msgspec.json.encode,
            st.fixed_dictionaries(
                {"rows": st.lists(rows, max_size=3)},
                optional={
                    "ids": st.lists(st.text(max_size=3), max_size=3),
                    "id": st.text(max_size=2),
                    "row": rows,
                    "probe": values,
                },
            ),
        ),
    )
)
def test_whatever_body_comes_the_codec_reads_it_or_says_what_is_wrong(body):
    columns: dict[str, Dtype] = {"x": "float64", "flag": "bool", "dep delay": "string"}
    signature = Signature(
        inputs=tuple(Column(name=n, dtype=d) for n, d in columns.items()), task="binary"
    )
    codec = Codec(signature, unit="user", time="at")
    try:
        decoded = codec.decode(body)
    except KeepwellError as error:
        refused = error.code
    else:
        refused = ""
    if refused:
        assert refused == "invalid_input"
        return
    assert decoded.features is not None
    assert decoded.matrix is not None
    n = len(decoded.features)
    assert decoded.matrix.shape == (n, 3)
    assert len(decoded.units) == n
    assert len(decoded.times) == (0 if decoded.probe else n)
    assert not decoded.ids or len(decoded.ids) == n
    # What was accepted must also fit the log.
    msgspec.msgpack.encode((decoded.features, decoded.units, decoded.times))


@pytest.mark.parametrize("name", ["a b", "class", "1st", "ünï", "rows", "__x", "self", "c0"])
def test_columns_may_have_any_name(name):
    columns: dict[str, Dtype] = {name: "float64", "x": "float64"}
    codec = Codec(
        Signature(
            inputs=tuple(Column(name=n, dtype=d) for n, d in columns.items()), task="regression"
        )
    )
    decoded = codec.decode(msgspec.json.encode({"rows": [{name: 1, "x": None}]}))
    assert decoded.features == [(1.0, None)]
