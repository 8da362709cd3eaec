"""The parser of ``keepwell`` and its one way out: an error is a sentence and an exit status."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from keepwell import __version__
from keepwell.app.cli import exits
from keepwell.app.cli.exits import exit_text
from keepwell.core.errors import InvalidInput, KeepwellError, as_error, near_miss

COMMANDS: tuple[tuple[str, str], ...] = (
    ("init", "make a project in a folder"),
    ("up", "start gateway, worker, control API and dashboard; Ctrl-C stops them"),
    ("demo", "the whole way: train, release, activate, replay as live traffic, renew"),
    ("train", "train a model's candidates and register the versions"),
    ("release", "run the seven steps of a version's release"),
    ("approve", "consent to a version, bound to its digests"),
    ("activate", "run the seven steps that put a released version before users"),
    ("rollout", "start, see, steer and replay rollouts; what a version would have earned"),
    ("holdout", "hold a share of the units out of all rollouts, and see what was earned over them"),
    ("rollback", "give an endpoint's traffic back to the version before"),
    ("drill", "roll back for real beside the live gateway, and time it"),
    ("users", "list who may do what, and their tokens"),
    ("token", "make and revoke the tokens by which users prove who they are"),
    ("reload", "let the gateway run new code: replace its workers without losing a request"),
    ("status", "what runs, what serves, how healthy it is"),
    ("ledger", "what each version earned, what it cost, and the return on it"),
    ("evidence", "list, show and verify signed evidence; make a new key where the old one is lost"),
    ("audit", "list and verify the audit trail"),
    ("doctor", "look for what is wrong on this machine and in this project"),
    ("completion", "print what makes a shell complete keepwell's commands"),
)


_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    """Refuses what it cannot read the way that all of Keepwell does."""

    def error(self, message: str) -> NoReturn:
        """Raise InvalidInput instead of leaving the process."""
        choice = _CHOICE.search(message)
        hint = near_miss(choice[1], re.findall(r"'([^']*)'", choice[2])) if choice else ""
        what = f"there is no {choice[1]!r}" if choice else message
        raise InvalidInput(
            f"{what[0].upper()}{what[1:]}.", todo=f"{hint} See '{self.prog} --help'.".strip()
        )


def build_parser() -> argparse.ArgumentParser:
    """Make the parser. Commands' modules are imported only when they run, so that help is instant."""
    parser = _Parser(
        prog="keepwell",
        description="Keeps machine-learning models well in production: released, served, watched and renewed.",
        epilog="A first project: keepwell init my-project; cd my-project; keepwell train; keepwell status.\n"
        + exit_text(),
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
            epilog=_EXAMPLES.get(name, "") + "\n" + exit_text(),
        )
        command.add_argument("--json", action="store_true", help="print JSON for machines")
        if name not in {"init", "completion"}:
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
    "reload": "example: keepwell reload",
    "drill": "example: keepwell drill rollback flight-delay",
    "ledger": "example: keepwell ledger --json",
    "evidence": "examples: keepwell evidence list; keepwell evidence show DIGEST\n"
    "          keepwell evidence verify; keepwell evidence new-key --as NAME",
    "rollout": "examples: keepwell rollout\n"
    "          keepwell rollout start flight-delay/2 --strategy 'shadow, canary' --set steps=[0.01,0.1] --dry-run\n"
    "          keepwell rollout status rollout-4f2a91c0; keepwell rollout replay rollout-4f2a91c0\n"
    "          keepwell rollout value flight-delay/2 --since 14d",
    "holdout": "examples: keepwell holdout set flight-delay --version 1 --share 0.05 --reason 'what do we earn?'\n"
    "          keepwell holdout show; keepwell holdout end flight-delay --reason 'the quarter is told'",
    "token": "examples: keepwell token create ben --expires 90 --label laptop\n"
    "          keepwell token revoke 3f9a1c20 --reason 'lost laptop'",
    "completion": "example: keepwell completion bash > ~/.local/share/bash-completion/completions/keepwell",
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
    _dry_run(parser)
    _who(parser)


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would change, and change nothing",
    )


