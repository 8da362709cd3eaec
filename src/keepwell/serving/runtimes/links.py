"""A worker's side of runtimes: calls that are answered later, on the event loop, or fail at once where nobody is there.

A call fails with Unavailable when the runtime is not ready, ended, was too slow, or has not answered since; with
``ModelRaised`` when the model itself raised. After a time-out no call waits again until the runtime has answered
something or a new one is there: a model that hangs costs its endpoint one wait, not one a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.errors import Corrupt, Unavailable
from keepwell.serving.runtimes.tended import place_of
from keepwell.training.predictors.process import wire

START_SECONDS = 300.0
"""So long an edition waits for a runtime that says neither that it is ready nor what is wrong."""
AGAIN_SECONDS = 0.05
POLL_SECONDS = 0.1
MAX_UNSENT = 64 * 1024 * 1024
"""Bytes of questions that a runtime may leave unread."""

Floats = npt.NDArray[np.float64]


class ModelRaised(Exception):
    """What the model raised in its process."""


class Wire(asyncio.Protocol):
    """One connection: questions out, answers in, in order."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.pending: dict[int, asyncio.Future[Floats]] = {}
        self.pid = 0
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the runtime to say that it is ready."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what came: whole frames."""
        self._buffer += data
        head = wire.HEAD
        while len(self._buffer) >= head.size:
            size, number, rows, columns, kind, _ = head.unpack_from(self._buffer)
            end = head.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[head.size : end])
            del self._buffer[:end]
            self._take(kind, number, rows, columns, payload)

    def _take(self, kind: int, number: int, rows: int, columns: int, payload: bytes) -> None:
        if kind == wire.HELLO:
            self.pid = int(payload)
            self._link.greeted(self)
            return
        if kind == wire.BYE:
            self.leaving = True
            self._link.leaves(self)
            return
        self._link.stuck = 0.0
        waiting = self.pending.pop(number, None)
        if waiting is not None and not waiting.done():
            if kind == wire.VALUES:
                waiting.set_result(wire.values_of(rows, columns, payload))
            elif kind == wire.FAILED:
                waiting.set_exception(ModelRaised(payload.decode()))
            else:
                waiting.set_exception(Unavailable("Its runtime came to it too late"))
        self.close_if_done()

    def close_if_done(self) -> None:
        """Close a connection whose runtime leaves, or which nobody needs, behind its last answer."""
        if self.leaving and not self.pending and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits that there will be no answer."""
        del exc
        pending, self.pending = self.pending, {}
        for waiting in pending.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("Its runtime ended while it computed"))
        self._link.lost(self)


class Link:
    """Keeps one worker connected with one runtime. All methods are called on the event loop's thread."""

    def __init__(self, place: Path, *, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._place = place
        self.seconds = seconds
        self._loop = loop
        self._wire: Wire | None = None
        self._trying = False
        self._closed = False
        self._number = 0
        self.greetings = 0
        """How often a runtime was found there: above one, it was begun again."""
        self.stuck = 0.0
        """When a call timed out that nothing was answered since; 0: none."""
        self.problem = ""
        self.ready = asyncio.Event()

    def begin(self) -> None:
        """Connect, and connect again whenever the runtime went."""
        if not self._trying and not self._closed:
            self._trying = True
            self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        while not self._closed:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.setblocking(False)
            try:
                with wire.address(self._place) as name:
                    made.connect(name)
                await self._loop.create_unix_connection(lambda: Wire(self), sock=made)
            except OSError:
                made.close()
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                break
        self._trying = False

    def greeted(self, found: Wire) -> None:
        """Use a connection whose runtime is ready."""
        before, self._wire = self._wire, found
        self.greetings += 1
        self.stuck = 0.0
        self.problem = ""
        if self._closed:
            found.leaving = True
            found.close_if_done()
        self.ready.set()
        if before is not None:
            before.close_if_done()

    def leaves(self, found: Wire) -> None:
        """Look for the runtime that takes over; until it is found the old one goes on."""
        if found is self._wire:
            self.begin()

    def lost(self, found: Wire) -> None:
        """Look for the next runtime."""
        if found is self._wire:
            self._wire = None
            self.problem = "Its runtime ended and is begun again"
        self.begin()

    def call(self, rows: npt.NDArray[Any]) -> asyncio.Future[Floats]:
        """Ask for the answers to rows, shape (n, d). The future fails with Unavailable or ModelRaised."""
        answer: asyncio.Future[Floats] = self._loop.create_future()
        problem = self._why_not()
        if problem:
            answer.set_exception(Unavailable(problem))
            return answer
        found = self._wire
        assert found is not None
        assert found.transport is not None
        self._number += 1
        deadline = time.monotonic() + self.seconds if self.seconds else 0.0
        head, payload = wire.question(self._number, rows, deadline)
        found.pending[self._number] = answer
        found.transport.write(head)
        found.transport.write(payload)
        if self.seconds:
            timer = self._loop.call_later(self.seconds, self._late, answer)
            answer.add_done_callback(lambda _: timer.cancel())
        return answer

    def _why_not(self) -> str:
        found = self._wire
        if found is None or found.transport is None:
            return self.problem or "Its runtime is not ready"
        if self.stuck:
            return f"Its runtime has not answered for {time.monotonic() - self.stuck:.3g} s"
        if found.transport.get_write_buffer_size() > MAX_UNSENT:
            return "Its runtime does not read what it is asked"
        return ""

    def _late(self, answer: asyncio.Future[Floats]) -> None:
        if not answer.done():
            self.stuck = time.monotonic() - self.seconds
            answer.set_exception(Unavailable(f"Its runtime took longer than {self.seconds:g} s"))

    def state(self) -> dict[str, Any]:
        """Describe the runtime as this worker sees it."""
        return {
            "ready": not self._why_not(),
            "problem": self._why_not() or read_status(self._place)[1],
            "pid": self._wire.pid if self._wire is not None else 0,
            "restarts": max(0, self.greetings - 1),
        }

    def close(self) -> None:
        """Let go of the runtime once the last call is answered."""
        self._closed = True
        if self._wire is not None:
            self._wire.leaving = True
            self._wire.close_if_done()


def read_status(place: Path) -> tuple[str, str]:
    """Read how a runtime is, as it or the parent wrote it: a code, and what is wrong."""
    try:
        told = msgspec.json.decode(place.with_suffix(".json").read_bytes())
        return str(told["code"]), str(told["problem"])
    except (OSError, msgspec.DecodeError):
        return "", ""


class RuntimePredictor:
    """A model in a runtime, as the desk holds it: ``call`` on the loop, ``predict`` beside it."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop
        self.call = link.call
        self.seconds = link.seconds
        """So long a call may take; 0: as long as it likes."""
        self.state = link.state
        # Whoever still computes with it holds it; behind the last one the connection may go, and the runtime with it.
        weakref.finalize(self, _let_go, link, loop)

    def predict(self, rows: npt.NDArray[Any]) -> Floats:
        """See ``keepwell.training.predictors.Predictor``: for golden rows, in the thread that loads."""

        async def asked() -> Floats:
            return await self._link.call(rows)

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result()


def _let_go(link: Link, loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # a loop that ended has closed all its connections
        loop.call_soon_threadsafe(link.close)


class Links:
    """Opens a worker's links."""

    def __init__(
        self,
        shelf: Path,
        loop: asyncio.AbstractEventLoop,
        *,
        seconds: float,
        processes: int = 1,
        number: int = 0,
    ) -> None:
        self._shelf = shelf
        self._loop = loop
        self._seconds = seconds
        self._number = number % max(1, processes)
        self._stopped = threading.Event()

    def open(self, artefact: str) -> RuntimePredictor:
        """Wait, in the thread that loads, until the runtime of an artefact is ready, or was so once.

        Raises Corrupt if it cannot be, Unavailable if it does not come.
        """
        place = place_of(self._shelf, artefact, self._number)
        made = asyncio.run_coroutine_threadsafe(self._linked(place), self._loop).result()
        predictor = RuntimePredictor(made, self._loop)
        deadline = time.monotonic() + START_SECONDS
        while not made.ready.is_set():
            code, problem = read_status(place)
            if code == "ended":
                break
            if problem:
                raise Corrupt(f"Its runtime does not start: {problem}")
            if self._stopped.wait(POLL_SECONDS) or time.monotonic() > deadline:
                raise Unavailable("Its runtime was not ready in time.", where=str(place))
        return predictor

    async def _linked(self, place: Path) -> Link:
        link = Link(place, seconds=self._seconds, loop=self._loop)
        link.begin()
        return link

    def stop(self) -> None:
        """End the waits: the worker goes."""
        self._stopped.set()


__all__ = ["Link", "Links", "ModelRaised", "RuntimePredictor"]
