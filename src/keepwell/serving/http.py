"""HTTP/1.1 on an asyncio.Protocol: httptools parses, the tick batches, answers leave in the order of the requests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, cast

import httptools
import msgspec

from keepwell.core.errors import KeepwellError
from keepwell.core.records.predictions import Outcome
from keepwell.serving.codec import encode, encode_error, event_time
from keepwell.serving.desk import Ask, Desk

MAX_BODY = 16 * 1024 * 1024
MAX_HEADERS = 64 * 1024
MAX_PIPELINE = 128
IDLE_SECONDS = 75.0
GROUP_SECONDS = 0.01
"""With the log level ``group`` the disk is brought up to date this often."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_HEADS = {
    status: f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: ".encode()
    for status, reason in _REASONS.items()
}
_TEXT_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: "


class _OutcomeRow(msgspec.Struct, kw_only=True):
    id: str
    endpoint: str
    value: float
    time: int | str | None = None


class _OutcomeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    outcomes: list[_OutcomeRow]


_outcome_decoder = msgspec.json.Decoder(_OutcomeBody)


class Slot:
    """The place of one request in its connection's order, and its answer once there is one."""

    __slots__ = ("close", "data", "head")

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.close = False
        self.head = False


class Floor:
    """What the connections of one worker share: the desk, the requests of this tick, the state of draining."""

    def __init__(self, desk: Desk, loop: asyncio.AbstractEventLoop) -> None:
        self.desk = desk
        self.loop = loop
        self.pending: list[tuple[Ask, Connection, Slot]] = []
        self.scheduled = False
        self.connections: set[Connection] = set()
        self.draining = False
        self._sync_at: asyncio.TimerHandle | None = None
        self._sync_problem = ""

    def submit(self, ask: Ask, connection: Connection, slot: Slot) -> None:
        """Queue a request for the end of this tick of the event loop."""
        self.pending.append((ask, connection, slot))
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.tick)

    def tick(self) -> None:
        """Answer everything that arrived in this tick together."""
        self.scheduled = False
        work, self.pending = self.pending, []
        asks = [ask for ask, _, _ in work]
        try:
            later = self.desk.answer(asks)
        except Exception as error:  # noqa: BLE001
            # The outermost door of the hot path: one bad batch must not end the worker.
            later = False
            for ask in asks:
                if not ask.status:
                    ask.status, ask.answer = (
                        500,
                        encode_error(f"{type(error).__name__}: {error}"[:500]),
                    )
        for ask, connection, slot in work:
            connection.fill(slot, ask.status, ask.answer)
        self.loop.call_soon(self._shadow)
        if later:
            self._sync_later()

    def _shadow(self) -> None:
        if self.desk.shadow():
            self._sync_later()

    def _sync_later(self) -> None:
        if self._sync_at is None:
            self._sync_at = self.loop.call_later(GROUP_SECONDS, self._sync)

    def _sync(self) -> None:
        self._sync_at = None
        # The disk is waited for in a thread, so that the loop goes on answering.
        self.loop.run_in_executor(None, self._sync_quietly)

    def _sync_quietly(self) -> None:
        problem = ""
        try:
            self.desk.sync()
        except KeepwellError as error:
            problem = str(error)
        if problem or self.desk.problem == self._sync_problem:
            self.desk.problem = problem  # and a disk that takes it again ends the problem
        self._sync_problem = problem


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._parser: Any = None
        self._transport: asyncio.Transport | None = None
        self._slots: deque[Slot] = deque()
        self._body = bytearray()
        self._url = b""
        self._header_bytes = 0
        self._too_large = 0
        self._expect = False
        self._closing = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self._floor.connections.add(self)
        self._touch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: answers that are still due have nobody to go to; what was logged stays logged."""
        del exc
        self._floor.connections.discard(self)
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()

    def _touch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._floor.loop.call_later(IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        if self._transport is not None and not self._slots:
            self._transport.close()
        else:
            self._touch()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._reject(400, "Upgrades are not supported here.")
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, _Limit):
                self._reject(cause.status, str(cause))
            else:
                self._reject(400, "The request cannot be read.")
        except httptools.HttpParserError as error:
            self._reject(400, f"The request is not HTTP/1.1: {error}.")
        if len(self._slots) > MAX_PIPELINE and self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _reject(self, status: int, message: str) -> None:
        slot = Slot()
        slot.close = True
        self._slots.append(slot)
        self._closing = True
        self.fill(slot, status, encode_error(message))

    # httptools calls these.

    def on_message_begin(self) -> None:
        """Make room for the next request."""
        self._body = bytearray()
        self._url = b""
        self._header_bytes = 0
        self._expect = False

    def on_url(self, url: bytes) -> None:
        """Collect the URL."""
        self._url += url
        if len(self._url) > 8192:
            raise _Limit(431, "The URL is longer than 8,192 bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Watch the headers that matter and bound them all."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADERS:
            raise _Limit(431, f"The headers are larger than {MAX_HEADERS:,} bytes.")
        lower = name.lower()
        if lower == b"content-length" and value.isdigit() and int(value) > MAX_BODY:
            raise _Limit(413, f"The body is larger than {MAX_BODY:,} bytes.")
        if lower == b"expect" and value.lower() == b"100-continue":
            self._expect = True

    def on_headers_complete(self) -> None:
        """Let a client that asks first go on."""
        if self._expect and self._transport is not None and not self._slots:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body, bounded also where its length was not announced."""
        self._body += body
        if len(self._body) > MAX_BODY:
            raise _Limit(413, f"The body is larger than {MAX_BODY:,} bytes.")

    def on_message_complete(self) -> None:
        """Route one request."""
        began = time.perf_counter()
        self._touch()
        slot = Slot()
        slot.close = not self._parser.should_keep_alive() or self._floor.draining
        self._slots.append(slot)
        method: bytes = self._parser.get_method()
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        if method == b"POST" and path.startswith("/v1/endpoints/") and path.endswith("/predict"):
            name = path[len("/v1/endpoints/") : -len("/predict")]
            self._floor.submit(Ask(endpoint=name, body=bytes(self._body), began=began), self, slot)
            return
        slot.head = method == b"HEAD"
        self._plain(slot, "GET" if slot.head else method.decode("latin-1"), path)

    def _plain(self, slot: Slot, method: str, path: str) -> None:
        desk = self._floor.desk
        if method == "POST" and path == "/v1/outcomes":
            self._outcomes(slot)
        elif method != "GET":
            known = path in {"/live", "/ready", "/metrics", "/v1/endpoints", "/v1/outcomes"}
            self.fill(
                slot, 405 if known else 404, encode_error(f"{method} {path} is not served here.")
            )
        elif path in {"/live", "/v2/health/live"}:
            self.fill(slot, 200, b'{"live":true}')
        elif path in {"/ready", "/v2/health/ready"}:
            ready = bool(desk.endpoints) and not desk.problem
            self.fill(
                slot,
                200 if ready else 503,
                encode({"ready": ready, "edition": desk.edition, "problem": desk.problem}),
            )
        elif path == "/metrics":
            self.fill(slot, 200, desk.meters.render().encode(), text=True)
        elif path == "/v1/endpoints":
            self.fill(slot, 200, encode(_describe(desk)))
        else:
            self.fill(
                slot,
                404,
                encode_error(
                    f"There is nothing at {path}. Predictions: POST /v1/endpoints/NAME/predict."
                ),
            )

    def _outcomes(self, slot: Slot) -> None:
        desk = self._floor.desk
        arrived = time.time_ns() // 1000
        try:
            given = _outcome_decoder.decode(bytes(self._body)).outcomes
            rows = [
                Outcome(
                    id=row.id,
                    time=_moment(row.time, arrived),
                    endpoint=row.endpoint,
                    value=row.value,
                    arrived=arrived,
                )
                for row in given
            ]
            unknown = {row.endpoint for row in rows} - set(desk.endpoints)
            if unknown:
                self.fill(slot, 404, encode_error(f"There is no endpoint {min(unknown)!r}."))
                return
            if rows:
                desk.outcomes(rows)
                desk.meters.outcomes += len(rows)
                if any(desk.endpoints[row.endpoint].edition.log == "sync" for row in rows):
                    desk.sync()
                else:
                    self._floor._sync_later()  # noqa: SLF001 - the floor and its connections are one piece
            self.fill(slot, 200, encode({"accepted": len(rows)}))
        except msgspec.DecodeError as error:
            self.fill(
                slot,
                422,
                encode_error(
                    f'{error}. Send {{"outcomes": [{{"id", "endpoint", "value", "time"}}]}}.'
                ),
            )
        except KeepwellError as error:
            self.fill(slot, 422 if error.code == "invalid_input" else 503, encode_error(str(error)))

    def fill(self, slot: Slot, status: int, answer: bytes, *, text: bool = False) -> None:
        """Give a request its answer; send whatever is next in order and complete."""
        head = _TEXT_HEAD if text else _HEADS.get(status, _HEADS[500])
        extra = b"\r\nretry-after: 1" if status == 503 else b""
        tail = b"\r\nconnection: close\r\n\r\n" if slot.close else b"\r\n\r\n"
        slot.data = head + str(len(answer)).encode() + extra + tail + (b"" if slot.head else answer)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        out: list[bytes] = []
        closing = False
        while self._slots and self._slots[0].data is not None:
            first = self._slots.popleft()
            assert first.data is not None
            out.append(first.data)
            closing = first.close
            if closing:
                self._slots.clear()
        if out:
            transport.write(b"".join(out))
        if closing:
            self._closing = True
            transport.close()
        elif self._paused and len(self._slots) < MAX_PIPELINE // 2:
            self._paused = False
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Keep a half-closed connection open while answers are due, and close it behind the last one."""
        if not self._slots:
            return False
        self._closing = True
        self._slots[-1].close = True
        return True

    def drain(self) -> None:
        """Close once nothing is due."""
        if not self._slots and self._transport is not None:
            self._transport.close()


class _Limit(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _moment(given: int | str | None, arrived: int) -> int:
    if given is None:
        return arrived
    return event_time(given)


def _describe(desk: Desk) -> dict[str, Any]:
    return {
        "edition": desk.edition,
        "problem": desk.problem,
        "endpoints": [
            {
                "name": name,
                "model": serving.edition.model,
                "plan": serving.edition.plan,
                "refused": serving.edition.refused,
                "unit": serving.edition.unit,
                "time": serving.edition.time,
                "columns": list(serving.codec.names) if serving.codec else [],
                "arms": [_arm(loaded.arm) for loaded in serving.arms],
                "mirrors": [_arm(loaded.arm) for loaded in serving.mirrors],
                "left_out": list(serving.left_out),
            }
            for name, serving in desk.endpoints.items()
        ],
    }


def _arm(arm: Any) -> dict[str, Any]:
    return {
        "name": arm.name,
        "version": arm.version,
        "weight": arm.weight,
        "artefact": arm.artefact,
    }
