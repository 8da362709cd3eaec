"""One worker process: takes connections from the inherited socket and serves the newest edition."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from keepwell.core.errors import KeepwellError
from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loader, Serving
from keepwell.serving.editions import Shelf
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.runtimes.links import Links
from keepwell.serving.stopping import die_with_parent
from keepwell.serving.telemetry.accesslog import AccessLog
from keepwell.serving.telemetry.footprint import take_footprint
from keepwell.serving.telemetry.meters import Meters, Standing, worker_name
from keepwell.serving.terms import Terms
from keepwell.serving.transport.floor import Floor
from keepwell.serving.transport.gate import Gate
from keepwell.serving.transport.http import Connection
from keepwell.serving.transport.tls import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS, Tls

LOOK_SECONDS = 0.02
DRAIN_SECONDS = 5.0
AGAIN_SECONDS = 5.0
"""An edition that could not be loaded is tried again so often: a runtime, or a disk, may have recovered."""
FOLLOWED_SECONDS = 25.0
"""The same where others follow: nobody waits for the end of this one."""
IDLE_SECONDS = 2.0
"""So long a worker that others replace waits for the next request of a connection, whose answer says that it is
the last one. To close at once would meet requests that are on their way."""
SILENT_SECONDS = 0.5
"""So long a worker that drains waits for the first request of a connection."""


async def serve(
    listening: socket.socket,
    *,
    shelf: Shelf,
    log: Path,
    meters: Path,
    number: int,
    grpc: str = "",
    terms: Terms,
    told: int = -1,
    beside: bool = False,
) -> None:
    """Serve until SIGTERM, or until SIGHUP if others follow, then let what is under way finish.

    ``told`` is a descriptor to which a line is written each time that something was loaded: the number of the
    edition that is served, and behind it what is wrong.
    ``beside``: others serve, so connections are left to them until something is loaded here.
    """
    loop = asyncio.get_running_loop()
    name = worker_name(number, os.getpid())
    writer = SegmentWriter(log, name=f"{time.time_ns() // 1000:017d}-{name}")
    desk = Desk(writer, worker=name, meters=Meters(meters, worker=name), max_wait=terms.max_wait)
    links = Links(
        shelf.folder,
        loop,
        seconds=terms.runtime_seconds,
        processes=terms.runtime_processes,
        number=number,
    )
    loader = Loader(shelf, links)
    floor = Floor(desk, loop, Gate(Path(terms.tokens) if terms.tokens else None))
    floor.look_at_tokens()
    if terms.tls_certificate:
        floor.tls = Tls(Path(terms.tls_certificate), Path(terms.tls_key))
    listen(floor, terms, worker=name)
    desk.meters.standing = partial(standing_of, floor, writer)
    stop = asyncio.Event()
    followed = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGHUP, partial(_set, followed, stop))
    loaded = await refresh(floor, loader, shelf)
    tried = shelf.generation()
    while beside and not loaded and not stop.is_set():
        _tell(told, desk)
        while shelf.generation() == tried and not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        tried = shelf.generation()
        loaded = await refresh(floor, loader, shelf)
    # First, so that a worker that says it is ready is ready by either protocol.
    calls = await _listen_grpc(floor, grpc) if grpc else None
    server = await loop.create_server(
        lambda: Connection(floor), sock=listening, **_secured(floor.tls)
    )
    _tell(told, desk)
    await follow(floor, loader, shelf, stop, told=partial(_tell, told))
    floor.drain()
    links.stop()
    server.close()
    ending = asyncio.ensure_future(calls.stop(DRAIN_SECONDS)) if calls is not None else None
    began = loop.time()
    longest = FOLLOWED_SECONDS if followed.is_set() else DRAIN_SECONDS
    while floor.connections and loop.time() < began + longest:
        silent = loop.time() > began + SILENT_SECONDS
        idle = not followed.is_set() or loop.time() > began + IDLE_SECONDS
        for connection in list(floor.connections):
            connection.drain(idle=idle, silent=silent)
        await asyncio.sleep(0.01)
    if ending is not None:
        await ending
    await asyncio.sleep(0)  # the last notes are told in the turn behind their answers
    for listener in floor.listeners:
        listener.close()
    desk.meters.share()
    writer.close()


def listen(floor: Floor, terms: Terms, *, worker: str) -> None:
    """Let those listen to the requests whom the terms name."""
    if terms.access_log:
        floor.listen(AccessLog(terms.access_log, floor.loop))
    if terms.traces_endpoint:
        # By its name, because it needs an extra that most gateways do without.
        traces = importlib.import_module("keepwell.serving.telemetry.traces")
        floor.listen(traces.Traces(terms.traces_endpoint, share=terms.traces_share, worker=worker))
        # Packing spans is Python in a thread: the loop waits for it a millisecond at a time, not five.
        sys.setswitchinterval(0.001)


async def follow(
    floor: Floor,
    loader: Loader,
    shelf: Shelf,
    stop: asyncio.Event,
    *,
    told: Callable[[Desk], None] | None = None,
) -> None:
    """Serve each new edition, share the counters and look at tokens and certificates, until told to stop."""
    loop, desk = floor.loop, floor.desk
    shared = 0.0
    failed, again = -1, 0.0
    while not stop.is_set():
        generation = shelf.generation()
        if generation not in {desk.edition, failed} or (failed >= 0 and loop.time() > again):
            failed = -1 if await refresh(floor, loader, shelf) else generation
            again = loop.time() + AGAIN_SECONDS
            if told is not None:
                told(desk)
        if loop.time() - shared > 0.5:
            desk.meters.share()
            floor.look_at_tokens()
            if floor.tls is not None:
                floor.tls.refresh()
            shared = loop.time()
        try:
            await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue


def _set(*events: asyncio.Event) -> None:
    for event in events:
        event.set()


def _tell(told: int, desk: Desk) -> None:
    if told >= 0:
        said = f"{desk.edition} {' '.join(desk.problem.split())[:1000]}\n"
        # A parent that reads no more has all that it wanted to know.
        with suppress(OSError):
            os.write(told, said.encode())


def _secured(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "ssl": tls.context,
        "ssl_handshake_timeout": HANDSHAKE_SECONDS,
        "ssl_shutdown_timeout": SHUTDOWN_SECONDS,
    }


def standing_of(floor: Floor, writer: SegmentWriter) -> Standing:
    """Say how a worker stands."""
    desk = floor.desk
    meters = desk.meters
    meters.written, meters.append_failures = writer.bytes_written, writer.failures
    for listener in floor.listeners:
        meters.listeners.update(listener.counts())
    unsynced = writer.bytes_written - writer.bytes_durable
    return Standing(
        footprint=take_footprint(),
        ready=desk.ready,
        edition=desk.edition,
        plans={name: serving.edition.plan for name, serving in desk.endpoints.items()},
        arms=[
            (name, arm, version, weight / whole, mirrors)
            for name, serving in desk.endpoints.items()
            for mirrors, group in ((False, _shares(serving)), (True, _mirrors(serving)))
            for arm, version, weight, whole in group
        ],
        connections=len(floor.connections),
        pending=floor.waiting,
        pending_bytes=floor.size,
        unsynced=unsynced,
        unsynced_seconds=time.monotonic() - writer.behind_since if unsynced else 0.0,
        certificate_expires=floor.tls.expires if floor.tls is not None else None,
    )


def _shares(serving: Serving) -> list[tuple[str, int, int, int]]:
    """List who answers by chance, and of how much."""
    by_chance = serving.answerers[: len(serving.arms)]
    return [(each.arm, each.version, each.weight, each.out_of) for each in by_chance]


def _mirrors(serving: Serving) -> list[tuple[str, int, int, int]]:
    arms = [loaded.arm for loaded in serving.mirrors]
    return [(arm.name, arm.version, arm.weight, BUCKETS) for arm in arms]


async def _listen_grpc(floor: Floor, address: str) -> Any:
    """Start the gRPC side. It is loaded by its name, because it needs an extra that most gateways do without."""
    calls = importlib.import_module("keepwell.serving.transport.grpc")
    return await calls.start(floor, address)


async def refresh(floor: Floor, loader: Loader, shelf: Shelf) -> bool:
    """Load the newest edition beside the loop, then flip; the old one answers meanwhile. False if it cannot."""
    loop = asyncio.get_running_loop()
    desk = floor.desk
    try:
        edition = shelf.read()
        endpoints = await loop.run_in_executor(None, loader.load, edition)
    except KeepwellError as error:
        desk.problem = str(error)
        return False
    # What is loaded stays for long: the garbage collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    desk.endpoints = endpoints
    desk.edition = edition.number
    desk.problem = ""
    floor.look_at_plans()
    return True


def main() -> None:
    """Run one worker; the gateway's parent starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--editions", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--meters", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--grpc", default="")
    parser.add_argument("--terms", default="{}")
    parser.add_argument("--told", type=int, default=-1)
    parser.add_argument("--beside", action="store_true")
    given = parser.parse_args()
    # A tick makes thousands of short-lived tuples, none of them in a cycle.
    gc.set_threshold(50_000, 20, 100)
    die_with_parent(given.parent)
    uvloop.run(
        serve(
            socket.socket(fileno=given.socket),
            shelf=Shelf(given.editions),
            log=given.log,
            meters=given.meters,
            number=given.number,
            grpc=given.grpc,
            terms=msgspec.json.decode(given.terms, type=Terms),
            told=given.told,
            beside=given.beside,
        )
    )


if __name__ == "__main__":
    main()
