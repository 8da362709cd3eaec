"""Pages keep their promises: links lead somewhere, examples run, commands exist, words have a home."""

import importlib
import re
import tomllib

import pytest
from scripts.reference import ROOT, commands
from tests.guards.pages import (
    LINK,
    SPAN,
    Block,
    blocks,
    headings,
    pages,
    prose,
    slug,
    typed,
    wrong_command,
    wrong_span,
)

from keepwell.app.cli.main import build_parser
from keepwell.core.project import Project, collecting

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page, page.read_text())]


def name(page):
    return str(page.relative_to(ROOT))


def broken_links(page, text):
    broken = []
    for target in LINK.findall(prose(text)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            broken.append(target)
        elif anchor:
            there = text if file == page else file.read_text()
            if anchor not in {slug(heading) for heading in headings(there)}:
                broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    assert broken_links(page, page.read_text()) == []


def test_a_broken_link_would_be_found():
    text = "[a](nowhere.md) [b](#no-such-heading) [c](#here) [d](http://plain.example)\n\n# Here\n"
    found = broken_links(PAGES[0], text)
    assert found == ["nowhere.md", "#no-such-heading", "http://plain.example"]


def reached(start):
    seen = {start}
    todo = [start]
    while todo:
        page = todo.pop()
        for target in LINK.findall(prose(page.read_text())):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists() and file not in seen:
                seen.add(file)
                todo.append(file)
    return seen


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    assert {name(page) for page in PAGES} - {name(page) for page in reached(index)} == set()
    assert len(reached(ROOT / "docs" / "decisions" / "0003-event-time-closes-windows.md")) == 1


PYTHON = [block for block in BLOCKS if block.kind == "python"]


def run_block(block):
    code = compile(block.text, f"{block.page}:{block.line}", "exec")
    if not block.mark.startswith(("needs: ", "file: ", "part of: ")):
        with collecting(Project(name="docs")):
            exec(code, {"__name__": "docs"})


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{name(block.page)}:{block.line}")
def test_every_python_example_runs(block):
    run_block(block)


def test_an_example_that_fails_would_be_noticed():
    assert sum(not block.mark for block in PYTHON) >= 4
    wrong = Block(PAGES[0], "python", "", "from keepwell import sorce", 1)
    with pytest.raises(ImportError):
        run_block(wrong)
    with pytest.raises(SyntaxError):
        run_block(wrong._replace(text="def :", mark="needs: more"))


SHELL = [(b, line) for b in BLOCKS if b.kind in {"sh", "console"} for line in typed(b)]
TYPED = [(b, line) for b, line in SHELL if re.match(r"(\S*/)?keepwell ", line)]


@pytest.mark.parametrize(("block", "line"), TYPED, ids=lambda each: str(each)[-60:])
def test_every_command_that_one_is_told_to_type_is_understood(block, line):
    assert wrong_command(line) == "", f"{name(block.page)}:{block.line}"


def test_a_command_that_is_not_understood_would_be_found():
    assert len(TYPED) > 30
    assert wrong_command("keepwell approve tumour/1") != ""
    assert wrong_command("keepwell relaese tumour/1") != ""
    assert wrong_span("keepwell relaese") != ""
    assert wrong_span("keepwell train --relaese") != ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_is_spoken_of_exists(page):
    spans = [span for span in SPAN.findall(prose(page.read_text())) if span.startswith("keepwell ")]
    assert [wrong for span in spans if (wrong := wrong_span(span))] == []


def made(text):
    """The targets that a text tells one to make."""
    found = re.findall(r"(?:^|[`\s])make((?: [a-z][a-z-]*)+)", text, flags=re.MULTILINE)
    return [target for words in found for target in words.split()]


def test_every_target_that_one_is_told_to_make_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    spoken = [span for page in PAGES for span in SPAN.findall(prose(page.read_text()))]
    told = made("\n".join(line for _, line in SHELL) + "\n" + "\n".join(spoken))
    assert {"setup", "demo", "test", "reference"} <= set(told)
    assert set(told) - targets == set()
    assert made("`make tset lint`") == ["tset", "lint"]


def unknown_commands(text):
    known = {words.split()[0] for words, _ in commands(build_parser())}
    return [word for word in re.findall(r"'keepwell ([a-z]+)", text) if word not in known]


def test_every_command_that_a_message_names_exists():
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert {str(p): found for p in sources if (found := unknown_commands(p.read_text()))} == {}
    assert unknown_commands("Run 'keepwell status', then 'keepwell fly'.") == ["fly"]


def unknown_extras(text):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return [extra for extra in re.findall(r"keepwell\[([a-z0-9-]+)\]", text) if extra not in extras]


def test_every_extra_that_is_named_exists():
    texts = [path.read_text() for path in [*sorted((ROOT / "src").rglob("*.py")), *PAGES]]
    assert [found for text in texts if (found := unknown_extras(text))] == []
    assert unknown_extras("install 'keepwell[sklearn]' or 'keepwell[magic]'") == ["magic"]


NOUNS = [
    "project", "source", "snapshot", "entity", "feature view", "training set", "experiment", "run",
    "model", "model version", "signature", "predictor", "check", "verdict", "evidence", "policy",
    "approval", "release", "activation", "endpoint", "traffic plan", "rollout", "arm", "decision id",
    "prediction", "outcome", "window", "monitor", "alert", "KPI", "value ledger", "audit entry",
]  # fmt: skip


def homeless(text):
    """Words of the glossary whose home is not in the code."""
    wrong = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        word, _, body = part.partition("\n")
        homes = re.findall(r"\*Home:\*\s+`([\w.]+)`", body)
        if word != "Not built" and (len(homes) != 1 or not lives(homes[0])):
            wrong.append(word)
    return wrong


def lives(path):
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        try:
            for attribute in parts[n:]:
                found = getattr(found, attribute)
        except AttributeError:
            return False
        return n < len(parts)
    return False


def test_every_word_of_the_glossary_has_its_home_in_the_code():
    text = (ROOT / "docs" / "glossary.md").read_text()
    assert homeless(text) == []
    told = {heading.lower() for heading in headings(text)}
    assert {noun.lower() for noun in NOUNS} - told == set()
    assert homeless("## Ghost\nNobody. *Home:* `keepwell.core.project.Ghost`\n") == ["Ghost"]
    assert homeless("## Tramp\nWithout one.\n") == ["Tramp"]
