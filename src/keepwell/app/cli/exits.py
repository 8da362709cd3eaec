"""The exit statuses of every command, in one place."""

from __future__ import annotations

import textwrap

from keepwell.core.errors import KINDS

DONE = 0
BAD_INPUT = KINDS["invalid_input"].exit_status
INTERRUPTED = 130

EXITS: dict[int, str] = {
    DONE: "done",
    KINDS["error"].exit_status: "error, or a check that failed",
    BAD_INPUT: "bad input",
    KINDS["not_found"].exit_status: "not found",
    KINDS["conflict"].exit_status: "conflict",
    KINDS["refused"].exit_status: "refused by a rule",
    KINDS["corrupt"].exit_status: "corrupt",
    KINDS["unavailable"].exit_status: "unavailable",
    INTERRUPTED: "interrupted",
}
"""What each status means."""


def exit_text() -> str:
    """Say them in a line or two, for help."""
    said = "; ".join(f"{status} {meaning}" for status, meaning in EXITS.items())
    return textwrap.fill(f"exit status: {said}.", 100)
