"""What the reference pages say is what the code says."""

import re

import pytest
from scripts.reference import BLOCKS, ROOT, arguments, commands, renewed, settings_of, tables
from tests.guards.pages import pages, wrong_command

from keepwell.app.api import control
from keepwell.app.cli.main import build_parser
from keepwell.app.web.pages import routes as page_routes
from keepwell.app.wiring import open_state
from keepwell.core.settings import Settings

REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_takes_from_the_code_is_up_to_date(page):
    text = page.read_text()
    assert renewed(text) == text, "run 'make reference'"


def test_every_part_that_is_made_from_the_code_stands_on_a_page():
    told = {
        name
        for page in pages()
        for name in re.findall(r"made from the code: ([\w-]+) -->", page.read_text())
    }
    assert told == set(BLOCKS)


def test_a_changed_default_would_be_noticed():
    text = (REFERENCE / "settings.md").read_text()
    assert "| `approvals` | whole number, 0 or more | `2` |" in text
    stale = text.replace(
        "| `approvals` | whole number, 0 or more | `2` |",
        "| `approvals` | whole number, 0 or more | `1` |",
    )
    assert renewed(stale) == text


def unexplained_settings(found):
    return [
        f"{table} {s.name}" for table, each in found for s in each if not s.sentence.endswith(".")
    ]


def test_every_setting_has_a_sentence():
    found = [(table, settings_of(kind)) for table, kind in tables(Settings)]
    assert sum(len(each) for _, each in found) > 40
    assert unexplained_settings(found) == []
    bare = type(found[0][1][0])(name="x", type="int", default="1", sentence="")
    assert unexplained_settings([("[server]", [bare])]) == ["[server] x"]


def without_help(parser):
    return [name for name, command in commands(parser) if not command.description] + [
        f"{name} {action.dest}"
        for name, command in commands(parser)
        for action in arguments(command)
        if not action.help
    ]


def test_every_command_and_every_option_has_help():
    parser = build_parser()
    # What a word in capitals stands for is told by its command's sentence.
    assert [name for name in without_help(parser) if name not in WITHOUT_HELP] == []
    bad = dict(commands(parser))["status"]
    bad.add_argument("--nothing-said")
    assert "status nothing_said" in without_help(parser)


WITHOUT_HELP = {"rollback endpoint", "evidence verb", "audit verb"}


def test_the_page_says_what_every_command_prints_as_json():
    text = (REFERENCE / "cli.md").read_text()
    shapes = text.partition("## What --json prints")[2].partition("## Commands")[0]
    told = re.findall(r"^\| `([a-z -]+)` \|", shapes, flags=re.MULTILINE)
    needed = {
        name.split()[0]
        for name, command in commands(build_parser())
        if "--json" in command.format_help()
    }
    assert set(told) == needed
    assert wrong_command("keepwell status --jsn")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    (folder / "keepwell.toml").write_text('[project]\nname = "bare"\nmodule = "bare"\n')
    (folder / "bare.py").write_text("")
    return open_state(folder)


def test_every_page_of_the_dashboard_is_on_its_reference_page(state):
    text = (REFERENCE / "web.md").read_text()
    told = set(re.findall(r"^\| `(/[^`]*)` \|", text, flags=re.MULTILINE))
    assert told == {route.path for route in page_routes(state)}
    assert "/ledger" in told


def test_every_route_of_the_control_api_is_in_its_document(state):
    served = {
        (method, route.path)
        for route in control.routes(state)
        for method in route.methods or ()
        if method != "HEAD" and route.path != "/openapi.json"
    }
    told = {
        (method.upper(), path)
        for path, item in control.openapi()["paths"].items()
        for method in item
    }
    assert told == served
    assert ("POST", "/api/v1/releases") in served
