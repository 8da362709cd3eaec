"""A project that is not flights goes the whole way as a new user would take it."""

import json
import os
import urllib.request

import pytest
from tests.stories.projects import Up, keepwell, kill, state_of, wait_until, with_free_ports

from keepwell.core.records.lifecycle import Activation, Release, StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import TrafficPlan
from keepwell.lifecycle.activation import start_activation
from keepwell.lifecycle.approvals import approve
from keepwell.lifecycle.training import start_training, training_work

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(400)]

EVERY = 1 if os.environ.get("KEEPWELL_LONG") else 2
"""Kill after each step, or to save time after every second one; the other story kills at moments of any kind."""
ROW = {
    "mean radius": 20.0, "mean texture": 25.0, "mean smoothness": 0.1, "mean concavity": 0.2,
    "mean symmetry": 0.2, "worst radius": 25.0,
}  # fmt: skip


def made(tmp_path):
    folder = tmp_path / "tumours"
    keepwell("init", str(folder), folder=tmp_path)
    assert len((folder / "tumours.py").read_text().splitlines()) < 80
    with_free_ports(folder)
    return folder


def post(url, body):
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_init_train_release_approve_activate_and_serve(tmp_path):
    folder = made(tmp_path)
    versions = json.loads(
        keepwell("train", "--as", "me", "--release", "--json", folder=folder).stdout
    )
    released = [v["version"] for v in versions if v["state"] == "released"]
    assert released, versions
    label = f"tumour/{released[0]}"

    own = keepwell("approve", label, "--as", "me", "--reason", "mine", folder=folder, check=False)
    assert own.returncode == 5
    assert "may not approve" in own.stderr
    keepwell("approve", label, "--as", "colleague", "--reason", "finds more", folder=folder)

    with Up(folder) as up:
        shown = keepwell("activate", label, "--as", "me", folder=folder)
        assert "waits at 'KPI validation'" in shown.stdout
        answers = post(f"{up.gateway}/v1/endpoints/tumour/predict", {"rows": [ROW, ROW]})[
            "predictions"
        ]
        assert [a["version"] for a in answers] == [released[0]] * 2
        assert 0.5 < answers[0]["prediction"] <= 1
        with urllib.request.urlopen(f"{up.dashboard}/", timeout=60) as page:
            assert label in page.read().decode()
        status, said = up.interrupt()
        assert (status, "Traceback" in said) == (0, False), said
        assert not up.children()
    status = json.loads(keepwell("status", "--json", folder=folder).stdout)
    assert status["plans"]["tumour"]["arms"][0]["version"] == released[0]


def steps_done(state):
    return state.store.count(StepResult)


def test_a_kill_after_every_step_of_the_job_changes_nothing_of_its_end(tmp_path):
    folder = made(tmp_path)
    state = state_of(folder)
    victims = ["worker", "up", "gateway", "server"]
    up = Up(folder).__enter__()
    kills = 0
    try:
        now = state.clock.now()
        start_training(
            state.project,
            training_work(
                id="train-1", model="tumour", candidates=("linear",), since=None, until=now,
                as_of=now, seed=0, author="me", now=now, release=True,
            ),
            actor="me",
            store=state.store,
        )  # fmt: skip
        activation = None
        seen = killed_at = 0
        while True:
            wait_until(lambda seen=seen: steps_done(state) > seen or finished(state))
            releases = state.store.find(Release)
            if activation is None and releases and releases[0].state == "passed":
                version = state.store.get(ModelVersion, "tumour", 1)
                approve(
                    "tumour", 1, by="colleague", reason="finds more", expires_in="1d", store=state.store,
                    blobs=state.blobs, signer=state.signer, clock=state.clock,
                )  # fmt: skip
                activation = start_activation(state.context, version, actor="me")
            if finished(state):
                break
            seen = steps_done(state)
            if seen < killed_at + EVERY:
                continue
            killed_at = seen  # steps may be quicker than these looks at them
            victim = victims[kills % len(victims)]
            kills += 1
            if victim == "up":
                up.kill()
                up = Up(folder).__enter__()
            elif pid := up.children().get(victim):
                kill(pid)
        assert kills >= 8 // EVERY
        answers = wait_until(
            lambda: answered(state.gateway_url)
        )  # a gateway begun again has another free port
        assert answers[0]["version"] == 1
    finally:
        up.__exit__()
    assert [p.revision for p in state.store.find(TrafficPlan)] == [1]
    assert (
        steps_done(state) == 13
    )  # seven of the release, six of the activation: the seventh waits for labels
    assert state.store.count(ModelVersion) == 1
    keepwell("evidence", "verify", folder=folder)
    keepwell("audit", "verify", folder=folder)


def finished(state):
    found = state.store.find(Activation)
    return bool(found) and found[0].state == "waiting" and found[0].step == "KPI validation"


def answered(gateway):
    try:
        return post(f"{gateway}/v1/endpoints/tumour/predict", {"rows": [ROW]})["predictions"]
    except OSError:
        return None
