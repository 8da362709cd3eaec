"""New code reaches a running gateway by a command, and nobody who asks notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.services


@pytest.fixture
def gateway(fresh) -> Iterator[Path]:
    """Start the gateway of a project, alone, and give the folder where it says what it is."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "keepwell.app.processes",
            "gateway",
            str(fresh.folder),
            str(os.getpid()),
        ]
    )
    run: Path = fresh.folder / ".keepwell" / "run"
    deadline = time.monotonic() + 90
    while not (run / "gateway.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield run
    process.terminate()
    process.wait(60)


def asked(run: Path) -> int:
    url = json.loads((run / "gateway.json").read_bytes())["url"]
    with urllib.request.urlopen(url + "/live", timeout=60) as answer:
        return int(answer.status)


def test_reload_replaces_the_workers_of_a_running_gateway(fresh, gateway: Path):
    assert asked(gateway) == 200
    pids = []
    for _ in range(2):
        said = fresh("reload", "--json").json
        assert said["problem"] == ""
        pids += said["pids"]
        assert asked(gateway) == 200
    assert len(set(pids)) == 2
    assert "replaced; workers: " in fresh("reload").out


def test_reload_without_a_gateway_says_how_to_start_one_and_signals_nobody(fresh):
    run = fresh.folder / ".keepwell" / "run"
    run.mkdir(parents=True)
    fresh.fails("reload", status=7, says="No gateway of this project runs.*keepwell up")
    # The number of a gateway that ended may belong to somebody else by now: to this very process, here.
    (run / "gateway.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid()}))
    fresh.fails("reload", status=7, says="No gateway of this project runs")
