"""Artefacts: a model's folder as blobs under one digest, and back again."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from keepwell.core.digest import Digest, canonical, digest_bytes
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.ports.blobs import Blobs
from keepwell.core.records.models import Artefact, Package

MANIFEST = "artefact.json"
"""Lies in an unpacked artefact's folder: its digest is the artefact's, and it names every file's."""


def pack_folder(folder: Path, *, blobs: Blobs) -> Digest:
    """Keep every file of a folder as a blob and give the digest of the manifest that names them."""
    files = {
        path.relative_to(folder).as_posix(): blobs.put_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    if not files:
        raise InvalidInput("The folder is empty.", where=str(folder))
    return blobs.put(canonical(Artefact(files=files)))


def check_folder(digest: Digest, folder: Path) -> None:
    """Hash an unpacked artefact again. Raises Corrupt, naming the file that was changed or is gone."""
    try:
        content = (folder / MANIFEST).read_bytes()
        if digest_bytes(content) != digest:
            raise Corrupt(f"{MANIFEST} is not that of this artefact.", where=str(folder))
        for name, expected in msgspec.json.decode(content, type=Artefact).files.items():
            if digest_bytes((folder / name).read_bytes()) != expected:
                raise Corrupt(f"{name} was changed after it was unpacked.", where=str(folder))
    except OSError as error:
        raise Corrupt(f"A file of the artefact cannot be read: {error}.") from error


def read_artefact(digest: Digest, *, blobs: Blobs) -> Artefact:
    """Give the manifest of an artefact. Raises NotFound, Corrupt."""
    try:
        return msgspec.json.decode(blobs.get(digest), type=Artefact)
    except msgspec.DecodeError as error:
        raise Corrupt(f"The blob is not an artefact's manifest: {error}.", where=digest) from error


def read_package(artefact: Artefact, *, blobs: Blobs) -> Package:
    """Give what ``package.json`` says. Raises Corrupt, NotFound."""
    try:
        return msgspec.json.decode(blobs.get(artefact.files["package.json"]), type=Package)
    except KeyError:
        raise Corrupt("The artefact has no package.json.") from None
    except msgspec.DecodeError as error:
        raise Corrupt(f"package.json cannot be read: {error}.") from error


def unpack_artefact(digest: Digest, folder: Path, *, blobs: Blobs) -> Path:
    """Write an artefact's files into ``folder`` (made anew), each checked against its digest. Gives the folder.

    Raises Corrupt for a changed byte or a path that would leave the folder, NotFound.
    """
    artefact = read_artefact(digest, blobs=blobs)
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, content in artefact.files.items():
        place = fresh / name
        if not place.resolve().is_relative_to(fresh.resolve()):
            raise Corrupt(f"The artefact names a path outside its folder: {name!r}.", where=digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(blobs.get(content))
    (fresh / MANIFEST).write_bytes(blobs.get(digest))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder
