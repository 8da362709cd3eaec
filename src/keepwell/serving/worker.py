"""One worker process: takes connections from the inherited socket and serves the newest edition."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from keepwell.core.errors import KeepwellError
from keepwell.core.records.traffic import BUCKETS
from keepwell.serving.accesslog import AccessLog
from keepwell.serving.desk import Desk, Loader
from keepwell.serving.editions import Shelf
from keepwell.serving.footprint import take_footprint
from keepwell.serving.gate import Gate
from keepwell.serving.http import Connection, Floor
from keepwell.serving.meters import Meters, Standing
from keepwell.serving.pool import worker_name
from keepwell.serving.runtimes.links import Links
from keepwell.serving.segments import SegmentWriter
from keepwell.serving.stopping import die_with_parent
from keepwell.serving.terms import Terms
from keepwell.serving.tls import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS, Tls

LOOK_SECONDS = 0.02
DRAIN_SECONDS = 5.0
AGAIN_SECONDS = 5.0
"""An edition that could not be loaded is tried again so often: a runtime, or a disk, may have recovered."""
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
) -> None:
    """Serve until SIGTERM, then let what is under way finish."""
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
    if terms.access_log:
        floor.listen(AccessLog(terms.access_log, loop))
    desk.meters.standing = partial(standing_of, floor, writer)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    await refresh(floor, loader, shelf)
    # First, so that a worker that says it is ready is ready by either protocol.
    calls = await _listen_grpc(floor, grpc) if grpc else None
    server = await loop.create_server(
        lambda: Connection(floor), sock=listening, **_secured(floor.tls)
    )
    await follow(floor, loader, shelf, stop)
    floor.drain()
    links.stop()
    server.close()
    ending = asyncio.ensure_future(calls.stop(DRAIN_SECONDS)) if calls is not None else None
    began = loop.time()
    while floor.connections and loop.time() < began + DRAIN_SECONDS:
        silent = loop.time() > began + SILENT_SECONDS
        for connection in list(floor.connections):
            connection.drain(silent=silent)
        await asyncio.sleep(0.01)
    if ending is not None:
        await ending
    await asyncio.sleep(0)  # the last notes are told in the turn behind their answers
    for listener in floor.listeners:
        listener.close()
    desk.meters.share()
    writer.close()


async def follow(floor: Floor, loader: Loader, shelf: Shelf, stop: asyncio.Event) -> None:
    """Serve each new edition, share the counters and look at tokens and certificates, until told to stop."""
    loop, desk = floor.loop, floor.desk
    shared = 0.0
    failed, again = -1, 0.0
    while not stop.is_set():
        generation = shelf.generation()
        if generation not in {desk.edition, failed} or (failed >= 0 and loop.time() > again):
            failed = -1 if await refresh(floor, loader, shelf) else generation
            again = loop.time() + AGAIN_SECONDS
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
            (name, loaded.arm.name, loaded.arm.version, loaded.arm.weight / BUCKETS, mirrors)
            for name, serving in desk.endpoints.items()
            for mirrors, group in ((False, serving.arms), (True, serving.mirrors))
            for loaded in group
        ],
        connections=len(floor.connections),
        pending=floor.waiting,
        pending_bytes=floor.size,
        unsynced=unsynced,
        unsynced_seconds=time.monotonic() - writer.behind_since if unsynced else 0.0,
    )


async def _listen_grpc(floor: Floor, address: str) -> Any:
    """Start the gRPC side. It is loaded by its name, because it needs an extra that most gateways do without."""
    protocol = importlib.import_module("keepwell.serving.protocols.grpc")
    return await protocol.start(floor, address)


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
        )
    )


if __name__ == "__main__":
    main()
