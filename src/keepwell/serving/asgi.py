"""The gateway as an ASGI app: the same desk, protocols, log and answers behind uvicorn, granian or hypercorn.

``uvicorn --factory keepwell.serving.asgi:app`` serves the state in ``.keepwell``, or where ``KEEPWELL_STATE`` says.
Somebody must publish editions into it: ``keepwell gateway`` with ``gateway_workers = 0``, or a gateway of its own. Each
process has its own segments of the log, and answers the requests of one tick of its event loop together.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from keepwell.core.errors import Unavailable
from keepwell.serving.desk.codec import JSON, encode_error
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loader
from keepwell.serving.editions import Shelf
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.runtimes.links import Links
from keepwell.serving.telemetry.meters import Meters, worker_name
from keepwell.serving.terms import TERMS_FILE, Terms
from keepwell.serving.transport.floor import MAX_BODY, MAX_HEADERS, MAX_URL, Floor, Slot
from keepwell.serving.transport.gate import Gate
from keepwell.serving.transport.http import Connection
from keepwell.serving.worker import DRAIN_SECONDS, follow, listen, refresh, standing_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

STATE = "KEEPWELL_STATE"


def app() -> GatewayApp:
    """Make the app for the state in ``KEEPWELL_STATE``: for ``uvicorn --factory`` and the like."""
    return app_for(Path(os.environ.get(STATE, ".keepwell")))


def app_for(state: Path, *, terms: Terms | None = None) -> GatewayApp:
    """Make the app for a project's state folder. Without ``terms``, those of the gateway that publishes there."""
    return GatewayApp(
        editions=state / "editions", log=state / "log", meters=state / "run" / "meters", terms=terms
    )


class GatewayApp:
    """An ASGI 3 application. It needs the server's lifespan: before it and behind it nothing is answered."""

    def __init__(
        self, *, editions: Path, log: Path, meters: Path, terms: Terms | None = None
    ) -> None:
        self._editions = editions
        self._log = log
        self._meters = meters
        self._terms = terms
        self._floor: Floor | None = None
        self._under_way = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See https://asgi.readthedocs.io/en/latest/specs/."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        loop = asyncio.get_running_loop()
        name = worker_name(0, os.getpid())
        shelf = Shelf(self._editions)
        try:
            terms = self._terms or _written_terms(self._editions)
        except Unavailable as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        writer = SegmentWriter(self._log, name=f"{time.time_ns() // 1000:017d}-{name}")
        meters = Meters(self._meters, worker=name)
        desk = Desk(writer, worker=name, meters=meters, max_wait=terms.max_wait)
        links = Links(
            shelf.folder,
            loop,
            seconds=terms.runtime_seconds,
            processes=terms.runtime_processes,
            number=os.getpid(),
        )
        loader = Loader(shelf, links)
        floor = Floor(desk, loop, Gate(Path(terms.tokens) if terms.tokens else None))
        floor.look_at_tokens()
        listen(floor, terms, worker=name)
        desk.meters.standing = partial(standing_of, floor, writer)
        # What cannot be loaded yet is told at /ready, and tried again.
        await refresh(floor, loader, shelf)
        stop = asyncio.Event()
        following = loop.create_task(follow(floor, loader, shelf, stop))
        self._floor = floor
        await send({"type": "lifespan.startup.complete"})
        await receive()
        # Servers end this only behind their last request; one that does not is waited for.
        floor.drain()
        links.stop()
        deadline = loop.time() + DRAIN_SECONDS
        while self._under_way and loop.time() < deadline:  # noqa: ASYNC110 - once in a life; a counter costs less
            await asyncio.sleep(0.01)
        stop.set()
        await following
        self._floor = None
        for listener in floor.listeners:
            listener.close()
        desk.meters.share()
        writer.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        floor = self._floor
        if floor is None:
            said = "The gateway has not begun, or has ended: the server must run the lifespan."
            await _send(send, 503, encode_error(said), [(b"content-type", JSON)])
            return
        exchange = Exchange(floor)
        self._under_way += 1
        try:
            too_large = exchange.head(scope) or await exchange.body(receive)
            began = time.perf_counter()
            if too_large:
                exchange.refuse(*too_large)
            else:
                exchange.serve(exchange.slot, scope["method"].encode("latin-1"), began)
            status, answer, content = await exchange.answer
        finally:
            self._under_way -= 1
        lines = content.split(b"\r\n")
        headers = [(b"content-type", lines[0])]
        headers += [
            (n.strip(), v.strip()) for n, _, v in (one.partition(b":") for one in lines[1:])
        ]
        if status == 503 and b"retry-after" not in content:
            headers.append((b"retry-after", b"1"))
        if exchange.slot.close:
            headers.append((b"connection", b"close"))
        await _send(send, status, answer, headers, empty=exchange.slot.head)


