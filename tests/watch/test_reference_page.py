"""The reference page of watching speaks of every monitor."""

from __future__ import annotations

from pathlib import Path

from keepwell.watch.monitors import MONITORS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "watch.md"


def undocumented(page: str) -> list[str]:
    return [name for name in MONITORS.names() if f"\n### {name}\n" not in page]


def test_every_monitor_has_its_heading():
    page = PAGE.read_text(encoding="utf-8")
    assert undocumented(page) == []
    assert undocumented(page.replace("### business\n", "")) == ["business"]
