"""A project whose gateway has a certificate: its own processes ask over TLS, and wrong files are told at the start."""

import asyncio
import json
import os
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from tests.app.projects import made
from tests.serving.transport.certificates import make

from keepwell.app.config import read_settings
from keepwell.app.replay import Sender
from keepwell.app.web.pages import Pages
from keepwell.app.wiring import open_state
from keepwell.core.errors import InvalidInput
from keepwell.serving.application import HttpApplication


def configured(folder, *lines):
    path = folder / "keepwell.toml"
    path.write_text(path.read_text().replace("[server]\n", "\n".join(["[server]", *lines, ""])))
    return folder


@pytest.fixture
def project(tmp_path):
    folder = made(tmp_path / "tumours")
    make(folder)
    return configured(folder, 'tls_certificate = "gateway.crt"', 'tls_key = "gateway.key"')


def started(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "keepwell.app.processes", "gateway", str(folder), str(os.getpid())],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_projects_own_processes_speak_https_and_trust_its_certificate(project):
    state = open_state(project)
    process = started(project)
    try:
        told = state.state / "run" / "gateway.json"
        deadline = time.monotonic() + 90
        while not told.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert json.loads(told.read_text())["url"] == state.gateway_url
        parts = urlsplit(state.gateway_url)
        assert parts.scheme == "https"
        assert parts.hostname
        assert parts.port
        host, port = parts.hostname, parts.port
        # As probes ask, as the dashboard does, and as a replay does.
        application = state.context.application
        assert isinstance(application, HttpApplication)
        assert application.request("GET", "/live")[0] == 200
        assert Pages(state)._traffic("tumour") == ([], "")

        async def replayed():
            sender = Sender(host, port, connections=2, trust=state.gateway_trust)
            await sender.send([b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"] * 30)
            sender.close()
            return sender.acknowledged, sender.failed

        assert asyncio.run(replayed()) == (30, 0)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert said == ""


def test_a_gateway_with_wrong_files_does_not_start_and_says_why(project):
    (project / "gateway.key").unlink()
    process = started(project)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 7
    assert "gateway.key: The gateway's TLS key cannot be read: No such file or directory." in said
    assert "tls_certificate and tls_key under [server]" in said


@pytest.mark.parametrize(
    ("given", "missing"), [("tls_key", "tls_certificate"), ("tls_certificate", "tls_key")]
)
def test_a_certificate_without_a_key_is_refused_before_anything_starts(tmp_path, given, missing):
    folder = configured(made(tmp_path / "tumours"), f'{given} = "a.pem"')
    with pytest.raises(InvalidInput, match=f"There is a {given} without a {missing}"):
        read_settings(folder)
