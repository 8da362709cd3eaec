"""Paths of uploaded files: relative, with ``/`` between parts, never able to leave their folder."""

from __future__ import annotations

from keepwell.core.errors import InvalidInput

LONGEST = 1_000


def clean_path(path: str) -> str:
    """Give the path without a leading or trailing ``/``. Raises InvalidInput for one that could escape.

    >>> clean_path("/a/b.txt/")
    'a/b.txt'
    """
    stripped = path.strip("/")
    parts = stripped.split("/")
    unsafe = any(part in {"", ".", ".."} for part in parts)
    if unsafe or "\\" in path or "\0" in path or len(path) > LONGEST:
        raise InvalidInput(
            f"{path[:200]!r} is not a path that files can be kept under.",
            todo=f"Give a relative path without '.', '..' or backslashes, of at most {LONGEST} characters.",
        )
    return stripped
