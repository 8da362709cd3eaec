"""The real Prometheus: its linter, and a server that scrapes one target."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stories.projects import free_port

TOOLS = Path(__file__).parents[3] / ".tools" / "usr" / "bin"


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:{TOOLS}")
    assert found, "The tests of /metrics need Prometheus: scripts/ensure-prometheus"
    return found


def lint(text: str) -> str:
    """What promtool finds to complain of."""
    ended = subprocess.run(
        [program("promtool"), "check", "metrics"],
        check=False,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (ended.stdout + ended.stderr).strip()


class Server:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(
            f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=30
        ) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        found = self.ask("/api/v1/query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def wait(self, query: str, value: float) -> None:
        deadline = time.monotonic() + 60
        seen = None
        while time.monotonic() < deadline:
            try:
                seen = self.value(query)
            except OSError:
                seen = None  # it starts
            if seen == value:
                return
            time.sleep(0.1)
        raise AssertionError(f"{query} is {seen}, not {value}")


@contextmanager
def scraping(folder: Path, target: str, *, token: str = "") -> Iterator[Server]:
    port = free_port()
    folder.mkdir()
    authorization = f"\n    authorization: {{credentials: '{token}'}}" if token else ""
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n"
        f"  - job_name: keepwell\n    static_configs: [{{targets: ['{target}']}}]{authorization}\n"
    )
    process = subprocess.Popen(
        [
            program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Server(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
