"""The index of uploaded files in SQL."""

# ruff: noqa: S608 - what is put into statements is our own text; every value is a parameter

from __future__ import annotations

from typing import TYPE_CHECKING

from keepwell.adapters.tracking.database import Database
from keepwell.core.errors import InvalidInput
from keepwell.core.paths import clean_path
from keepwell.core.records.tracking import TrackedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepwell.core.clock import Time
    from keepwell.core.digest import Digest

_PAGE = 1_000
_AFTER_SLASH = "0"
"""The character after ``/``: everything below a folder lies between ``folder/`` and ``folder0``."""


class SqlFiles:
    """Implements core.ports.tracking.TrackedFiles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_file(self, path: str, *, digest: Digest, size: int, now: Time) -> None:
        """Enter a file, in place of one of the same path."""
        path = clean_path(path)
        parts = path.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        with self._database.write() as sql:
            for other in above:
                if sql.one("SELECT 1 FROM tracking_files WHERE path = ?", [other]):
                    raise InvalidInput(f"{other!r} is a file, so nothing can lie below it.")
            if sql.one(
                "SELECT 1 FROM tracking_files WHERE path >= ? AND path < ? LIMIT 1",
                (path + "/", path + _AFTER_SLASH),
            ):
                raise InvalidInput(f"{path!r} is a folder and cannot become a file.")
            sql.run(
                "INSERT INTO tracking_files (path, digest, size, created) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET digest = excluded.digest, "
                "size = excluded.size, created = excluded.created",
                (path, digest, size, now),
            )

    def get_file(self, path: str) -> TrackedFile | None:
        """Give the file at this path, or None."""
        path = clean_path(path)
        with self._database.read() as sql:
            row = sql.one("SELECT digest, size FROM tracking_files WHERE path = ?", [path])
        return TrackedFile(path=path, digest=row[0], size=row[1]) if row else None

    def list_files(self, folder: str) -> list[tuple[str, TrackedFile | None]]:
        """List the names directly in a folder; subfolders are stepped over, however much they hold."""
        prefix = clean_path(folder) + "/" if folder.strip("/") else ""
        end = prefix[:-1] + _AFTER_SLASH if prefix else "\U0010ffff"
        found: list[tuple[str, TrackedFile | None]] = []
        after, inclusive = prefix, True
        with self._database.read() as sql:
            while True:
                rows = sql.all(
                    "SELECT path, digest, size FROM tracking_files "
                    f"WHERE path {'>=' if inclusive else '>'} ? AND path < ? ORDER BY path LIMIT ?",
                    (after, end, _PAGE),
                )
                if not rows:
                    return found
                for path, digest, size in rows:
                    name, inside, _ = path[len(prefix) :].partition("/")
                    after, inclusive = path, False
                    if inside:
                        found.append((name, None))
                        after, inclusive = prefix + name + _AFTER_SLASH, True
                        break
                    found.append((name, TrackedFile(path=path, digest=digest, size=size)))

    def files_under(self, folder: str) -> list[TrackedFile]:
        """List every file at any depth below a folder."""
        folder = clean_path(folder)
        with self._database.read() as sql:
            rows = sql.all(
                "SELECT path, digest, size FROM tracking_files "
                "WHERE path >= ? AND path < ? ORDER BY path",
                (folder + "/", folder + _AFTER_SLASH),
            )
        return [TrackedFile(path=row[0], digest=row[1], size=row[2]) for row in rows]

    def remove_files(self, path: str) -> int:
        """Remove a file or everything below a folder from the index, and count."""
        path = clean_path(path)
        with self._database.write() as sql:
            return sql.run(
                "DELETE FROM tracking_files WHERE path = ? OR (path >= ? AND path < ?)",
                (path, path + "/", path + _AFTER_SLASH),
            )

    def tracked_digests(self) -> Iterator[Digest]:
        """List the blobs that the index stands on."""
        after = ""
        while True:
            with self._database.read() as sql:
                rows = sql.all(
                    "SELECT DISTINCT digest FROM tracking_files WHERE digest > ? "
                    "ORDER BY digest LIMIT ?",
                    (after, _PAGE),
                )
            if not rows:
                return
            for row in rows:
                yield row[0]
            after = rows[-1][0]
