"""Clients that are slow, greedy or hostile: each costs a bounded amount, and nobody else notices."""

from __future__ import annotations

import asyncio
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import pytest
import uvloop
from tests.serving.gateways import PATIENCE, Gateway, arm, endpoint, linear, request

from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loader
from keepwell.serving.editions import Edition, Shelf
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.sockets import bind
from keepwell.serving.telemetry.meters import Meters
from keepwell.serving.transport import floor, http
from keepwell.serving.transport.floor import SWEEP_SECONDS, Floor
from keepwell.serving.transport.http import Connection

GOOD = request(b'{"rows":[{"x":1,"flag":true,"dep delay":null}]}')
LIVE = request(b"", method="GET", path="/live")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    shelf = Shelf(folder / "editions")
    made = Desk(
        SegmentWriter(folder / "log", name="w"), worker="w", meters=Meters(folder / "m", worker="w")
    )
    arms = [arm(1, linear(shelf, 1.0))]
    made.endpoints = Loader(shelf).load(
        Edition(number=1, endpoints=(endpoint(arms=arms, log="group"),))
    )
    made.edition = 1
    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.35)


class Server:
    """A floor behind a real socket, in a thread of this process, so that a test sees what it holds."""

    @property
    def connections(self) -> list[Connection]:
        return [cast("Connection", each) for each in self.floor.connections]

    def __init__(self, desk: Desk) -> None:
        self.loop = uvloop.new_event_loop()
        self.floor = Floor(desk, self.loop)
        self.port = 0
        self._there = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._there.wait(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        listening = bind("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        made = self.loop.run_until_complete(
            self.loop.create_server(lambda: Connection(self.floor), sock=listening)
        )
        self._there.set()
        self.loop.run_forever()
        made.close()
        for connection in list(self.floor.connections):
            connection.drain(idle=True, silent=True)
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)

    @contextmanager
    def client(self, *, window: int = 0) -> Iterator[socket.socket]:
        made = socket.socket()
        if window:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        made.settimeout(PATIENCE)
        made.connect(("127.0.0.1", self.port))
        with made:
            yield made

    def until(self, true: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true() and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.01)
        assert true()  # type: ignore[operator]


@pytest.fixture
def server(desk: Desk) -> Iterator[Server]:
    made = Server(desk)
    yield made
    made.close()


def everything(client: socket.socket) -> bytes:
    """Read until the other side closes."""
    found = b""
    with suppress(ConnectionResetError):
        while more := client.recv(65536):
            found += more
    return found


def answered(client: socket.socket, count: int, said: bytes = b"") -> bytes:
    """Read until so many answers came."""
    while said.count(b"HTTP/1.1 ") < count or not said.endswith(b"}"):
        more = client.recv(65536)
        assert more, said
        said += more
    return said


def said_something(client: socket.socket, *, within: float) -> bool:
    """Tell whether an answer, or the end, is there to be read."""
    return bool(select.select([client], [], [], within)[0])


def _unsent(connection: Connection) -> int:
    assert connection._transport is not None
    return connection._transport.get_write_buffer_size()


