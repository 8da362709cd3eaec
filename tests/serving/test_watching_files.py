"""The files for Prometheus and Grafana that the documentation hands out do what it says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.gateways import Gateway
from tests.serving.telemetry.prometheus import program

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "howto" / "prometheus"
RULES = FILES / "keepwell.rules.yml"
PANELS = json.loads((FILES / "grafana.json").read_text())["panels"]


def promtool(*arguments: str) -> str:
    ended = subprocess.run(
        [program("promtool"), *arguments],
        check=False,
        cwd=FILES,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "what", [("check", "config", "prometheus.yml"), ("test", "rules", "keepwell.rules.test.yml")]
)
def test_promtool_takes_the_files(what: tuple[str, ...]):
    assert promtool(*what) == ""


def test_promtool_would_refuse_a_rule_that_speaks_too_late(tmp_path: Path):
    for path in FILES.glob("*.yml"):
        (tmp_path / path.name).write_text(path.read_text().replace("for: 1m", "for: 9m"))
    assert "FAILED" in promtool("test", "rules", str(tmp_path / "keepwell.rules.test.yml"))


def known(gateway: Gateway) -> set[str]:
    page = gateway.application.request("GET", "/metrics")[1].decode()
    families = text_string_to_metric_families(page)
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    names = {f"{f.name}{suffix}" for f in families for suffix in suffixes.get(f.type, ("",))}
    control = (ROOT / "src" / "keepwell" / "app" / "api" / "metrics.py").read_text()
    return names | set(re.findall(r'"(keepwell_\w+)"', control)) | {
        f"keepwell_{name}" for name in re.findall(r'"(log_\w+)"', control)
    }  # fmt: skip


def test_every_name_that_is_asked_for_is_one_that_is_told(gateway: Gateway):
    names = known(gateway)
    asked = set(re.findall(r"keepwell_\w+", RULES.read_text() + json.dumps(PANELS)))
    assert len(asked) > 20
    assert asked - names == set()
    page = (ROOT / "docs" / "reference" / "serving.md").read_text()
    plain = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in names if name.startswith("keepwell_")
    }
    missing = {name for name in plain if name not in page}
    assert (
        missing - {"keepwell_model_call_failures_total", "keepwell_model_call_seconds_total"}
        == set()
    )
