"""HTTP/1.1 on an asyncio.Protocol: httptools parses, the tick batches, answers leave in the order of the requests."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, cast

import httptools
import msgspec

from keepwell.core.errors import KeepwellError
from keepwell.core.records.predictions import Outcome
from keepwell.serving.desk.beside import Beside
from keepwell.serving.desk.codec import NOT_JSON, encode, encode_error, event_time
from keepwell.serving.desk.desk import Ask, Desk
from keepwell.serving.desk.gaps import Gap
from keepwell.serving.desk.intake import MAX_PENDING_BYTES, refuse
from keepwell.serving.protocols import HEADERS, JSON, Call, Reply, mlflow, openinference
from keepwell.serving.telemetry.exposition import CONTENT_TYPE
from keepwell.serving.telemetry.metrics import gateway_page
from keepwell.serving.telemetry.notes import Listener, Note
from keepwell.serving.transport.gate import DENIED, OPEN, Gate
from keepwell.serving.transport.tls import Tls

MAX_BODY = 16 * 1024 * 1024
MAX_HEADERS = 64 * 1024
MAX_URL = 8 * 1024
MAX_PIPELINE = 128
MAX_PATIENCE = 3600.0
"""A deadline further away than this is one of an hour."""
IDLE_SECONDS = 75.0
"""So long a connection may bring nothing whole: no request, the rest of one, or room for answers."""
SWEEP_SECONDS = 15.0
"""One sweep over all connections closes the idle ones: a timer a connection would be set anew by each request."""
SLICE = 16 * 1024
"""What is parsed at once. Behind it is seen whether the answers find their way: a client that asks and does not
read must not fill the memory."""
MAX_READING = 128 * 1024 * 1024
"""Bytes of bodies that have not come in full, over all connections of a worker."""
MAX_CONNECTIONS = 10_000
SPARE_DESCRIPTORS = 128
"""Files that a worker may open beside its connections: the log's come before anybody's connection."""
ROOM_SECONDS = 1.0
"""So often a full worker looks for connections that it can do without."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect"})
MAX_SYNCS = 2
"""Waits for the disk side by side. One more makes smaller ticks, which cost more than a busy disk gives back."""
MAX_KNOWN_HEADS = 512
MAX_KNOWN_HEAD = 2048
GROUP_SECONDS = 0.01
"""With the log level ``group`` the disk is brought up to date this often."""

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
_TEXT = CONTENT_TYPE.encode()
PROTOCOLS = (openinference, mlflow)
"""Who is asked, in this order, for a path that plain rows do not answer."""


class _OutcomeRow(msgspec.Struct, kw_only=True):
    id: str
    endpoint: str
    value: float
    time: int | str | None = None


class _OutcomeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    outcomes: list[_OutcomeRow]


_outcome_decoder = msgspec.json.Decoder(_OutcomeBody)


class Slot(msgspec.Struct):
    """The place of one request in its connection's order, and its answer once there is one."""

    data: bytes | None = None
    close: bool = False
    head: bool = False
    note: Note | None = None
    """Where somebody wants to be told of the request."""


class Caller(Protocol):
    """Who asked, whatever it is connected by: told once, on the loop's thread, when its answer is there."""

    def fill(self, slot: Slot, status: int, answer: bytes, *, content: bytes = ...) -> None:
        """Take the answer to the request of ``slot``."""
        ...


class Head(msgspec.Struct, frozen=True):
    """What the bytes before a body said, when they were read in full: the same bytes say the same again."""

    length: int
    endpoint: str = ""
    seconds: float = 0.0
    """So long its caller waits; 0: for as long as it takes."""
    headers: Mapping[bytes, bytes] = {}
    """Those that a plan's cohorts look at."""
    call: Call | None = None
    """For another protocol than plain rows: the request, but for its body and time."""
    parent: bytes = b""
    """The header ``traceparent``."""


