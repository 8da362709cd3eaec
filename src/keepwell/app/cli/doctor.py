"""``keepwell doctor``: looks for what is wrong before it hurts."""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec

from keepwell.app.cli.common import print_json
from keepwell.app.config import find_project
from keepwell.app.proof import evidence_problems
from keepwell.app.wiring import State, open_state
from keepwell.core.auditing import audit_problems
from keepwell.core.errors import KeepwellError
from keepwell.core.records.work import Work


def run(given: argparse.Namespace) -> int:
    """Run every examination and show the findings; the exit status is 1 if one is bad."""
    findings: list[dict[str, str]] = []

    def examine(name: str, look: Callable[[], str]) -> None:
        try:
            problem = look()
        except KeepwellError as error:
            problem = str(error)
        findings.append({"name": name, "state": "bad" if problem else "good", "detail": problem})

    examine(
        "python", lambda: "" if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed."
    )
    examine(
        "onnxruntime",
        lambda: (
            ""
            if find_spec("onnxruntime")
            else "Tree models will run natively, slower: install 'keepwell[sklearn]'."
        ),
    )
    states: list[State] = []

    def project() -> str:
        states.append(open_state(find_project(given.project)))
        return ""

    examine("project", project)
    if states:
        state = states[0]
        examine("module", lambda: "" if state.project.models else "It declares no model.")
        examine(
            "store", lambda: "" if state.store.version() >= 0 else "It has no counter of changes."
        )
        examine("disk", lambda: _disk(state))
        for label, name, port in (
            ("server", "server", state.settings.server.port),
            ("gateway", "gateway", state.settings.server.gateway_port),
            ("gRPC", "grpc", state.settings.server.grpc_port),
        ):
            if port is None:
                continue
            examine(f"{label} port {port}", lambda port=port, name=name: _port(state, name, port))  # type: ignore[misc]
        examine("audit trail", lambda: "; ".join(audit_problems(state.store)))
        examine("evidence", lambda: "; ".join(evidence_problems(state)))
        examine(
            "work",
            lambda: "; ".join(
                f"{w.id}: {w.error}" for w in state.store.find(Work, {"state": "failed"})
            ),
        )
    bad = any(finding["state"] == "bad" for finding in findings)
    if given.json:
        print_json(findings)
    else:
        for finding in findings:
            sys.stdout.write(
                f"{'ok  ' if finding['state'] == 'good' else 'BAD '} {finding['name']}  {finding['detail']}\n"
            )
    return int(bad)


def _disk(state: State) -> str:
    free = shutil.disk_usage(state.folder).free
    return (
        "" if free > 1e9 else f"Only {free / 1e6:,.0f} MB are free; the prediction log needs room."
    )


def _port(state: State, name: str, port: int) -> str:
    if port == 0 or (state.state / "run" / f"{name}.json").exists():
        return ""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((state.settings.server.host, port))
        except OSError as error:
            return f"It cannot be bound: {error.strerror}. Set another one under [server] in keepwell.toml."
    return ""
