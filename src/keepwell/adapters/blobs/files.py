"""Blobs as read-only files in a folder, named by digest."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from keepwell.core.digest import Digest, digest_bytes, is_digest
from keepwell.core.errors import Corrupt, InvalidInput, NotFound, Unavailable


class FileBlobs:
    """Content-addressed files under ``folder/sha256/ab/abcd...``. Implements ``keepwell.core.ports.blobs.Blobs``.

    A file appears under its name by a rename after its bytes are on disk, so a name never stands for
    half a file, whatever is killed when.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _place(self, digest: Digest) -> Path:
        if not is_digest(digest):
            raise InvalidInput(
                f"{digest!r} is not a digest.", todo="It looks like 'sha256:' and 64 digits."
            )
        name = digest.removeprefix("sha256:")
        return self.folder / "sha256" / name[:2] / name

    def put(self, content: bytes) -> Digest:
        """See ``keepwell.core.ports.blobs.Blobs``."""
        digest = digest_bytes(content)
        if not self._is_kept(digest):
            self._keep(io.BytesIO(content))
        return digest

    def put_file(self, path: Path) -> Digest:
        """See ``keepwell.core.ports.blobs.Blobs``."""
        try:
            digest = _hash(path)
            if self._is_kept(digest):
                return digest
            with path.open("rb") as source:
                # Named by the bytes that were copied: the file may have changed since it was read first.
                return self._keep(source)
        except OSError as error:
            raise InvalidInput(
                f"The file cannot be read: {error.strerror}.", where=str(path)
            ) from error

    def _is_kept(self, digest: Digest) -> bool:
        """Tell whether a whole file is there; a damaged one is not, so that putting its content again heals it."""
        place = self._place(digest)
        try:
            if _hash(place) != digest:
                return False
            _sync_folder(place.parent)  # whoever wrote it may not have come to this yet
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unwritable(error) from error
        return True

    def _keep(self, source: IO[bytes]) -> Digest:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".new-", delete=False) as file:
                temporary = Path(file.name)
                try:
                    digest = _copy(source, file)
                    file.flush()
                    os.fsync(file.fileno())
                    temporary.chmod(0o444)
                    place = self._place(digest)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    temporary.replace(place)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
            # A name is on disk when its folder is; the folders above may be as new as the file.
            for folder in (place.parent, place.parent.parent, self.folder):
                _sync_folder(folder)
        except OSError as error:
            raise self._unwritable(error) from error
        return digest

    def _unwritable(self, error: OSError) -> Unavailable:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        return Unavailable(
            "The disk is full." if full else f"The blob cannot be written: {error.strerror}.",
            where=str(self.folder),
            todo="Make room and try again; nothing was lost."
            if full
            else "See the folder's rights.",
        )

    @contextmanager
    def _reading(self, digest: Digest) -> Iterator[Path]:
        """Give where a blob lies, to be read inside. Raises NotFound, Unavailable."""
        place = self._place(digest)
        try:
            yield place
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise Unavailable(
                f"The blob cannot be read: {error.strerror}.", where=str(place)
            ) from error

    def get(self, digest: Digest) -> bytes:
        """See ``keepwell.core.ports.blobs.Blobs``."""
        with self._reading(digest) as place:
            content = place.read_bytes()
        if digest_bytes(content) != digest:
            raise self._changed(digest)
        return content

    def path(self, digest: Digest) -> Path:
        """See ``keepwell.core.ports.blobs.Blobs``. The file is hashed each time: a changed byte is never handed on."""
        with self._reading(digest) as place:
            holds = _hash(place) == digest
        if not holds:
            raise self._changed(digest)
        return place

    def has(self, digest: Digest) -> bool:
        """See ``keepwell.core.ports.blobs.Blobs``."""
        return self._place(digest).is_file()

    def digests(self) -> Iterator[Digest]:
        """See ``keepwell.core.ports.blobs.Blobs``."""
        for place in (self.folder / "sha256").glob("??/*"):
            if not place.name.startswith("."):
                yield f"sha256:{place.name}"

    def remove(self, digest: Digest) -> None:
        """See ``keepwell.core.ports.blobs.Blobs``."""
        try:
            self._place(digest).unlink()
        except FileNotFoundError:
            raise self._missing(digest) from None

    def _missing(self, digest: Digest) -> NotFound:
        return NotFound(
            f"There is no blob {digest}.",
            where=str(self.folder),
            todo="Restore it from a backup, or make again what wrote it.",
        )

    def _changed(self, digest: Digest) -> Corrupt:
        return Corrupt(
            f"The bytes of the blob {digest} are not the ones that were written.",
            where=str(self._place(digest)),
            todo="Restore it from a backup; nothing that stands on it is served meanwhile.",
        )


def _hash(path: Path) -> Digest:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: IO[bytes], target: IO[bytes]) -> Digest:
    """Copy all bytes and name them."""
    found = hashlib.sha256()
    while block := source.read(1 << 20):
        found.update(block)
        target.write(block)
    return "sha256:" + found.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
