"""HTTP/1.1 on an asyncio.Protocol: httptools parses, the tick batches, answers leave in the order of the requests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

import httptools
import msgspec

from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.codec import JSON, encode_error
from keepwell.serving.protocols import Call, Reply, mlflow, openinference
from keepwell.serving.telemetry.notes import Note
from keepwell.serving.transport import plain
from keepwell.serving.transport.floor import MAX_BODY, MAX_HEADERS, MAX_URL, Floor, Head, Slot
from keepwell.serving.transport.gate import DENIED, OPEN

MAX_PIPELINE = 128
MAX_PATIENCE = 3600.0
"""A deadline further away than this is one of an hour."""
IDLE_SECONDS = 75.0
"""So long a connection may bring nothing whole: no request, the rest of one, or room for answers."""
SLICE = 16 * 1024
"""What is parsed at once. Behind it is seen whether the answers find their way: a client that asks and does not
read must not fill the memory."""
MAX_READING = 128 * 1024 * 1024
"""Bytes of bodies that have not come in full, over all connections of a worker."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect"})
MAX_KNOWN_HEAD = 2048

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_STARTS = {
    status: f"HTTP/1.1 {status} {reason}\r\ncontent-type: ".encode()
    for status, reason in _REASONS.items()
}
SHORT = 2048
_JSON_HEADS = [
    b"%s%s\r\ncontent-length: %d\r\n\r\n" % (_STARTS[200], JSON, length) for length in range(SHORT)
]
"""Heads of good answers that are as short as most are."""
_BEARER = JSON + b"\r\nwww-authenticate: Bearer"
PROTOCOLS = (openinference, mlflow)
"""Who is asked, in this order, for a path that plain rows do not answer."""


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
        self._headers: dict[bytes, bytes] = {}
        self._framing: list[tuple[bytes, bytes]] = []
        self._expect = False
        self._chunked = False
        self._closing = False
        self._paused = False
        """Nothing is read, because the answers do not leave or are not there yet."""
        self._full = False
        """The client does not read its answers."""
        self._careful = False
        """An answer may not leave the shortest way: reading is paused, or the worker drains."""
        self._backlog = b""
        """What came and is not parsed yet."""
        self._ended = False
        """Nothing comes behind it."""
        self._parsing = False
        self._inside = False
        """The parser has a part of a request."""
        self._headed = False
        """It has that request's head."""
        self._fed = 0
        """Bytes that were fed since a head began or a chunk brought something."""
        self._finished = 0
        self._known: Head | None = None
        """What the last head said, where that may be remembered."""
        self._sweeps = 0
        self._asked = False
        self._client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self._careful = self._floor.draining
        if not self._floor.enter(self):
            self._reject(503, "This worker has as many connections as it can hold.")

    def connection_lost(self, exc: Exception | None) -> None:
        """End: answers that are still due have nobody to go to; what was logged stays logged."""
        del exc
        self._floor.connections.discard(self)
        self._closing = True
        self._backlog = b""
        self._let_go()

    def rest(self, seconds: float) -> None:
        """See ``Guest``: count the sweeps since something whole came or left."""
        self._sweeps += 1
        transport = self._transport
        if transport is None or self._sweeps * seconds <= IDLE_SECONDS:
            return
        if self._full or transport.is_closing():
            transport.abort()  # to close it would wait for a client that does not read
        elif self._inside and not self._closing:
            self._reject(408, "The request did not come in full in time.")
        elif not self._slots:
            transport.close()

    def give_way(self) -> bool:
        """Close if nothing whole came for a sweep and nothing is due; tell whether it does."""
        if self._sweeps and not self._slots and self._transport is not None:
            self._transport.abort()
            return True
        return False

    def pause_writing(self) -> None:
        """Read no more requests while the client does not read its answers."""
        self._full = True
        self._hold()

    def resume_writing(self) -> None:
        """Go on reading."""
        self._full = False
        self._sweeps = 0
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._closing:
            return
        if self._paused:
            self._backlog += data  # what was on its way when reading was paused
            return
        self._asked = True
        floor = self._floor
        begins = not self._inside
        end = 0
        if begins:
            end = data.find(b"\r\n\r\n") + 4
            known = floor.heads.get(data[:end])
            if known is not None and len(data) == end + known.length and not floor.draining:
                # Most clients send the same head again and again: it is read in full once.
                self._sweeps = 0
                slot = Slot()
                self._slots.append(slot)
                if floor.noting:
                    path = (
                        known.call.path if known.call else f"/v1/endpoints/{known.endpoint}/predict"
                    )
                    self._note(slot, "POST", path, known.length, known.parent)
                if known.call is None:
                    ask = Ask(known.endpoint, data[end:], time.perf_counter())
                    if known.headers:
                        ask.headers = known.headers
                    if known.seconds:
                        ask.deadline = ask.began + known.seconds
                    floor.submit(ask, self, slot)
                else:
                    again = msgspec.structs.replace(
                        known.call, body=data[end:], began=time.perf_counter()
                    )
                    self._route(slot, again, known.seconds)
                if len(self._slots) > MAX_PIPELINE:
                    self._hold()
                return
        self._finished = 0
        self._parse(data)
        known = self._known
        whole = begins and self._finished == 1 and not self._inside and not self._closing
        if (
            known is not None
            and whole
            and end <= MAX_KNOWN_HEAD
            and len(data) == end + known.length
        ):
            floor.remember(data[:end], known)

    def _parse(self, data: bytes) -> None:
        """Parse as much as may be answered now; the rest is put by."""
        self._parsing = True
        start = 0
        while start < len(data) and not self._closing:
            if self._paused:
                self._backlog = data[start:]
                break
            part = data[start : start + SLICE] if start or len(data) > SLICE else data
            start += self._feed(part)
            self._hold()
        self._parsing = False
        if self._floor.draining:
            self._flush()

    def _feed(self, part: bytes) -> int:
        """Give a part to the parser; tell how much of it was read."""
        had = len(self._body)
        try:
            self._parser.feed_data(part)
        except httptools.HttpParserUpgrade as upgrade:
            return self._pass_over(int(upgrade.args[0]))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, _Limit):
                self._reject(cause.status, str(cause))
            else:
                self._reject(400, "The request cannot be read.")
        except httptools.HttpParserError as error:
            self._reject(400, f"The request is not HTTP/1.1: {error}.")
        if self._inside and (not self._headed or len(self._body) == had):
            # The parser keeps a header's line until it ends, and tells nobody how long it is.
            self._fed += len(part)
            if self._fed > MAX_HEADERS + MAX_URL + SLICE and not self._closing:
                self._reject(431, f"The headers are larger than {MAX_HEADERS:,} bytes.")
        else:
            self._fed = 0
        return len(part)

    def _pass_over(self, read: int) -> int:
        """Go on as if no other protocol had been offered; tell how much of the part was read.

        Java's client offers HTTP/2 with every first request. The parser takes what follows such a head for that
        protocol, be it the body: so another parser is told the same head without the offer.
        """
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if method == b"CONNECT":
            self._reject(405, "This is no proxy.")
            return read
        lines = [b"%s: %s\r\n" % each for each in (*self._headers.items(), *self._framing)]
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self._url, version, b"".join(lines))
        self._parser = httptools.HttpRequestParser(self)
        self._feed(head)
        return read

    def _hold(self) -> None:
        busy = self._full or len(self._slots) > MAX_PIPELINE
        if busy and self._transport is not None and not self._paused:
            self._paused = self._careful = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Read on, what was put by first, once answers leave again."""
        if not self._paused or self._parsing or self._full or self._closing:
            return
        if len(self._slots) >= MAX_PIPELINE // 2:
            return
        self._paused = False
        self._careful = self._floor.draining
        if self._backlog:
            data, self._backlog = self._backlog, b""
            self._parse(data)
        transport = self._transport
        if self._paused or self._closing or transport is None:
            return
        if not self._ended:
            transport.resume_reading()
        elif not self.eof_received():
            transport.close()

    def _let_go(self) -> None:
        """Forget a request that did not come in full."""
        if self._inside:
            self._floor.reading -= len(self._body)
            self._inside = False
            self._body = bytearray()

    def _note(self, slot: Slot, method: str, path: str, size: int, parent: bytes) -> None:
        if not self._client and self._transport is not None:
            address = self._transport.get_extra_info("peername")
            self._client = f"{address[0]}:{address[1]}" if address else "unknown"
        slot.note = Note(time.perf_counter(), method, path, self._client, size, parent)

    def _reject(self, status: int, message: str) -> None:
        slot = Slot()
        if self._floor.noting:
            path = self._url.split(b"?", 1)[0].decode("latin-1")
            self._note(slot, "", path, len(self._body), b"")
        slot.close = True
        self._slots.append(slot)
        self._closing = True
        self._backlog = b""
        self._let_go()
        self.fill(slot, status, encode_error(message))

    # httptools calls these.

    def on_message_begin(self) -> None:
        """Make room for the next request."""
        self._inside = True
        self._headed = False
        self._fed = 0
        self._sweeps = 0
        self._known = None
        self._chunked = False
        self._body = bytearray()
        self._url = b""
        self._header_bytes = 0
        self._headers = {}
        self._framing = []
        self._expect = False

    def on_url(self, url: bytes) -> None:
        """Collect the URL."""
        self._url += url
        if len(self._url) > MAX_URL:
            raise _Limit(431, f"The URL is longer than {MAX_URL:,} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Watch the headers that matter and bound them all."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADERS:
            raise _Limit(431, f"The headers are larger than {MAX_HEADERS:,} bytes.")
        if self._headed:
            return  # a trailer: what it says comes too late to be acted on
        lower = name.lower()
        if lower == b"content-length" and value.isdigit() and int(value) > MAX_BODY:
            raise _Limit(413, f"The body is larger than {MAX_BODY:,} bytes.")
        if lower in self._floor.kept:
            self._headers[lower] = value
        if lower == b"transfer-encoding":
            self._chunked = True
        if lower in _FRAMING:
            self._framing.append((lower, value))
        if lower == b"expect" and value.lower() == b"100-continue":
            self._expect = True

    def on_headers_complete(self) -> None:
        """Let a client that asks first go on."""
        self._headed = True
        if self._parser.should_upgrade():
            return  # the same head comes again, without the offer
        if self._expect and self._transport is not None:
            if self._parser.get_http_version() == "1.0":
                return  # which knows no such answer
            if self._slots:
                self._slots.append(Slot(data=CONTINUE))  # answers to earlier requests go first
            else:
                self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Collect the body, bounded also where its length was not announced."""
        self._body += body
        floor = self._floor
        floor.reading += len(body)
        if len(self._body) > MAX_BODY:
            raise _Limit(413, f"The body is larger than {MAX_BODY:,} bytes.")
        if floor.reading > MAX_READING:
            raise _Limit(503, f"Over {MAX_READING:,} bytes of requests are on their way.")

    def on_message_complete(self) -> None:
        """Route one request."""
        if self._parser.should_upgrade():
            return  # ``_pass_over`` comes next
        began = time.perf_counter()
        self._inside = False
        self._finished += 1
        self._sweeps = 0
        self._floor.reading -= len(self._body)
        slot = Slot()
        slot.close = not self._parser.should_keep_alive()
        self._slots.append(slot)
        self.serve(slot, self._parser.get_method(), began)

    def serve(self, slot: Slot, method: bytes, began: float) -> None:
        """Answer one request that was read, or let the desk answer it."""
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        if self._floor.noting:
            parent = self._headers.get(b"traceparent", b"")
            self._note(slot, method.decode("latin-1"), path, len(self._body), parent)
        gate = self._floor.gate
        if gate.closed and not (
            path in OPEN or gate.admits(self._headers.get(b"authorization", b""))
        ):
            self.fill(slot, 401, encode_error(DENIED), content=_BEARER)
            return
        seconds = _patience(self._headers) if self._headers else 0.0
        if seconds < 0:
            self.fill(slot, 400, encode_error(_PATIENCE))
            return
        if method == b"POST" and path.startswith("/v1/endpoints/") and path.endswith("/predict"):
            name = path[len("/v1/endpoints/") : -len("/predict")]
            looked = self._floor.cohort_headers
            headers = {h: v for h, v in self._headers.items() if h in looked} if looked else {}
            if not (self._expect or self._chunked or slot.close):
                parent = self._headers.get(b"traceparent", b"") if self._headers else b""
                self._known = Head(len(self._body), name, seconds, headers, parent=parent)
            ask = Ask(name, bytes(self._body), began, headers=headers)
            if seconds:
                ask.deadline = began + seconds
            self._floor.submit(ask, self, slot)
            return
        slot.head = method == b"HEAD"
        verb = "GET" if slot.head else method.decode("latin-1")
        call = Call(
            method=verb, path=path, body=bytes(self._body), headers=self._headers, began=began
        )
        asked = self._route(slot, call, seconds)
        if asked and verb == "POST" and not (self._expect or self._chunked or slot.close):
            length = len(self._body)
            self._known = Head(
                length,
                seconds=seconds,
                call=msgspec.structs.replace(call, body=b""),
                parent=self._headers.get(b"traceparent", b""),
            )

    def _route(self, slot: Slot, call: Call, seconds: float) -> bool:
        """Let the protocol answer whose path it is; True if the desk is asked."""
        try:
            return self._routed(slot, call, seconds)
        except Exception as error:  # noqa: BLE001
            # The outermost door of what is answered at once: a request without an answer would hold up those behind it.
            self.fill(slot, 500, encode_error(f"{type(error).__name__}: {error}"[:500]))
            return False

    def _routed(self, slot: Slot, call: Call, seconds: float) -> bool:
        for protocol in PROTOCOLS:
            routed = protocol.route(self._floor.desk, call)
            if isinstance(routed, Ask):
                if seconds:
                    routed.deadline = routed.began + seconds
                self._floor.submit(routed, self, slot)
                return True
            if isinstance(routed, Reply):
                self.fill(slot, routed.status, routed.body, content=routed.content)
                return False
        plain.answer(self._floor, self, slot, call)
        return False

    def fill(self, slot: Slot, status: int, answer: bytes, *, content: bytes = JSON) -> None:
        """Give a request its answer; send whatever is next in order and complete."""
        length = len(answer)
        if slot.note is not None:
            self._floor.noted(slot.note, status, length)
        if status == 200 and length < SHORT and content is JSON and not (slot.close or slot.head):
            data = _JSON_HEADS[length] + answer
            slots = self._slots
            if len(slots) == 1 and slots[0] is slot and not self._careful:
                slots.clear()
                transport = self._transport
                if transport is not None and not transport.is_closing():
                    transport.write(data)
                return
            slot.data = data
        else:
            if status != 200:
                self._floor.desk.meters.failed(status)
            slot.data = _written(slot, status, answer, content)
        self._flush()

    def _flush(self) -> None:
        """Send what is next in order and complete, and close behind the last answer of a worker that drains."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        draining = self._floor.draining
        if draining and self._parsing:
            return  # only behind it is known which answer is the last
        out: list[bytes] = []
        closing = False
        slots = self._slots
        while slots and slots[0].data is not None:
            first = slots.popleft()
            data = first.data
            assert data is not None
            closing = first.close
            if draining and not (closing or slots or self._inside or self._backlog):
                data = data.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
                closing = True
            out.append(data)
            if closing:
                slots.clear()
        if out:
            transport.write(b"".join(out))
        if closing:
            self._closing = True
            self._backlog = b""
            transport.close()
        else:
            self._go_on()

    def eof_received(self) -> bool:
        """Keep a half-closed connection open while answers are due, and close it behind the last one."""
        if self._backlog:
            self._ended = True
            return True
        if not self._slots:
            return False
        self._closing = True
        self._let_go()
        self._slots[-1].close = True
        return True

    def drain(self, *, idle: bool, silent: bool) -> None:
        """Close once nothing is due: if ``idle`` at once, else behind the next answer, which says so.

        Where no request ever came, it may be on its way, so only if ``silent``.
        """
        self._careful = True
        due = bool(self._slots) or self._inside or bool(self._backlog)
        if not due and (idle if self._asked else silent) and self._transport is not None:
            self._transport.close()


def _written(slot: Slot, status: int, answer: bytes, content: bytes) -> bytes:
    return b"%s%s\r\ncontent-length: %d%s%s\r\n\r\n%s" % (
        _STARTS.get(status, _STARTS[500]),
        content,
        len(answer),
        b"\r\nretry-after: 1" if status == 503 and b"retry-after" not in content else b"",
        b"\r\nconnection: close" if slot.close else b"",
        b"" if slot.head else answer,
    )


_PATIENCE = (
    "A deadline is a number above zero: milliseconds in x-deadline-ms, seconds in request-timeout."
)


def _patience(headers: Mapping[bytes, bytes]) -> float:
    """Give the seconds that a caller waits; 0 if it does not say, below 0 if it says what is no such number."""
    given, unit = headers.get(b"x-deadline-ms"), 0.001
    if given is None:
        given, unit = headers.get(b"request-timeout"), 1.0
    if given is None:
        return 0.0
    try:
        seconds = float(given) * unit
    except ValueError:
        return -1.0
    return min(seconds, MAX_PATIENCE) if seconds > 0 else -1.0


class _Limit(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
