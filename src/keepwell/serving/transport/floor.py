"""The floor: what the connections of one worker share: the requests of this tick, and the answers that wait.

The desk answers the requests of a tick together; an answer leaves at once, or when the log is on the disk.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import msgspec

from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.beside import Beside
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.gaps import Gap
from keepwell.serving.desk.intake import MAX_PENDING_BYTES, refuse
from keepwell.serving.protocols import HEADERS, Call
from keepwell.serving.telemetry.notes import Listener, Note
from keepwell.serving.transport.disk import Disk
from keepwell.serving.transport.gate import Gate
from keepwell.serving.transport.tls import Tls

MAX_BODY = 16 * 1024 * 1024
MAX_HEADERS = 64 * 1024
MAX_URL = 8 * 1024
SWEEP_SECONDS = 15.0
"""One sweep over all connections closes the idle ones: a timer a connection would be set anew by each request."""
MAX_CONNECTIONS = 10_000
SPARE_DESCRIPTORS = 128
"""Files that a worker may open beside its connections: the log's come before anybody's connection."""
ROOM_SECONDS = 1.0
"""So often a full worker looks for connections that it can do without."""
MAX_KNOWN_HEADS = 512


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


Each = tuple[Ask, Caller, Slot]
"""A request on its way."""


class Guest(Protocol):
    """A connection, as the floor that it entered knows it."""

    def rest(self, seconds: float) -> None:
        """Take in that a sweep came, ``seconds`` after the one before: close what brought nothing whole for long."""
        ...

    def give_way(self) -> bool:
        """Close if nothing whole came for a sweep and nothing is due; tell whether it does."""
        ...

    def drain(self, *, idle: bool, silent: bool) -> None:
        """Close once nothing is due: if ``idle`` at once, else behind the next answer, which says so."""
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
        self.pending: list[Each] = []
        self.scheduled = False
        self.size = 0
        """Bytes of the requests that wait for their tick."""
        self.hurried = False
        """One of them has a deadline."""
        self.connections: set[Guest] = set()
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
        self.gap: Gap[Each] = Gap()
        self._gap_at: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self.disk = Disk(desk, loop, freed=self._resume)
        self._held: list[Each] = []
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
            self.shed((ask, caller, slot))
            return
        self.size = size
        if ask.deadline:
            self.hurried = True
        self.pending.append((ask, caller, slot))
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.tick)

    def shed(self, each: Each) -> None:
        """Send a refusal, counted."""
        ask, caller, slot = each
        if slot.note is not None:
            slot.note.ask = ask
        desk = self.desk
        desk.meters.shed(ask.endpoint if ask.endpoint in desk.endpoints else "", ask.shed)
        caller.fill(slot, ask.status, ask.answer, content=ask.content)

    def _plan(self, work: list[Each]) -> list[Each]:
        """Refuse what cannot be answered in time, put off what others cannot wait for, and give the rest."""
        work, later, refused = self.desk.intake.plan(work, time.perf_counter())
        for each in refused:
            self.shed(each)
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
        if self.disk.full:
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

    def send(self, work: list[Each]) -> None:
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
            self.disk.when_durable(partial(self._release, waiting))
        if desk.shadowing:
            self.loop.call_soon(self._shadow)
        if desk.unsynced:
            self.sync_later()

    def _shadow(self) -> None:
        self.desk.shadow()
        if self.desk.unsynced:
            self.sync_later()

    def sync_later(self) -> None:
        """Bring the log to the disk soon; nobody waits for it."""
        self.disk.sync_later()

    def _resume(self) -> None:
        """Answer what was held until the disk could be waited for."""
        if self._held:
            self.pending, self._held = self._held + self.pending, []
            if not self.scheduled:
                self.scheduled = True
                self.loop.call_soon(self.tick)

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

    def _hold(self, work: list[Each]) -> list[Each]:
        """Let the requests wait whose plan has no arms for now, and give the others."""
        work, refused = self.gap.part(work)
        for each in refused:
            self.shed(each)
        if self.gap.held:
            if self._gap_at is not None:
                self._gap_at.cancel()
            wait = max(self.gap.next() - time.perf_counter(), 0.0)
            self._gap_at = self.loop.call_later(wait, self._end_waits)
        return work

    def _end_waits(self) -> None:
        self._gap_at = None
        for each in self.gap.expired(time.perf_counter()):
            self.shed(each)
        self._hold([])

    def drain(self) -> None:
        """Take no connection for longer than its requests; what waits for a plan is told to come again."""
        self.draining = True
        for each in self.gap.close():
            self.shed(each)

    def _release(self, work: list[Each], problem: str) -> None:
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

    def enter(self, connection: Guest) -> bool:
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
            connection.rest(SWEEP_SECONDS)
        if self.connections:
            self._sweeping = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def remember(self, head: bytes, known: Head) -> None:
        """Remember what a head said; many different ones push one another out."""
        if len(self.heads) >= MAX_KNOWN_HEADS:
            self.heads.clear()
        self.heads[head] = known