def _rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "verb",
        nargs="?",
        default="list",
        choices=[
            "list", "start", "status", "pause", "resume", "promote", "rollback", "replay", "value",
        ],
        help="what to do (default: list)",
    )  # fmt: skip
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="with start: MODEL/NUMBER, several to compare them; with value: MODEL/NUMBER; else: a rollout",
    )
    parser.add_argument(
        "--strategy",
        default="",
        help="with start: the strategy, or several in a row, 'shadow, canary' (default: as the project says)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="RULE=VALUE",
        help="with start: a rule of the strategy, such as steps=[0.01,0.1]",
    )
    parser.add_argument("--version", type=int, default=None, help="with promote: which challenger")
    parser.add_argument(
        "--since",
        default="7d",
        metavar="DURATION",
        help="with value: how much of the log, up to the newest labelled decisions (default: 7d)",
    )
    parser.add_argument(
        "--endpoint", default="", help="with value: whose log (default: the model's only one)"
    )
    parser.add_argument(
        "--by",
        default="auto",
        choices=["auto", "propensity", "replay"],
        help="with value: by the propensities in the log, or by its own answers to the logged features",
    )
    parser.add_argument("--reason", default="", help="why, in a sentence")
    _dry_run(parser)
    _who(parser)


def _holdout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "verb",
        nargs="?",
        default="show",
        choices=["set", "show", "end"],
        help="what to do (default: show)",
    )
    parser.add_argument(
        "endpoint", nargs="?", default="", help="(default: the only one; with show: all)"
    )
    parser.add_argument(
        "--version", type=int, default=None, help="with set: which version answers them"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.0,
        help="with set: the share of the units, 0.05 for one in twenty; at most 0.5",
    )
    parser.add_argument(
        "--anew",
        action="store_true",
        help="with set: end the comparison with the holdout that stands, and begin another",
    )
    parser.add_argument("--reason", default="", help="why, in a sentence")
    _dry_run(parser)
    _who(parser)


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint")
    parser.add_argument(
        "--reason", default="", help="why, in a sentence (not needed with --dry-run)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    _dry_run(parser)
    _who(parser)


def _drill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=["rollback"], help="what to try out")
    parser.add_argument("endpoint", help="the endpoint whose way back is tried")
    _who(parser)


def _token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=["create", "revoke"], help="what to do")
    parser.add_argument("name", help="with create: the user; with revoke: the token's number")
    parser.add_argument(
        "--expires",
        type=float,
        default=90.0,
        metavar="DAYS",
        help="how long it is good for (default: 90 days; 0: until it is revoked)",
    )
    parser.add_argument("--label", default="", help="where it is used, to tell tokens apart")
    parser.add_argument("--reason", default="", help="with revoke: why, in a sentence")
    _who(parser)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")


def _reload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the new workers (default: 60)",
    )


def _nothing(parser: argparse.ArgumentParser) -> None:
    del parser


def _evidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=["list", "show", "verify", "new-key"])
    parser.add_argument(
        "digest",
        nargs="?",
        default="",
        help="with show: the envelope's digest, or its first digits",
    )
    _who(parser)


def _audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=["list", "verify"])
    parser.add_argument("--last", type=int, default=50, help="how many entries (default: 50)")


_ARGUMENTS = {
    "init": _init, "up": _up, "demo": _demo, "train": _train, "release": _release, "approve": _approve,
    "activate": _activate, "rollout": _rollout, "rollback": _rollback, "status": _nothing,
    "reload": _reload, "evidence": _evidence, "audit": _audit, "doctor": _nothing, "users": _nothing, "token": _token,
    "completion": _completion, "drill": _drill, "holdout": _holdout, "ledger": _nothing,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, as_json = next((w for w in words if w in _ARGUMENTS), ""), "--json" in words
    try:
        given = build_parser().parse_args(words)
        if given.command is None:
            build_parser().print_help()
            return exits.BAD_INPUT
        # Taken out of the environment, so that neither the project's own module nor a child process sees it.
        given.token = os.environ.pop("KEEPWELL_TOKEN", "")
        module = importlib.import_module(f"keepwell.app.cli.{given.command}")
        status = module.run(given)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; 'keepwell up' carries on where this stopped\n")
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away: nothing is wrong, and nothing more is to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.DONE
    except Exception as error:  # noqa: BLE001 - the outermost door: whatever it is, people read a sentence
        if os.environ.get("KEEPWELL_TRACEBACK"):
            traceback.print_exc()
        return _say(as_error(error), command, as_json=as_json)
    return int(status or exits.DONE)


def _say(error: KeepwellError, command: str, *, as_json: bool) -> int:
    if as_json:
        said = {"code": error.code, "what": error.what, "where": error.where, "todo": error.todo}
        sys.stdout.write(json.dumps({"error": said}) + "\n")
    name = f"keepwell {command}" if command else "keepwell"
    sys.stderr.write(f"{name}: {error}\n")
    return error.exit_status
