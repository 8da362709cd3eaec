"""What the guards read: pages of Markdown with their blocks, links, headings and commands."""

import argparse
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from scripts.reference import ROOT, commands

from keepwell.app.cli.main import build_parser
from keepwell.core.errors import KeepwellError

FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    page: Path
    kind: str
    mark: str
    text: str
    line: int


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, text: str) -> list[Block]:
    return [
        Block(
            page,
            found["kind"],
            found["mark"] or "",
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            text[: found.start("text")].count("\n") + 1,
        )
        for found in FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def slug(heading: str) -> str:
    """The anchor that a heading gets on a page."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


def headings(text: str) -> list[str]:
    return [
        found[2].strip() for found in re.finditer(r"^(#+) (.+)$", prose(text), flags=re.MULTILINE)
    ]


def typed(block: Block) -> list[str]:
    """The commands of a shell block, continuation lines joined, comments and prompts taken off."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    if block.kind == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [
        part.strip()
        for line in lines
        for part in re.split(r"&&|;|\|", re.sub(r"(^|\s)#.*", "", line))
        if part.strip()
    ]


def every_parser(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from every_parser(child)


def wrong_command(line: str) -> str:
    """Why a ``keepwell`` command line would be refused by the parser; empty if it would not be."""
    parser = build_parser()
    said: list[str] = []

    def refuse(message: str) -> None:
        said.append(message)
        raise SystemExit(2)

    for each in every_parser(parser):
        each.error = refuse
    try:
        parser.parse_args(shlex.split(line.partition(" > ")[0])[1:])
    except KeepwellError as error:
        return str(error)
    except SystemExit:
        return said[0] if said else ""
    return ""


def wrong_span(span: str) -> str:
    """What is wrong with a command that is only spoken of: its name, or an option that it does not have."""
    known = dict(commands(build_parser()))
    words = span.split()[1:]
    options = [word for word in words if word.startswith("--")]
    name = next(
        (" ".join(words[:n]) for n in range(len(words), 0, -1) if " ".join(words[:n]) in known),
        None,
    )
    if name is None:
        allowed = {"--version", "--help"}
        fits = any(known_name.startswith(" ".join(words)) for known_name in known)
        if words and (set(words) <= allowed or words == ["COMMAND"] or fits):
            return ""
        return f"there is no command {span!r}" if words else ""
    has = {option for action in known[name]._actions for option in action.option_strings}
    missing = [option for option in options if option not in has]
    return f"{name} has no option {', '.join(missing)}" if missing else ""
