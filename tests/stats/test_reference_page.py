"""Promises of the room's pages: every public name is explained, cited and shown."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import keepwell.stats

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "stats.md"
MODULES = [
    importlib.import_module(f"keepwell.stats.{found.name}")
    for found in pkgutil.iter_modules(keepwell.stats.__path__)
    if not found.name.startswith("_")
]


def _public(module):
    return [
        (name, member)
        for name, member in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or inspect.isclass(member))
        and member.__module__ == module.__name__
    ]


def _missing_headings(page: str, names: list[str], mark: str) -> list[str]:
    headings = {
        line.removeprefix(mark).strip() for line in page.splitlines() if line.startswith(mark)
    }
    return [name for name in names if name not in headings]


def test_every_module_function_and_class_has_a_heading() -> None:
    page = PAGE.read_text()
    modules = [module.__name__.rpartition(".")[2] for module in MODULES]
    names = [name for module in MODULES for name, _ in _public(module)]
    assert _missing_headings(page, modules, "## ") == []
    assert _missing_headings(page, names, "### ") == []
    assert len(names) > 40
    # The known-bad control: a name that nobody explained is found.
    assert _missing_headings(page, ["unexplained"], "### ") == ["unexplained"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_function_says_what_it_raises_and_shows_an_example(module) -> None:
    for name, member in _public(module):
        if inspect.isfunction(member):
            text = inspect.getdoc(member) or ""
            assert ">>>" in text, name
            assert "Raises ValueError" in text or "errors, source: as" in text or name == "step", (
                name
            )
