"""Replays: past decisions sent through the gateway as live traffic, in order, with their labels as late as they were.

Event time runs as fast as the machine allows, but never past the loop: after each day the replay waits until
the worker has read and judged it, and while a renewal is under way it only trickles, because in real life a
training takes minutes in which no season passes.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec
import polars as pl
import uvloop

from keepwell.app.pulse import Pulse
from keepwell.app.wiring import State
from keepwell.core.clock import DAY, Time
from keepwell.core.errors import NotFound, Unavailable
from keepwell.core.records.lifecycle import Activation, Release
from keepwell.core.records.watching import Decision
from keepwell.core.records.work import Replay, Work
from keepwell.data.decisions import ID, LABEL, LABEL_TIME, UNIT, decision_rows
from keepwell.data.decisions import SLICE as SLICE_PREFIX
from keepwell.data.features import TIME

DEPTH = 4
"""Requests that a connection has under way."""
PATIENCE_SECONDS = 60.0
"""How long a request whose connection broke is tried again before it counts as failed."""
TRICKLE_A_SECOND = 50
HOLD_SECONDS = 180.0


class Client(asyncio.Protocol):
    """One keep-alive connection that pipelines a few requests."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._parser: Any = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None
        self.under_way: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to send."""
        self.transport = transport  # type: ignore[assignment]
        self._sender.feed(self)

    def data_received(self, data: bytes) -> None:
        """Parse answers."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self.transport is not None:
                self.transport.abort()

    def on_message_complete(self) -> None:
        """Count one answer and send the next request."""
        self.under_way.popleft()
        self._sender.answered(self._parser.get_status_code())
        self._sender.feed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what was not answered: its ids are the same when it is sent again, so it counts once."""
        del exc
        self.transport = None
        self._sender.lost(self)


class Sender:
    """Sends a day's requests over several connections and counts what comes back."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connections: int,
        trust: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        """``trust`` is asked at every new connection, because the gateway's certificate may be replaced."""
        self._trust = trust
        self._host, self._port = host, port
        self._wanted = connections
        self._queue: deque[bytes] = deque()
        self._clients: set[Client] = set()
        self._done = asyncio.Event()
        self._left = 0
        self._broken_since = 0.0
        self.acknowledged = 0
        self.failed = 0
        self.retried = 0

    async def send(self, requests: list[bytes]) -> None:
        """Send requests and wait for every answer."""
        if not requests:
            return
        self._left = len(requests)
        self._done.clear()
        self._queue.extend(requests)
        await self._connect()
        for client in list(self._clients):
            self.feed(client)
        while not self._done.is_set():
            try:
                await asyncio.wait_for(self._done.wait(), 0.2)
            except TimeoutError:
                await self._connect()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._clients) < self._wanted:
            try:
                _, client = await loop.create_connection(
                    partial(Client, self), self._host, self._port, ssl=self._trust()
                )
            except (OSError, Unavailable):
                now = time.monotonic()
                self._broken_since = self._broken_since or now
                if now - self._broken_since > PATIENCE_SECONDS:
                    self.failed += self._left
                    self._queue.clear()
                    self._left = 0
                    self._done.set()
                return
            self._clients.add(client)
            self._broken_since = 0.0

    def feed(self, client: Client) -> None:
        """Put requests on a connection up to its depth."""
        if client.transport is None:
            return
        out = []
        while self._queue and len(client.under_way) < DEPTH:
            request = self._queue.popleft()
            client.under_way.append(request)
            out.append(request)
        if out:
            client.transport.write(b"".join(out))

    def answered(self, status: int) -> None:
        """Count an answer."""
        if status == 200:
            self.acknowledged += 1
        else:
            self.failed += 1
        self._left -= 1
        if self._left == 0:
            self._done.set()

    def lost(self, client: Client) -> None:
        """Queue again what a broken connection had under way."""
        self._clients.discard(client)
        self.retried += len(client.under_way)
        self._queue.extendleft(reversed(client.under_way))
        client.under_way.clear()

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            if client.transport is not None:
                # Every answer is here; a TLS goodbye would wait for the other side, and the loop may end before.
                client.transport.abort()


def _request(path: str, body: bytes, token: str) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: gateway\r\n%scontent-length: %d\r\n\r\n%s" % (
        path.encode(),
        b"authorization: Bearer %s\r\n" % token.encode() if token else b"",
        len(body),
        body,
    )


class Day:
    """One day of requests and the outcomes that became known on it."""

    def __init__(self, start: Time, requests: list[bytes], outcomes: list[bytes]) -> None:
        self.start = start
        self.requests = requests
        self.outcomes = outcomes


