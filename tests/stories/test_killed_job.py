"""The main job with the plug pulled on each of its processes in turn, while it trains, releases, serves and watches."""

import json
import subprocess
import time

import pytest
from tests.stories.projects import (
    KEEPWELL,
    flights,
    keepwell,
    kill,
    processes_of,
    pull_the_plug,
    state_of,
    wait_until,
)

from keepwell.core.records.lifecycle import StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Replay

pytestmark = [
    pytest.mark.slow,
    pytest.mark.services,
    pytest.mark.timeout(500),
]

VICTIMS = ("replay", "worker", "demo", "gateway-worker", "gateway", "server")
"""Which of those that live is killed first; the replay is there only for a while."""
UNTIL = "2013-04-06"


def begin(folder):
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            [*KEEPWELL, "demo", ".", "--exit", "--summary", "summary.json"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


def progress(state):
    """How far the job is, as a number that grows: versions, steps, days of traffic."""
    replay = state.store.get(Replay, "demo")
    days = (replay.position - replay.since) // 86_400_000_000 if replay else 0
    return state.store.count(ModelVersion) + state.store.count(StepResult) + days


def by_version(rows):
    return sorted(rows, key=lambda row: row["version"])


def test_a_kill_of_each_process_at_moments_of_the_whole_job_changes_nothing_of_its_end(
    request, tmp_path
):
    folder = flights(tmp_path / "flights", replay_until=UNTIL)
    state = state_of(folder)
    demo = begin(folder)
    kills = dict.fromkeys(VICTIMS, 0)
    done = 0
    try:
        while demo.poll() is None:
            # Each process is killed once, at moments that progress spreads over the job.
            wait_until(lambda: progress(state) >= done + 4 or demo.poll() is not None, seconds=450)  # noqa: B023
            done = progress(state)
            running = processes_of(folder)
            alive = {"demo", *running}
            victim = next((v for v in VICTIMS if v in alive and not kills[v]), None)
            if victim is None or demo.poll() is not None:
                continue
            kills[victim] += 1
            if victim == "demo":
                pull_the_plug(demo, folder)
                time.sleep(0.1)
                demo = begin(folder)
            else:
                kill(running[victim])
        demo.wait(timeout=90)
    finally:
        if demo.poll() is None:
            pull_the_plug(demo, folder)
    assert demo.returncode == 0, (folder / "said.txt").read_text()
    assert all(kills.values()), kills

    summary = json.loads((folder / "summary.json").read_text())
    undisturbed = request.getfixturevalue("told")[
        1
    ]  # only now: another process may be telling it meanwhile
    # Releases run side by side, so only the order within each is the same.
    for procedure in ("release", "refused", "activation"):
        assert by_version(summary[procedure]) == by_version(undisturbed[procedure])
    assert summary["requests"]["failed"] == 0
    assert summary["predictions"]["equal"]
    assert summary["predictions"]["acknowledged"] == state.store.get(Replay, "demo").sent
    keepwell("evidence", "verify", folder=folder)
    keepwell("audit", "verify", folder=folder)
