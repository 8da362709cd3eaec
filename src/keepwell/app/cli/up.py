"""``keepwell up``: the whole project on this machine."""

from __future__ import annotations

import argparse
import sys
import time

from keepwell.app.cli.common import print_json, project_state
from keepwell.app.up import Supervisor, run_until_told


def say(line: str) -> None:
    """Tell what happens, on standard error."""
    sys.stderr.write(f"keepwell up: {line}\n")
    sys.stderr.flush()


def run(given: argparse.Namespace) -> int:
    """Start, tell the addresses, and stay until told to stop."""
    state = project_state(given)
    with Supervisor(state, say=say) as supervisor:
        addresses = {"dashboard": supervisor.url("server"), "gateway": supervisor.url("gateway")}
        if given.json:
            print_json({**addresses, "pids": supervisor.pids()})
        else:
            sys.stdout.write(
                f"dashboard  {addresses['dashboard']}\ngateway    {addresses['gateway']}\n"
                f"tracking   MLFLOW_TRACKING_URI={addresses['dashboard']}\nCtrl-C stops it.\n"
            )
        sys.stdout.flush()
        end = None if given.seconds is None else time.monotonic() + given.seconds
        try:
            run_until_told(
                supervisor, until=None if end is None else lambda: time.monotonic() > end
            )
        except KeyboardInterrupt:
            say("stopping")
    return 0