def prepare_days(
    rows: pl.DataFrame,
    *,
    endpoint: str,
    unit: str,
    time_field: str,
    since: Time,
    until: Time,
    token: str = "",
) -> list[Day]:
    """Encode requests, one a decision, in the order of time, and outcomes in the order in which they became known."""
    features = [c for c in rows.columns if not c.startswith("__")]
    path = f"/v1/endpoints/{endpoint}/predict"
    encode = msgspec.json.Encoder().encode
    by_day: dict[int, list[bytes]] = {}
    times, ids, units = (rows.get_column(c).to_list() for c in (TIME, ID, UNIT))
    values = rows.select(features).rows()
    for at, identity, who, row in zip(times, ids, units, values, strict=True):
        body: dict[str, Any] = {
            n: (None if isinstance(v, float) and math.isnan(v) else v)
            for n, v in zip(features, row, strict=True)
        }
        if unit and unit not in body:
            body[unit] = who
        if time_field:
            body[time_field] = at
        by_day.setdefault(at // DAY, []).append(
            _request(path, encode({"row": body, "id": identity}), token)
        )
    known = rows.filter(pl.col(LABEL).is_not_null()).sort(LABEL_TIME)
    outcomes: dict[int, list[dict[str, Any]]] = {}
    for identity, at, value in known.select(ID, LABEL_TIME, LABEL).rows():
        outcomes.setdefault(at // DAY, []).append(
            {"id": identity, "endpoint": endpoint, "value": value, "time": at}
        )
    days = []
    last = max([until // DAY, *outcomes])
    for day in range(since // DAY, last + 1):
        given = outcomes.get(day, [])
        batches = [
            _request("/v1/outcomes", encode({"outcomes": given[i : i + 500]}), token)
            for i in range(0, len(given), 500)
        ]
        days.append(Day(day * DAY, by_day.get(day, []), batches))
    return days


def start_replay(
    state: State, *, endpoint: str, since: Time, until: Time, actor: str, id: str = ""
) -> Replay:
    """Ask for a replay; the supervisor of ``keepwell up`` carries it out, and on after a crash."""
    declared = state.settings.endpoints.get(endpoint)
    if declared is None:
        raise NotFound(f"There is no endpoint {endpoint!r}.")
    replay = Replay(
        id=id or f"replay-{secrets.token_hex(4)}",
        endpoint=endpoint,
        source=state.project.model(declared.model).source,
        since=since,
        until=until,
        state="running",
        position=since,
        started=state.clock.now(),
    )
    with state.store.transaction(actor=actor) as transaction:
        found = transaction.get(Replay, replay.id)
        if found is not None:
            return found
        transaction.add(replay)
    return replay


def run_replays(state: State) -> None:
    """Carry every running replay to its end, from where it stands."""
    for replay in state.store.find(Replay, {"state": "running"}):
        uvloop.run(_run(state, replay))


async def _run(state: State, replay: Replay) -> None:
    declared = state.settings.endpoints[replay.endpoint]
    model = state.project.model(declared.model)
    rows = decision_rows(state.project, declared.model, since=replay.since, until=replay.until)
    rows = rows.select(c for c in rows.columns if not c.startswith(SLICE_PREFIX))
    days = prepare_days(
        rows,
        endpoint=replay.endpoint,
        unit=model.unit,
        time_field=declared.time,
        since=replay.since,
        until=replay.until,
        token=state.gateway_token,
    )
    parts = urlsplit(state.gateway_url)
    demo = state.settings.demo
    sender = Sender(
        parts.hostname or "127.0.0.1",
        parts.port or (443 if parts.scheme == "https" else 80),
        connections=demo.connections if demo else 8,
        trust=state.gateway_trust,
    )
    pulse = Pulse(state.state)
    for day in days:
        if day.start < replay.position:
            continue
        replay = await _send_day(state, replay, day, sender, pulse)
        if sender.failed:
            break
    replay = _save(
        state,
        replay,
        state="failed" if sender.failed else "done",
        ended=state.clock.now(),
    )
    sender.close()
    if replay.state == "failed":
        raise Unavailable(f"{replay.failed:,} requests of the replay failed.", where=replay.id)


async def _send_day(state: State, replay: Replay, day: Day, sender: Sender, pulse: Pulse) -> Replay:
    before = (sender.acknowledged, sender.failed, sender.retried)
    sent = 0
    began = time.monotonic()
    while sent < len(day.requests):
        held = time.monotonic() - began < HOLD_SECONDS and loop_is_busy(state)
        # Trickling keeps real traffic on the gateway through every load and swap of a renewal.
        size = TRICKLE_A_SECOND // 10 if held else len(day.requests) - sent
        await sender.send(day.requests[sent : sent + size])
        sent += size
        if held:
            await asyncio.sleep(0.1)
        if sender.failed:
            break
    predictions = sender.acknowledged - before[0]
    await sender.send(day.outcomes)
    await _wait_for_worker(state, pulse)
    return _save(
        state,
        replay,
        position=day.start + DAY,
        sent=replay.sent + sent,
        acknowledged=replay.acknowledged + predictions,
        failed=replay.failed + sender.failed - before[1],
        retried=replay.retried + sender.retried - before[2],
        outcomes=replay.outcomes + len(day.outcomes),
    )


async def _wait_for_worker(state: State, pulse: Pulse) -> None:
    now = state.clock.now()
    deadline = time.monotonic() + HOLD_SECONDS
    while pulse.last() < now and time.monotonic() < deadline:  # noqa: ASYNC110 - another process beats
        await asyncio.sleep(0.005)


def loop_is_busy(state: State) -> bool:
    """Tell whether the loop is at something that takes no event time: a decision, training, release, activation."""
    store = state.store
    return bool(
        store.count(Decision, {"state": "open"})
        or store.count(Work, {"state": ["queued", "running"]})
        or store.count(Release, {"state": "running"})
        or store.count(Activation, {"state": "running"})
    )


def _save(project: State, replay: Replay, /, **changes: Any) -> Replay:
    changed = msgspec.structs.replace(replay, revision=replay.revision + 1, **changes)
    with project.store.transaction(actor="replay") as transaction:
        transaction.replace(changed)
    return changed
