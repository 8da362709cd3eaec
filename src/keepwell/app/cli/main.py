"""The parser of ``keepwell`` and its one way out: an error is a sentence and an exit status."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from keepwell import __version__
from keepwell.core.errors import KeepwellError

EXIT_CODES = """\
exit status: 0 done; 1 error, or a check that failed; 2 bad input; 3 not found; 4 conflict;
5 refused by a rule; 6 corrupt; 7 unavailable; 130 interrupted."""

COMMANDS: tuple[tuple[str, str], ...] = (
    ("init", "make a project in a folder"),
    ("up", "start gateway, worker, control API and dashboard; Ctrl-C stops them"),
    ("demo", "the whole way: train, release, activate, replay as live traffic, renew"),
    ("train", "train a model's candidates and register the versions"),
    ("release", "run the seven steps of a version's release"),
    ("approve", "consent to a version, bound to its digests"),
    ("activate", "run the seven steps that put a released version before users"),
    ("rollout", "see rollouts and what they found"),
    ("rollback", "give an endpoint's traffic back to the version before"),
    ("status", "what runs, what serves, how healthy it is"),
    ("evidence", "list, show and verify signed evidence"),
    ("audit", "list and verify the audit trail"),
    ("doctor", "look for what is wrong on this machine and in this project"),
)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser. Commands' modules are imported only when they run, so that help is instant."""
    parser = argparse.ArgumentParser(
        prog="keepwell",
        description="Keeps machine-learning models well in production: released, served, watched and renewed.",
        epilog="A first project: keepwell init my-project; cd my-project; keepwell train; keepwell status.\n"
        + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keepwell {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands")
    for name, sentence in COMMANDS:
        command = commands.add_parser(
            name,
            help=sentence,
            description=sentence[0].upper() + sentence[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_EXAMPLES.get(name, "") + "\n" + EXIT_CODES,
        )
        command.add_argument("--json", action="store_true", help="print JSON for machines")
        if name != "init":
            command.add_argument(
                "--project",
                type=Path,
                default=Path(),
                metavar="FOLDER",
                help="the project's folder (default: here or above)",
            )
        _ARGUMENTS[name](command)
    return parser


_EXAMPLES = {
    "init": "example: keepwell init my-project",
    "up": "example: keepwell up",
    "demo": "example: keepwell demo examples/flights --exit --summary summary.json",
    "train": "examples: keepwell train\n          keepwell train flight-delay --candidate boosting --until 2013-04-01",
    "release": "example: keepwell release flight-delay/1",
    "approve": "examples: keepwell approve flight-delay/1 --as ben --reason 'beats the rule in every slice'\n"
    "          keepwell approve flight-delay/1 --as ben --renewals --reason 'newer data, same code'",
    "activate": "example: keepwell activate flight-delay/1",
    "rollback": "example: keepwell rollback flight-delay --reason 'support reports wrong offers'",
    "evidence": "examples: keepwell evidence list; keepwell evidence show DIGEST; keepwell evidence verify",
    "audit": "examples: keepwell audit list --last 20; keepwell audit verify",
}


def _who(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--as",
        dest="user",
        default=os.environ.get("KEEPWELL_USER", ""),
        metavar="NAME",
        help="act as this user of the project (default: $KEEPWELL_USER, else the login name)",
    )


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the folder to make the project in")


def _up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        dest="seconds",
        type=float,
        default=None,
        metavar="SECONDS",
        help="stop after that long",
    )


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path(), help="a project with a [demo] table"
    )
    parser.add_argument(
        "--exit", action="store_true", help="end when the story is told, instead of staying up"
    )
    parser.add_argument(
        "--summary", type=Path, default=None, metavar="FILE", help="write the summary there as JSON"
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="copy the project there and run the copy",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget an earlier run (asks first, unless --yes)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--until", default=None, metavar="DATE", help="end the replay at this day instead"
    )


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="the model (default: the only one)")
    parser.add_argument(
        "--candidate", action="append", default=[], help="train this candidate (default: all)"
    )
    parser.add_argument(
        "--since", default=None, metavar="DATE", help="first decision (default: the first there is)"
    )
    parser.add_argument(
        "--until",
        default=None,
        metavar="DATE",
        help="end of the decisions, and how they were known then (default: now)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of everything random (default: 0)"
    )
    parser.add_argument(
        "--release", action="store_true", help="go on to the release of what was trained"
    )
    _who(parser)


def _version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", help="MODEL/NUMBER, for example flight-delay/1")


def _release(parser: argparse.ArgumentParser) -> None:
    _version(parser)
    _who(parser)


def _approve(parser: argparse.ArgumentParser) -> None:
    _version(parser)
    parser.add_argument("--reason", required=True, help="why it is right, in a sentence")
    parser.add_argument(
        "--renewals",
        action="store_true",
        help="consent ahead to renewals by newer data under the same code",
    )
    _who(parser)


def _activate(parser: argparse.ArgumentParser) -> None:
    _version(parser)
    parser.add_argument(
        "--strategy",
        default="",
        help="basic, canary or champion-challenger (default: as the project says)",
    )
    _who(parser)


def _rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", default="", help="one rollout (default: all)")


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint")
    parser.add_argument("--reason", required=True, help="why, in a sentence")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    _who(parser)


def _nothing(parser: argparse.ArgumentParser) -> None:
    del parser


def _evidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=["list", "show", "verify"])
    parser.add_argument(
        "digest",
        nargs="?",
        default="",
        help="with show: the envelope's digest, or its first digits",
    )


def _audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=["list", "verify"])
    parser.add_argument("--last", type=int, default=50, help="how many entries (default: 50)")


_ARGUMENTS = {
    "init": _init, "up": _up, "demo": _demo, "train": _train, "release": _release, "approve": _approve,
    "activate": _activate, "rollout": _rollout, "rollback": _rollback, "status": _nothing,
    "evidence": _evidence, "audit": _audit, "doctor": _nothing,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    try:
        module = importlib.import_module(f"keepwell.app.cli.{given.command}")
        status = module.run(given)
    except KeepwellError as error:
        if given.json:
            said = {
                "code": error.code,
                "what": error.what,
                "where": error.where,
                "todo": error.todo,
            }
            sys.stdout.write(json.dumps({"error": said}) + "\n")
        sys.stderr.write(f"keepwell {given.command}: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; 'keepwell up' carries on where this stopped\n")
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away: nothing is wrong, and nothing more is to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status or 0)