@pytest.mark.parametrize(
    "start",
    [
        b"GET /live HTTP/1.1\r\nx: ",
        b"GET /live HTTP/1.1\r\n",
        b"POST /v1/endpoints/e/predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
        b"POST /v1/endpoints/e/predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;x=",
    ],
    ids=["value", "name", "trailer", "chunk-extension"],
)
def test_a_line_that_never_ends_is_refused_while_it_is_small(server: Server, start: bytes):
    sent = 0
    with server.client() as client:
        client.sendall(start)
        with suppress(ConnectionError):
            while sent < 400 * 4096 and not said_something(client, within=0.005):
                client.sendall(b"a" * 4096)
                sent += 4096
        assert everything(client).startswith(b"HTTP/1.1 431") or sent < 400 * 4096
    assert sent < 400 * 4096, "it was read to the end"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "pieces",
    [[b"P", b"O", b"ST /v1"], [GOOD[:-20], b"a", b"b", b"c"], [LIVE + LIVE[:9], b"v", b"e"]],
    ids=["head", "body", "second"],
)
def test_a_request_that_trickles_is_told_that_its_time_is_over(server: Server, pieces):
    with server.client() as client:
        said = b""
        for piece in pieces:
            if b" 408 " in said:
                break  # the machine is so busy that its time is over already
            client.sendall(piece)
            time.sleep(0.05)
            if said_something(client, within=0):
                said += client.recv(65536)
        said += everything(client)
    assert b"HTTP/1.1 408 Request Timeout" in said
    assert b"connection: close" in said
    server.until(lambda: server.floor.reading == 0)


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_says_nothing_is_closed_and_one_that_is_used_stays(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http, "IDLE_SECONDS", 1.0)  # far longer than between two requests
    with server.client() as silent, server.client() as busy:
        deadline = time.monotonic() + PATIENCE
        while not said_something(silent, within=0.02) and time.monotonic() < deadline:
            busy.sendall(GOOD)
            assert answered(busy, 1).startswith(b"HTTP/1.1 200")
        assert silent.recv(10) == b""
        busy.sendall(GOOD)
        assert answered(busy, 1).startswith(b"HTTP/1.1 200")


def test_who_asks_and_does_not_read_is_not_read_either_and_gets_every_answer_later(server: Server):
    count = 250_000
    asked = LIVE * count
    with server.client() as client:
        client.sendall(LIVE)
        answered_alone = answered(client, 1)
    with server.client(window=4096) as client:
        client.setblocking(False)
        sent = 0
        quiet = time.monotonic() + 1.0
        while sent < len(asked) and time.monotonic() < quiet:
            try:
                sent += client.send(asked[sent : sent + 262_144])
                quiet = time.monotonic() + 1.0
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < len(asked), "the server read without end what it could not answer"
        server.until(lambda: max(map(_unsent, server.connections)) > 0)
        most = max(map(_unsent, server.connections))
        assert 0 < most < 1_000_000, "what one client does not read is little"
        client.setblocking(True)
        client.settimeout(PATIENCE)
        rest = threading.Thread(target=lambda: client.sendall(asked[sent:]))
        rest.start()
        said = bytearray()
        one = len(answered_alone)
        while len(said) < count * one:
            more = client.recv(1 << 20)
            assert more
            said += more
        rest.join()
    assert said == answered_alone * count


@pytest.mark.usefixtures("impatient")
def test_who_never_reads_is_let_go(server: Server):
    with server.client(window=4096) as client:
        client.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                client.send(LIVE * 1000)
        server.until(lambda: not server.floor.connections)


def test_bodies_on_their_way_are_bounded_over_all_connections(server: Server, monkeypatch):
    monkeypatch.setattr(http, "MAX_READING", 300_000)
    head = b"POST /v1/endpoints/e/predict HTTP/1.1\r\ncontent-length: 200000\r\n\r\n"
    with server.client() as first, server.client() as second:
        first.sendall(head + b" " * 190_000)
        server.until(lambda: server.floor.reading == 190_000)
        second.sendall(head + b" " * 190_000)
        said = everything(second)
        assert said.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in said
        server.until(lambda: server.floor.reading == 190_000)
        first.sendall(b" " * 10_000)
        assert answered(first, 1).startswith(b"HTTP/1.1 422")
        assert server.floor.reading == 0