class Floor:
    """What the connections of one worker share: the desk, the requests of this tick, the state of draining."""

    def __init__(
        self, desk: Desk, loop: asyncio.AbstractEventLoop, gate: Gate | None = None
    ) -> None:
        self.desk = desk
        self.gate = gate or Gate()
        self.tls: Tls | None = None
        self.loop = loop
        self.pending: list[tuple[Ask, Caller, Slot]] = []
        self.scheduled = False
        self.size = 0
        """Bytes of the requests that wait for their tick."""
        self.hurried = False
        """One of them has a deadline."""
        self.connections: set[Connection] = set()
        self.most = min(
            MAX_CONNECTIONS,
            max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS, 1),
        )
        self.reading = 0
        """Bytes of bodies that have not come in full."""
        self.draining = False
        self.heads: dict[bytes, Head] = {}
        self.kept = HEADERS
        """Names of the headers that are kept of a request."""
        self.cohort_headers: frozenset[bytes] = frozenset()
        """Those of them that the plans in force look at."""
        self.gap: Gap[tuple[Ask, Caller, Slot]] = Gap()
        self._gap_at: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._sync_at: asyncio.TimerHandle | None = None
        self._sync_problem = ""
        self._waiting: list[Callable[[str], None]] = []
        self._held: list[tuple[Ask, Caller, Slot]] = []
        self._syncs = 0
        self._threads = ThreadPoolExecutor(MAX_SYNCS + 1, "sync")
        desk.beside = Beside(self)
        self.noting = False
        """Somebody listens."""
        self.listeners: list[Listener] = []
        self._noted: list[Note] = []
        self._undelivered = 0
        """Requests that are computed and wait for the disk."""

    def submit(self, ask: Ask, caller: Caller, slot: Slot) -> None:
        """Queue a request for the end of this tick of the event loop."""
        size = self.size + (ask.size or len(ask.body))
        if size > MAX_PENDING_BYTES:
            refuse(ask, "full", 1.0, f"Over {MAX_PENDING_BYTES:,} bytes of requests are waiting.")
            self.shed(ask, caller, slot)
            return
        self.size = size
        if ask.deadline:
            self.hurried = True
        self.pending.append((ask, caller, slot))
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.tick)

    def shed(self, ask: Ask, caller: Caller, slot: Slot) -> None:
        """Send a refusal, counted."""
        if slot.note is not None:
            slot.note.ask = ask
        desk = self.desk
        desk.meters.shed(ask.endpoint if ask.endpoint in desk.endpoints else "", ask.shed)
        caller.fill(slot, ask.status, ask.answer, content=ask.content)

    def _plan(self, work: list[tuple[Ask, Caller, Slot]]) -> list[tuple[Ask, Caller, Slot]]:
        """Refuse what cannot be answered in time, put off what others cannot wait for, and give the rest."""
        work, later, refused = self.desk.intake.plan(work, time.perf_counter())
        for ask, caller, slot in refused:
            self.shed(ask, caller, slot)
        for ask, caller, slot in later:
            self.submit(ask, caller, slot)  # the answers before it leave between the two ticks
        return work

    def tick(self) -> None:
        """Answer everything that arrived in this tick together."""
        self.scheduled = False
        work, self.pending = self.pending, []
        if self.noting:
            for ask, _, slot in work:
                if slot.note is not None:
                    slot.note.ask = ask
        if self._syncs >= MAX_SYNCS:
            # These would wait for the disk anyway: meanwhile more of them become one model call and one sync.
            waits = self.desk.waits
            self._held += [each for each in work if waits(each[0].endpoint)]
            work = [each for each in work if not waits(each[0].endpoint)]
        if self.gap.seconds:
            work = self._hold(work)
        desk = self.desk
        intake = desk.intake
        # Mostly everything fits, whichever endpoint it is for: then no request costs a look at its own pace.
        if self.hurried or self.size * intake.slope + intake.fixed > intake.limit:
            self.hurried = False
            self.size = 0
            work = self._plan(work)
        else:
            self.size = 0
        if self._held:
            self.size += sum([ask.size or len(ask.body) for ask, _, _ in self._held])
        try:
            desk.answer([ask for ask, _, _ in work])
        except Exception as error:  # noqa: BLE001
            # The outermost door of the hot path: one bad batch must not end the worker.
            for ask, _, _ in work:
                if not ask.status:
                    ask.refuse(500, f"{type(error).__name__}: {error}"[:500])
        self.send(work)

    def send(self, work: list[tuple[Ask, Caller, Slot]]) -> None:
        """Let answers go that are there: at once, or when the log is on the disk."""
        desk = self.desk
        waiting = []
        for each in work:
            ask, caller, slot = each
            if ask.waits:
                waiting.append(each)
            elif ask.aside is None or ask.status:
                caller.fill(slot, ask.status, ask.answer, content=ask.content)
            else:
                ask.aside(each)
        if waiting:
            self._undelivered += len(waiting)
            self.when_durable(partial(self._release, waiting))
        if desk.shadowing:
            self.loop.call_soon(self._shadow)
        if desk.unsynced:
            self.sync_later()

    def _shadow(self) -> None:
        self.desk.shadow()
        if self.desk.unsynced:
            self.sync_later()

    def sync_later(self) -> None:
        """Bring the log to the disk within ``GROUP_SECONDS``; nobody waits for it."""
        if self._sync_at is None:
            self._sync_at = self.loop.call_later(GROUP_SECONDS, self._sync_now)

    def _sync_now(self) -> None:
        self._sync_at = None
        self.desk.unsynced = False
        self._threads.submit(self._sync_in_thread, [])

    def when_durable(self, told: Callable[[str], None]) -> None:
        """Call back with nothing, or with what is wrong, once everything logged until now is on the disk.

        The disk is waited for in threads, so that the loop goes on reading, computing and logging meanwhile.
        What comes while ``MAX_SYNCS`` are under way is made durable by the next one, together.
        """
        self._waiting.append(told)
        if self._syncs < MAX_SYNCS:
            self._start_sync()

    def _start_sync(self) -> None:
        told, self._waiting = self._waiting, []
        self._syncs += 1
        self._threads.submit(self._sync_in_thread, told)

    def _sync_in_thread(self, told: list[Callable[[str], None]]) -> None:
        problem = ""
        began = time.perf_counter()
        try:
            self.desk.sync()
        except KeepwellError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001
            # Whoever waits must be told, whatever it was.
            problem = f"{type(error).__name__}: {error}"
        # A worker that has drained is gone without waiting for the disk's last word.
        with suppress(RuntimeError):
            seconds = time.perf_counter() - began
            self.loop.call_soon_threadsafe(self._synced, told, problem, seconds)

    def _synced(self, told: list[Callable[[str], None]], problem: str, seconds: float) -> None:
        self.desk.meters.synced(seconds, failed=bool(problem))
        if problem or self.desk.problem == self._sync_problem:
            self.desk.problem = problem  # and a disk that takes it again ends the problem
        self._sync_problem = problem
        if not told:
            return
        self._syncs -= 1
        if self._waiting:
            self._start_sync()  # first, so that the disk works while the answers are sent
        if self._held:
            self.pending, self._held = self._held + self.pending, []
            if not self.scheduled:
                self.scheduled = True
                self.loop.call_soon(self.tick)
        for each in told:
            each(problem)

    def look_at_plans(self) -> None:
        """Keep the headers that the plans in force look at, and answer what waited for a plan with arms."""
        endpoints = self.desk.endpoints
        found = frozenset[bytes]().union(*(s.assignment.headers for s in endpoints.values()))
        if found != self.cohort_headers:
            self.cohort_headers = found
            self.kept = HEADERS | found
            self.heads.clear()  # they were read without these
        for ask, caller, slot in self.gap.look(endpoints):
            self.submit(ask, caller, slot)

    def _hold(self, work: list[tuple[Ask, Caller, Slot]]) -> list[tuple[Ask, Caller, Slot]]:
        """Let the requests wait whose plan has no arms for now, and give the others."""
        work, refused = self.gap.part(work)
        for each in refused:
            self.shed(*each)
        if self.gap.held:
            if self._gap_at is not None:
                self._gap_at.cancel()
            wait = max(self.gap.next() - time.perf_counter(), 0.0)
            self._gap_at = self.loop.call_later(wait, self._end_waits)
        return work

    def _end_waits(self) -> None:
        self._gap_at = None
        for each in self.gap.expired(time.perf_counter()):
            self.shed(*each)
        self._hold([])

    def drain(self) -> None:
        """Take no connection for longer than its requests; what waits for a plan is told to come again."""
        self.draining = True
        for each in self.gap.close():
            self.shed(*each)

    def _release(self, work: list[tuple[Ask, Caller, Slot]], problem: str) -> None:
        self._undelivered -= len(work)
        for ask, caller, slot in work:
            if problem:
                ask.refuse(503, problem)
            caller.fill(slot, ask.status, ask.answer, content=ask.content)

    def listen(self, listener: Listener) -> None:
        """Tell somebody of every request from now on, after its answer went out."""
        self.listeners.append(listener)
        self.noting = self.desk.noting = True

    def noted(self, note: Note, status: int, sent: int) -> None:
        """Take in that a request is answered."""
        note.status, note.sent, note.ended = status, sent, time.perf_counter()
        if not self._noted:
            self.loop.call_soon(self._tell)
        self._noted.append(note)

    def _tell(self) -> None:
        notes, self._noted = self._noted, []
        for listener in self.listeners:
            for note in notes:
                listener.saw(note)

    @property
    def waiting(self) -> int:
        """Count the requests that have no answer yet."""
        beside = self.desk.beside.waiting if self.desk.beside is not None else 0
        return len(self.pending) + len(self._held) + len(self.gap.held) + self._undelivered + beside

    def look_at_tokens(self) -> None:
        """Let in whom the file of tokens names now; a head that was read before is read again."""
        if self.gate.refresh():
            self.heads.clear()

    def enter(self, connection: Connection) -> bool:
        """Take a connection in; False if there are too many already."""
        if len(self.connections) >= self.most and not self._make_room():
            return False
        self.connections.add(connection)
        self.desk.meters.connected += 1
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        return True

    def _make_room(self) -> bool:
        """Close the connections that brought nothing whole for a sweep or longer; tell whether there were any."""
        now = self.loop.time()
        if now - self._looked < ROOM_SECONDS:
            return False
        self._looked = now
        return sum(connection.give_way() for connection in list(self.connections)) > 0

    def _sweep(self) -> None:
        self._sweeping = None
        for connection in list(self.connections):
            connection.rest()
        if self.connections:
            self._sweeping = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def remember(self, head: bytes, known: Head) -> None:
        """Remember what a head said; many different ones push one another out."""
        if len(self.heads) >= MAX_KNOWN_HEADS:
            self.heads.clear()
        self.heads[head] = known


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

    def rest(self) -> None:
        """Count a sweep since something whole came or left, and close when they are too many."""
        self._sweeps += 1
        transport = self._transport
        if transport is None or self._sweeps * SWEEP_SECONDS <= IDLE_SECONDS:
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
        self._plain(slot, call.method, call.path)
        return False

    def _plain(self, slot: Slot, method: str, path: str) -> None:
        desk = self._floor.desk
        if method == "POST" and path == "/v1/outcomes":
            self._outcomes(slot)
        elif method != "GET":
            known = path in {"/live", "/ready", "/metrics", "/v1/endpoints", "/v1/outcomes"}
            self.fill(
                slot, 405 if known else 404, encode_error(f"{method} {path} is not served here.")
            )
        elif path == "/live":
            self.fill(slot, 200, b'{"live":true}')
        elif path == "/ready":
            state = {"ready": desk.ready, "edition": desk.edition, "problem": desk.problem}
            self.fill(slot, 200 if desk.ready else 503, encode(state))
        elif path == "/metrics":
            self.fill(slot, 200, gateway_page(desk.meters).encode(), content=_TEXT)
        elif path == "/v1/endpoints":
            told = _describe(desk)
            if self._floor.gate.closed:
                told["tokens"] = self._floor.gate.problem or "good"
            if self._floor.tls is not None:
                told["tls"] = self._floor.tls.problem or "good"
            self.fill(slot, 200, encode(told))
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
                self._floor.when_durable(partial(self._accept, slot, len(rows)))
                return
            if rows:
                self._floor.sync_later()
            self._accept(slot, len(rows), "")
        except NOT_JSON as error:
            self.fill(
                slot,
                422,
                encode_error(
                    f'{error}. Send {{"outcomes": [{{"id", "endpoint", "value", "time"}}]}}.'
                ),
            )
        except KeepwellError as error:
            self.fill(slot, 422 if error.code == "invalid_input" else 503, encode_error(str(error)))

    def _accept(self, slot: Slot, rows: int, problem: str) -> None:
        if problem:
            self.fill(slot, 503, encode_error(problem))
        else:
            self.fill(slot, 200, encode({"accepted": rows}))

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
                "arms": [_arm(loaded) for loaded in serving.arms],
                "mirrors": [_arm(loaded) for loaded in serving.mirrors],
                "cohorts": [
                    {"cohort": cohort.label, "arm": cohort.arm}
                    for cohort in serving.assignment.cohorts
                ],
                "left_out": list(serving.left_out),
            }
            for name, serving in desk.endpoints.items()
        ],
    }


def _arm(loaded: Any) -> dict[str, Any]:
    arm = loaded.arm
    facts = {
        "name": arm.name,
        "version": arm.version,
        "weight": arm.weight,
        "artefact": arm.artefact,
    }
    return facts | {"runtime": loaded.predictor.state()} if loaded.beside else facts