class Exchange(Connection):
    """One request and its answer: what a connection of our own server does, with another in front."""

    def __init__(self, floor: Floor) -> None:
        super().__init__(floor)
        self.slot = Slot()
        self.answer: asyncio.Future[tuple[int, bytes, bytes]] = floor.loop.create_future()

    def head(self, scope: Message) -> tuple[int, str] | None:
        """Take in the head of a request; give status and reason if it is too large."""
        query = scope.get("query_string", b"")
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        self._url = raw.partition(b"?")[0]
        client = scope.get("client")
        self._client = f"{client[0]}:{client[1]}" if client else "unknown"
        if len(self._url) + len(query) + bool(query) > MAX_URL:
            return 431, f"The URL is longer than {MAX_URL:,} bytes."
        size = 0
        pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
        for name, value in pairs:
            size += len(name) + len(value)
            if size > MAX_HEADERS:
                return 431, f"The headers are larger than {MAX_HEADERS:,} bytes."
            if name == b"content-length" and value.isdigit() and int(value) > MAX_BODY:
                return 413, f"The body is larger than {MAX_BODY:,} bytes."
            if name in self._floor.kept:
                self._headers[name] = value
        # What such a head said is remembered for connections of our own server alone.
        self._chunked = True
        return None

    async def body(self, receive: Receive) -> tuple[int, str] | None:
        """Take in the body, bounded also where its length was not announced."""
        while True:
            message = await receive()
            self._body += message.get("body", b"")
            if len(self._body) > MAX_BODY:
                return 413, f"The body is larger than {MAX_BODY:,} bytes."
            if not message.get("more_body"):
                return None

    def refuse(self, status: int, message: str) -> None:
        """Answer what was not read to its end, and let the server close."""
        self.slot.close = True
        self.fill(self.slot, status, encode_error(message))

    def fill(self, slot: Slot, status: int, answer: bytes, *, content: bytes = JSON) -> None:
        """See ``keepwell.serving.transport.floor.Caller``."""
        if slot.note is not None:
            self._floor.noted(slot.note, status, len(answer))
        if status != 200:
            self._floor.desk.meters.failed(status)
        if not self.answer.done():
            self.answer.set_result((status, answer, content))


async def _send(
    send: Send,
    status: int,
    answer: bytes,
    headers: list[tuple[bytes, bytes]],
    *,
    empty: bool = False,
) -> None:
    headers.append((b"content-length", b"%d" % len(answer)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if empty else answer})


def _written_terms(editions: Path) -> Terms:
    try:
        return msgspec.json.decode((editions / TERMS_FILE).read_bytes(), type=Terms)
    except (OSError, msgspec.DecodeError) as error:
        # Without them nobody knows whether tokens are asked for.
        raise Unavailable(
            "Nobody publishes here, so the terms of the gateway are not known.",
            where=str(editions / TERMS_FILE),
            todo="Start 'keepwell up' with gateway_workers = 0 first; KEEPWELL_STATE is its state folder.",
        ) from error