def test_connections_are_bounded_and_idle_ones_make_room(server: Server, monkeypatch):
    monkeypatch.setattr(floor, "ROOM_SECONDS", 0.0)
    server.floor.most = 3
    with server.client() as busy, server.client() as idle, server.client() as silent:
        server.until(lambda: len(server.floor.connections) == 3)
        with server.client() as fourth:
            said = everything(fourth)
            assert said.startswith(b"HTTP/1.1 503")
            assert b"connections" in said
        for connection in list(server.floor.connections):
            server.loop.call_soon_threadsafe(connection.rest, SWEEP_SECONDS)
        server.until(lambda: all(each._sweeps for each in server.connections))
        for client in (busy, idle):
            client.sendall(GOOD)
            assert answered(client, 1).startswith(b"HTTP/1.1 200")
        with server.client() as fifth:
            fifth.sendall(GOOD)
            assert answered(fifth, 1).startswith(b"HTTP/1.1 200")
        with suppress(ConnectionResetError):
            assert silent.recv(10) == b""
        busy.sendall(GOOD)
        assert answered(busy, 1).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_offer_of_another_protocol_is_passed_over(gateway: Gateway, method: str):
    # Java's client offers HTTP/2 this way with every first request.
    lines = (
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQA\r\n"
    )
    body = b'{"rows":[{"x":1,"flag":true,"dep delay":null}]}' if method == "POST" else b""
    path = "/v1/endpoints/e/predict" if method == "POST" else "/live"
    offered = request(body, method=method, path=path, extra=lines)
    said = gateway.raw(offered + GOOD + offered + LIVE, half_close=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"] * 4


def test_the_word_to_go_on_keeps_its_place_behind_earlier_answers(gateway: Gateway):
    asked = request(
        b'{"rows":[{"x":1,"flag":true,"dep delay":null}]}', extra="expect: 100-continue\r\n"
    )
    said = gateway.raw(GOOD + asked + LIVE, half_close=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"100", b"200", b"200"]
    old = gateway.raw(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert re.findall(rb"HTTP/1.1 (\d+)", old) == [b"200"]


@pytest.mark.parametrize(
    "lines",
    [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4, 4\r\n",
        "content-length: +4\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "content-length : 4\r\n",
        "content-length: 4\r\n folded: yes\r\n",
    ],
)
def test_a_request_of_two_lengths_is_refused_so_that_nothing_is_smuggled(gateway: Gateway, lines):
    head = f"POST /v1/endpoints/e/predict HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode()
    said = gateway.raw(head + b"0\r\n\r\n" + LIVE, half_close=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"400"]


@pytest.mark.parametrize(
    "path", ["/live", "/ready", "/metrics", "/v1/endpoints", "/v2", "/nothing"]
)
def test_head_is_answered_as_get_is_without_a_body(gateway: Gateway, path: str):
    said = gateway.raw(
        request(b"", method="HEAD", path=path) + request(b"", method="GET", path=path),
        half_close=True,
    )
    head, rest = said.split(b"\r\n\r\n", 1)
    assert rest.startswith(b"HTTP/1.1 ")
    whole, body = rest.split(b"\r\n\r\n", 1)
    assert int(re.search(rb"content-length: (\d+)", whole)[1]) == len(body) > 0  # type: ignore[index]
    assert head.split(b"\r\n")[0] == whole.split(b"\r\n")[0]


def test_a_body_cut_off_by_a_half_close_is_not_answered_as_if_it_were_whole(gateway: Gateway):
    assert gateway.raw(GOOD[:-5], half_close=True) == b""
    said = gateway.raw(GOOD + GOOD[:-5], half_close=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"]


def test_what_a_trailer_says_is_passed_over(gateway: Gateway):
    body = b'{"rows":[{"x":1,"flag":true,"dep delay":null}]}'
    head = b"POST /v1/endpoints/e/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%s\r\n0\r\nx-deadline-ms: never\r\n\r\n" % (
        len(body),
        body,
    )
    said = gateway.raw(head + chunks + LIVE, half_close=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"200"]


def test_a_worker_that_drains_answers_all_of_a_pipeline_and_says_which_answer_is_the_last(
    server: Server,
):
    with server.client() as client, server.client() as idle:
        for each in (client, idle):
            each.sendall(GOOD)
            answered(each, 1)

        def drain() -> None:
            server.floor.draining = True
            for connection in list(server.floor.connections):
                connection.drain(idle=False, silent=False)

        server.loop.call_soon_threadsafe(drain)
        server.until(lambda: server.floor.draining)
        client.sendall(LIVE + GOOD + LIVE + GOOD)
        said = everything(client)
        idle.sendall(LIVE)
        last = everything(idle)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"] * 4
    assert [b"connection: close" in each for each in said.split(b"HTTP/1.1 ")[1:]] == [
        False,
        False,
        False,
        True,
    ]
    assert last.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in last
