"""Errors a person can act on: what is wrong, where, and what to do next. They know no HTTP and no terminal."""

from __future__ import annotations

import difflib
import os
import traceback
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class KeepwellError(Exception):
    """The base of every error that Keepwell raises on purpose.

    ``what`` says what is wrong in one sentence, ``where`` names the file, record or field, and
    ``todo`` is the next thing to do. ``str()`` joins the three.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        """Give the sentence, the place and the way out."""
        place = f"{self.where}: " if self.where else ""
        way_out = f" {self.todo}" if self.todo else ""
        return f"{place}{self.what}{way_out}"

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip between processes with all three parts."""
        return (_rebuild, (type(self), self.what, self.where, self.todo))


def _rebuild(kind: type[KeepwellError], what: str, where: str, todo: str) -> KeepwellError:
    return kind(what, where=where, todo=todo)


class InvalidInput(KeepwellError):
    """A value, file, row or declaration that cannot be accepted."""

    code = "invalid_input"
    exit_status = 2


class NotFound(KeepwellError):
    """A record, blob or name that does not exist."""

    code = "not_found"
    exit_status = 3


class Conflict(KeepwellError):
    """Somebody else wrote first, or the record exists already."""

    code = "conflict"
    exit_status = 4


class Refused(KeepwellError):
    """A rule forbids it: a gate, a role, four eyes, a live release that stands on it."""

    code = "refused"
    exit_status = 5


class Corrupt(KeepwellError):
    """Stored bytes are not the bytes that were written."""

    code = "corrupt"
    exit_status = 6


class Unavailable(KeepwellError):
    """Something outside did not answer: a database, a port, a server, a disk."""

    code = "unavailable"
    exit_status = 7


def users_line(error: BaseException) -> str:
    """Give ``file:line`` of the last place in the user's own code that an exception passed, not a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if "site-packages" not in f.filename and f"{os.sep}keepwell{os.sep}" not in f.filename
    ]
    last = (own or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"


def near_miss(given: str, allowed: Iterable[str]) -> str:
    """Give a hint for a misspelled name, or the list of what is allowed.

    >>> near_miss("canery", ["basic", "canary"])
    "Did you mean 'canary'?"
    >>> near_miss("x", ["basic", "canary"])
    "Allowed: 'basic', 'canary'."
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return (
        f"Allowed: {', '.join(repr(name) for name in names)}." if names else "There are none yet."
    )
