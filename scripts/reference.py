"""Writes the parts of the reference pages that the code itself knows; ``make reference`` runs it, a guard compares.

A page holds the marks ``<!-- made from the code: NAME -->`` and ``<!-- end -->``; what stands between them is
replaced. Everything else on a page is written by people.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from keepwell.app.api.control import openapi, status_of
from keepwell.app.cli.main import build_parser
from keepwell.core import errors
from keepwell.core.errors import KeepwellError
from keepwell.core.settings import Settings, Values

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- made from the code: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Give every command that does something, by its words, in the order of the help."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, child in action.choices.items():
                deeper = list(commands(child))
                yield from [(f"{name} {words}", found) for words, found in deeper] or [
                    (name, child)
                ]


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """List a command's own arguments, without ``--help`` and its subcommands."""
    return [
        action
        for action in parser._actions  # noqa: SLF001
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)  # noqa: SLF001
    ]


def spelled(action: argparse.Action) -> str:
    """Write an argument as one types it: ``--reason REASON``, ``[model]``, ``{list,verify}``."""
    if action.option_strings:
        value = "" if action.nargs == 0 else " " + str(action.metavar or action.dest.upper())
        return ", ".join(action.option_strings) + value
    word = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest
    return f"[{word}]" if action.nargs in {"?", "*"} else word


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands_block() -> str:
    """Every command with its arguments and examples."""
    lines: list[str] = []
    for words, parser in commands(build_parser()):
        lines += [f"### keepwell {words}", "", str(parser.description), ""]
        told = [action for action in arguments(parser) if action.help is not argparse.SUPPRESS]
        if told:
            lines += ["| argument | means |", "|---|---|"]
            for action in told:
                means = str(action.help or "")
                if action.option_strings and action.required:
                    means = f"{means} (needed)"
                lines.append(f"| `{_cell(spelled(action))}` | {_cell(means)} |")
            lines.append("")
        said = re.match(r"examples?:(.*?)(?=\nexit status)", parser.epilog or "", re.DOTALL)
        if said:
            shown = re.split(r"\n|;", said[1])
            lines += ["```sh", *(line.strip() for line in shown if line.strip()), "```", ""]
    return "\n".join(lines)


def errors_block() -> str:
    """Every kind of error with its exit status and its HTTP status."""
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, KeepwellError) and kind is not KeepwellError
    ]
    lines = ["| code | exit status | HTTP status | means |", "|---|---|---|---|"]
    lines += [
        f"| `{kind.code}` | {kind.exit_status} | {status_of(kind.code)} | {_cell(str(kind.__doc__))} |"
        for kind in sorted(kinds, key=lambda kind: kind.exit_status)
    ]
    return "\n".join(lines) + "\n"


def tables(kind: type[Values], name: str = "") -> Iterator[tuple[str, type[Values]]]:
    """Give every table of ``keepwell.toml`` as it is written there, with the struct that reads it."""
    for field, hint in typing.get_type_hints(kind).items():
        origin, inside = typing.get_origin(hint), typing.get_args(hint)
        path = f"{name}.{field}" if name else field
        if origin in {typing.Union, types.UnionType}:
            hint = next(part for part in inside if part is not types.NoneType)  # noqa: PLW2901
            origin, inside = typing.get_origin(hint), typing.get_args(hint)
        if origin is dict and isinstance(inside[1], type) and issubclass(inside[1], Values):
            yield f"[{path}.NAME]", inside[1]
            yield from tables(inside[1], f"{path}.NAME")
        elif origin is tuple and isinstance(inside[0], type) and issubclass(inside[0], Values):
            yield f"[[{path}]]", inside[0]
        elif isinstance(hint, type) and issubclass(hint, Values):
            yield f"[{path}]", hint
            yield from tables(hint, path)


class Setting(msgspec.Struct, frozen=True):
    """One value of a table: its name, type and default as the code writes them, and its sentence."""

    name: str
    type: str
    default: str
    sentence: str


def settings_of(kind: type[Values]) -> list[Setting]:
    """Read a table's values from its source, where the sentence below each stands."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = []
    for node, after in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        sentence = ""
        if (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            sentence = " ".join(after.value.value.replace("``", "`").split())
        found.append(
            Setting(
                name=node.target.id,
                type=ast.unparse(node.annotation),
                default="" if node.value is None else ast.unparse(node.value),
                sentence=sentence,
            )
        )
    return found


_TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "Port": "whole number, 0 to 65535",
    "Count": "whole number, 0 or more",
    "Several": "whole number, 1 to 10000",
    "Limit": "number, 0 or more",
    "Share": "number between 0 and 1",
    "bool": "true or false",
    "tuple[str, ...]": "list of texts",
    "tuple[Role, ...]": "list of roles",
}


def _typed(written: str) -> str:
    if written.startswith("Literal["):
        return "one of " + written.removeprefix("Literal[").removesuffix("]").replace("'", '"')
    written = written.removesuffix(" | None")
    return _TYPES.get(written, written)


def _toml(default: str) -> str:
    if not default:
        return "needed"
    value = ast.literal_eval(default)
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def settings_block() -> str:
    """Every table and value of ``keepwell.toml``."""
    lines: list[str] = []
    for name, kind in tables(Settings):
        first = " ".join(str(kind.__doc__).split())
        first = re.sub(rf"^(The table )?``{re.escape(name)}``[.:] ?", "", first)
        lines += [f"## {name}", ""]
        if first:
            lines += [first[0].upper() + first[1:].replace("``", "`"), ""]
        lines += ["| value | type | default | means |", "|---|---|---|---|"]
        lines += [
            f"| `{s.name}` | {_cell(_typed(s.type))} | {_toml(s.default)} | {_cell(s.sentence)} |"
            for s in settings_of(kind)
        ]
        lines.append("")
    return "\n".join(lines)


def _shape(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_shape(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        items: Mapping[str, Any] = schema.get("items") or next(
            iter(schema.get("prefixItems", [])), {}
        )
        return f"list of {_shape(items)}" if items else "list"
    return kind


def operations_block() -> str:
    """Every operation of the control API."""
    lines = ["| operation | does | body | answers |", "|---|---|---|---|"]
    for path, item in openapi()["paths"].items():
        for method, operation in item.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            status, answer = next(iter(operation["responses"].items()))
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
            lines.append(
                f"| `{method.upper()} {path}` | {_cell(operation['summary'])} |"
                f" {_shape(body['schema']) if body else ''} | {status}: {_shape(schema)} |"
            )
    return "\n".join(lines) + "\n"


def schemas_block() -> str:
    """Every body and record of the control API with its fields."""
    lines: list[str] = []
    for name, schema in sorted(openapi()["components"]["schemas"].items()):
        lines += [f"### {name}", ""]
        said = str(schema.get("description", "")).split("\n\n")[0]
        if said:
            lines += [" ".join(said.replace("``", "`").split()), ""]
        needed = set(schema.get("required", ()))
        fields = [
            f"`{field}` ({_shape(kind)}{'' if field in needed else ', may be left out'})"
            for field, kind in schema.get("properties", {}).items()
        ]
        lines += [*textwrap.wrap(", ".join(fields), 118, break_long_words=False), ""]
    return "\n".join(lines)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "commands": commands_block,
    "errors": errors_block,
    "settings": settings_block,
    "operations": operations_block,
    "schemas": schemas_block,
}


def renewed(page: str) -> str:
    """Give a page with what the code knows now between its marks. Raises KeyError for an unknown mark."""
    return BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]]().rstrip()}\n{m[4]}", page)


def main() -> int:
    """Rewrite the pages that have changed, and name them."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
