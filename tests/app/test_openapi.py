"""The control API does what its OpenAPI document says, whatever is asked: judged by schemathesis over real HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.app.projects import copied

pytestmark = pytest.mark.services

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
    "unsupported_method",
    "negative_data_rejection",
)
"""All that follow from the document. Left out: JSON Schema takes 1.0 for a whole number, and we do not."""
SOME = r"/api/v1/(releases|approvals|activations|rollbacks|audit|status)$"
"""Every verb and kind of answer; the other lists are made like that of releases."""


@pytest.fixture(scope="module")
def served(trained_project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the control server of a project with a released version and give its address."""
    folder = Path(copied(trained_project, tmp_path_factory.mktemp("api") / "tumours"))
    run = folder / ".keepwell" / "run"
    (run / "server.json").unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "keepwell.app.processes", "server", str(folder), str(os.getpid())]
    )  # fmt: skip
    url = ""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            url = json.loads((run / "server.json").read_bytes())["url"]
            urllib.request.urlopen(url + "/health", timeout=60).close()
            break
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(60)


def test_no_request_makes_the_control_api_fail_or_answer_against_its_schema(served: str, tmp_path):
    said = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "--no-color", "run", f"{served}/openapi.json",
            "--header", "X-Keepwell-User: me", "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing",
            "--include-path-regex", SOME, "--max-examples", "6", "--seed", "1", "--request-timeout", "60", "--generation-database", "none",
        ],
        capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr[-2000:]
    assert " 9 selected / " in said.stdout


@pytest.mark.parametrize(
    "asked",
    [
        "models?limit=%C2%B2",
        "models?limit=" + "9" * 5000,
        "audit?after=%C2%B2",
        "audit?after=9223372036854775808",
        "versions?version=9223372036854775808",
        "versions?version=x",
        "work?args=x",
    ],
)
def test_a_number_that_is_none_is_refused(served: str, asked: str):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served}/api/v1/{asked}", timeout=60)
    with refused.value as error:
        assert error.code == 422
        assert json.loads(error.read())["error"]["code"] == "invalid_input"


@pytest.mark.parametrize(
    "body", [b'{"model":"a\xff","version":1}', b"\xff", b"[" * 60_000, b"{}", b""]
)
def test_a_body_that_cannot_be_read_is_refused(served: str, body: bytes):
    asked = urllib.request.Request(
        f"{served}/api/v1/releases", data=body, headers={"X-Keepwell-User": "me"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=60)
    with refused.value as error:
        assert error.code == 422
