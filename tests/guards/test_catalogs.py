"""Every member of every catalog loads, and has a heading on the reference page of its room."""

import importlib
import pkgutil
from importlib.metadata import EntryPoint

import pytest
from scripts.reference import ROOT
from tests.guards.pages import headings

import keepwell
from keepwell.core.catalog import Catalog


def modules():
    for found in pkgutil.walk_packages(keepwell.__path__, "keepwell."):
        if ".migrations" not in found.name and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def catalogs():
    """Every catalog with the room that holds it; one that is imported elsewhere counts once."""
    found = {}
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, Catalog) and id(value) not in found:
                found[id(value)] = (value, module.__name__.split(".")[1])
    return {catalog.family: (catalog, room) for catalog, room in found.values()}


CATALOGS = catalogs()


def undocumented(catalog, page):
    told = {heading.strip("`") for heading in headings(page)}
    return [name for name in catalog.names() if name not in told]


@pytest.mark.parametrize("family", sorted(CATALOGS))
def test_every_member_has_a_heading_and_loads(family):
    catalog, room = CATALOGS[family]
    page = (ROOT / "docs" / "reference" / f"{room}.md").read_text()
    assert catalog.names()
    assert undocumented(catalog, page) == []
    for name in catalog.names():
        assert catalog.load(name) is not None


def test_a_member_without_a_heading_would_be_found(monkeypatch):
    assert {"monitor", "predictor", "strategy"} <= set(CATALOGS)
    catalog = Catalog("bird", {"magpie": "json:loads"})
    assert undocumented(catalog, "# Birds\n\n## wren\n") == ["magpie"]
    theirs = [EntryPoint("jay", "json:dumps", "keepwell.bird")]
    monkeypatch.setattr("keepwell.core.catalog.entry_points", lambda group: theirs)
    assert undocumented(catalog, "# Birds\n\n## magpie\n") == ["jay"]
