"""The processes of a running project: gateway, control server, worker, and replays; each by its own entry."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from keepwell.app.wiring import State, open_state
from keepwell.core.errors import KeepwellError, Unavailable
from keepwell.serving.sockets import bind
from keepwell.serving.stopping import die_with_parent


def announce(state: State, name: str, url: str) -> None:
    """Write where a process answers, for the others to find."""
    _write(state, name, {"url": url, "pid": os.getpid()})


def _write(state: State, name: str, content: dict[str, object]) -> None:
    folder = state.state / "run"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.json"
    temporary.write_bytes(msgspec.json.encode(content))
    temporary.replace(folder / f"{name}.json")


PATIENCE_SECONDS = 3.0
WARM_SECONDS = 5.0
"""From the server's start until it loads what it will need later."""


def port_for(state: State, name: str, declared: int) -> int:
    """Give the port to bind: a process begun again after a crash comes back to where its callers knew it."""
    if declared:
        return declared
    try:
        said = msgspec.json.decode((state.state / "run" / f"{name}.json").read_bytes())
        before = urlsplit(said["url"]).port or 0
    except (OSError, KeyError, ValueError, msgspec.DecodeError):
        return 0  # the first start
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            bind(state.settings.server.host, before).close()
        except Unavailable:
            time.sleep(0.05)  # workers of the one that died still let go of it
        else:
            return before
    return 0  # somebody else took it meanwhile


def run_gateway_process(state: State) -> None:
    """Run the gateway's parent."""
    from keepwell.serving.gateway import run_gateway
    from keepwell.serving.terms import Terms

    server = state.settings.server

    tokens = server.gateway_token_file

    def inside(name: str) -> str:
        return str(state.folder / name) if name else ""

    def ready(port: int, grpc_port: int | None) -> None:
        secure = "s" if server.tls_certificate else ""
        announce(state, "gateway", f"http{secure}://{server.host}:{port}")
        if grpc_port is not None:
            announce(state, "grpc", f"grpc{secure}://{server.host}:{grpc_port}")

    def replaced(pids: Sequence[int], problem: str) -> None:
        _write(state, "workers", {"pids": list(pids), "problem": problem})

    run_gateway(
        store=state.store,
        blobs=state.blobs,
        verifier=state.verifier,
        state=state.state,
        host=server.host,
        port=port_for(state, "gateway", server.gateway_port),
        workers=server.gateway_workers,
        clock=state.clock,
        grpc_port=None if server.grpc_port is None else port_for(state, "grpc", server.grpc_port),
        terms=Terms(
            max_wait=server.max_wait,
            tokens=inside(tokens),
            tls_certificate=inside(server.tls_certificate),
            tls_key=inside(server.tls_key),
            access_log="-" if server.access_log == "-" else inside(server.access_log),
            runtime_seconds=server.runtime_seconds,
            runtime_memory=server.runtime_memory,
            runtime_processes=server.runtime_processes,
            traces_endpoint=server.traces_endpoint,
            traces_share=server.traces_share,
        ),
        ready=ready,
        replaced=replaced,
    )


def run_server_process(state: State) -> None:
    """Run the control API, the tracking API and the dashboard."""
    import uvicorn

    from keepwell.app.api.server import application

    server = state.settings.server
    listening = bind(server.host, port_for(state, "server", server.port))
    announce(state, "server", f"http://{server.host}:{listening.getsockname()[1]}")
    config = uvicorn.Config(
        application(state), log_level="warning", access_log=False, lifespan="off"
    )
    threading.Thread(target=_warm, args=(state,), name="warm", daemon=True).start()
    uvicorn.Server(config).run(sockets=[listening])


def _warm(state: State) -> None:
    """Load what the first rollout by API or page needs: 2 s of one core, several on a busy machine.

    Beside the loop, and only once the others that start with it have had the processor.
    """
    time.sleep(WARM_SECONDS)
    try:
        from keepwell.serving.rollouts.strategies import STRATEGIES

        for name in ("keepwell.lifecycle.activation", "keepwell.serving.rollouts.appraisal"):
            importlib.import_module(name)
        for name in STRATEGIES.names():
            STRATEGIES.load(name)
        _ = state.project  # imports the user's libraries
    except Exception:  # whoever asks for it is told, in the answer to their own request
        logging.getLogger("keepwell").debug("nothing is warm", exc_info=True)


def run_worker_process(state: State) -> None:
    """Run the worker."""
    from keepwell.app.worker import run_worker

    announce(state, "worker-process", "")
    run_worker(state)
    # A step that did not end in time would hold the interpreter until it does; it runs again at the next start.
    sys.stderr.flush()
    os._exit(0)


def run_replay_process(state: State) -> None:
    """Carry every unfinished replay to its end."""
    from keepwell.app.replay import run_replays

    run_replays(state)


def run_drain_process(state: State) -> None:
    """Work until the queue is empty: for a command that is used while nothing is up."""
    from keepwell.app.worker import run_worker

    run_worker(state, drain=True)


ENTRIES = {
    "drain": run_drain_process,
    "gateway": run_gateway_process,
    "server": run_server_process,
    "worker": run_worker_process,
    "replay": run_replay_process,
}


def main() -> int:
    """Run ``processes NAME FOLDER PARENT``."""
    name, folder, parent = sys.argv[1:4]
    # A gateway and a server let what is under way finish. The others lose nothing by an end at once, and a worker
    # that lingered would keep its lease from the one that follows.
    gentle = name in {"gateway", "server"}
    die_with_parent(int(parent), by=signal.SIGTERM if gentle else signal.SIGKILL)
    try:
        ENTRIES[name](open_state(Path(folder)))
    except KeepwellError as error:
        sys.stderr.write(f"keepwell {name}: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
