"""``keepwell completion``: what makes a shell complete the commands, made from the parser."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping

import msgspec

from keepwell.app.cli.common import print_json


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command as a shell needs to know it."""

    help: str
    words: tuple[str, ...]
    """Options, and the choices of its arguments."""


def run(given: argparse.Namespace) -> int:
    """Print the script of a shell."""
    script = SHELLS[given.shell](commands())
    if given.json:
        print_json({"shell": given.shell, "script": script})
    else:
        sys.stdout.write(script)
    return 0


def commands() -> dict[str, Command]:
    """Read the commands off the parser."""
    from keepwell.app.cli.main import COMMANDS, build_parser

    subparsers = next(
        action
        for action in build_parser()._actions  # noqa: SLF001 - argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    )
    helps = dict(COMMANDS)
    found = {}
    for name, parser in subparsers.choices.items():
        words: list[str] = []
        for action in parser._actions:  # noqa: SLF001
            words += action.option_strings or [str(choice) for choice in action.choices or ()]
        found[name] = Command(help=helps[name], words=tuple(sorted(words)))
    return found


def bash(known: Mapping[str, Command]) -> str:
    """Write the script for bash."""
    cases = "\n".join(
        f"    {name}) words='{' '.join(command.words)}' ;;" for name, command in known.items()
    )
    return f"""\
# bash completion of keepwell; load it with: source <(keepwell completion bash)
_keepwell() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='{" ".join(known)} --help --version'
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [ "$COMP_CWORD" -gt 1 ] && [ "${{#COMPREPLY[@]}}" -eq 0 ]; then
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -F _keepwell keepwell
"""


def zsh(known: Mapping[str, Command]) -> str:
    """Write the script for zsh."""
    names = "\n".join(
        "    " + shlex.quote(f"{name}:{command.help}") for name, command in known.items()
    )
    cases = "\n".join(
        f"    {name}) compadd -- {' '.join(command.words)}; _files ;;"
        for name, command in known.items()
    )
    return f"""\
#compdef keepwell
# zsh completion of keepwell; put it into a folder of $fpath as _keepwell
_keepwell() {{
  local -a names
  names=(
{names}
  )
  if (( CURRENT == 2 )); then
    _describe command names
    return
  fi
  case "$words[2]" in
{cases}
  esac
}}
compdef _keepwell keepwell
"""


def fish(known: Mapping[str, Command]) -> str:
    """Write the script for fish."""
    lines = ["# fish completion of keepwell; put it into ~/.config/fish/completions/keepwell.fish"]
    for name, command in known.items():
        sentence = command.help.replace("'", r"\'")
        lines.append(f"complete -c keepwell -n __fish_use_subcommand -a {name} -d '{sentence}'")
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        for word in command.words:
            if word.startswith("--"):
                lines.append(f"complete -c keepwell {condition} -l {word[2:]}")
            elif word.startswith("-"):
                lines.append(f"complete -c keepwell {condition} -s {word[1:]}")
            else:
                lines.append(f"complete -c keepwell {condition} -a {word}")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
