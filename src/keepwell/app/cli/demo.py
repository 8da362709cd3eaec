"""``keepwell demo``: a project's whole way, told while it happens."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from urllib.parse import urlsplit

import msgspec

from keepwell.app.cli.common import print_json
from keepwell.app.config import find_project
from keepwell.app.demo import Demo
from keepwell.app.receiver import LOOPBACK, Receiver
from keepwell.app.summary import render
from keepwell.app.up import Supervisor, run_until_told
from keepwell.app.wiring import State, open_state
from keepwell.core.errors import Refused


def run(given: argparse.Namespace) -> int:
    """Tell the story, print and write the summary, and stay up unless told to exit."""
    folder = find_project(given.folder)
    if given.state is not None:
        shutil.copytree(
            folder,
            given.state,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(".keepwell", "__pycache__"),
        )
        folder = find_project(given.state)
    state = open_state(folder)
    if given.fresh:
        _forget(state, sure=given.yes)
        state = open_state(folder)

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    with contextlib.ExitStack() as stack:
        for channel in state.settings.alerts:
            if channel.kind == "webhook" and urlsplit(channel.url).hostname in LOOPBACK:
                stack.enter_context(
                    Receiver(channel.url, path=state.state / "run" / "alerts.jsonl")
                )
        supervisor = stack.enter_context(Supervisor(state, say=say, gives_up=given.exit))
        say(f"dashboard  {supervisor.url('server')}\ngateway    {supervisor.url('gateway')}")
        summary = Demo(state, supervisor, say=say, until=given.until).run()
        if given.summary is not None:
            given.summary.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2))
        if given.json:
            print_json(summary)
        else:
            sys.stdout.write(render(summary) + "\n")
        sys.stdout.flush()
        if not given.exit:
            say(f"\nThe dashboard stays at {supervisor.url('server')} until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt):
                run_until_told(supervisor)
    return 0 if summary["requests"]["failed"] == 0 and summary["predictions"]["equal"] else 1


def _forget(state: State, *, sure: bool) -> None:
    if not state.state.exists():
        return
    if not sure:
        sys.stderr.write(f"Forget everything in {state.state}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise Refused("Nothing was changed.")
    aside = state.state.with_name(f".keepwell-{state.clock.now()}")
    state.state.rename(aside)
    sys.stderr.write(f"The earlier run was moved to {aside}.\n")
