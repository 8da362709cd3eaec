"""Errors a person can act on: what is wrong, where, and what to do next. They know no HTTP and no terminal."""

from __future__ import annotations

import difflib
import errno
import os
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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


KINDS: dict[str, type[KeepwellError]] = {
    kind.code: kind
    for kind in (
        KeepwellError,
        InvalidInput,
        NotFound,
        Conflict,
        Refused,
        Corrupt,
        Unavailable,
    )
}
"""Errors by code, as rows and answers name them."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def as_error(error: BaseException) -> KeepwellError:
    """Give an error that a person can act on for any exception: itself, the machine's trouble, or a mistake in code."""
    if isinstance(error, KeepwellError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename or "")
        if error.errno in _FULL:
            return Unavailable(
                "The disk is full.", where=where, todo="Make room and try again; nothing was lost."
            )
        return Unavailable(
            f"The machine refused: {error.strerror}.",
            where=where,
            todo="See that the file or folder is there and that you may use it.",
        )
    if isinstance(error, MemoryError):
        return Unavailable(
            "There is not enough memory.", todo="Use fewer rows or a larger machine."
        )
    return KeepwellError(
        f"Something went wrong that nobody foresaw: {type(error).__name__}: {error}.",
        where=users_line(error),
        todo="Set KEEPWELL_TRACEBACK=1 to see where, and report it.",
    )


_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - compared with code objects' texts


def users_line(error: BaseException) -> str:
    """Give ``file:line`` of the last place in the user's own code that an exception passed, not a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if "site-packages" not in f.filename
        and not f.filename.startswith(("<frozen", _PACKAGE))
        and os.path.dirname(os.__file__) not in f.filename  # noqa: PTH120
    ]
    if not frames:
        return "unknown"
    last = (own or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"


@contextmanager
def users_own(where: str, *, doing: str = "It", todo: str) -> Iterator[None]:
    """Run code of the user inside: whatever it raises, even an exit, becomes InvalidInput naming the user's own line.

    >>> try:
    ...     with users_own("source 'orders'", doing="Loading it", todo="Mend it."):
    ...         raise ValueError("no such column")
    ... except InvalidInput as error:
    ...     print(error.what)
    Loading it raised ValueError: no such column
    """
    try:
        yield
    except KeepwellError:
        raise
    except (Exception, SystemExit) as error:
        # Libraries put pages behind a blank line: polars tells its whole plan there.
        said = str(error).split("\n\n", maxsplit=1)[0]
        raise InvalidInput(
            f"{doing} raised {type(error).__name__}: {said}",
            where=f"{where} ({users_line(error)})",
            todo=todo,
        ) from error


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
