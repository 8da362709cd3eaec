"""Trials: a gateway of its own for a while, in a temporary folder and on a free loopback port."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from keepwell.core.ports.blobs import Blobs
from keepwell.serving.application import HttpApplication
from keepwell.serving.editions import Shelf
from keepwell.serving.pool import Pool
from keepwell.serving.sockets import bind
from keepwell.training.artefacts import unpack_artefact


class Trial(msgspec.Struct, frozen=True):
    """Its workers begin when somebody tends the pool; what they serve lies on the shelf."""

    shelf: Shelf
    pool: Pool
    application: HttpApplication


@contextmanager
def trial(artefacts: Iterable[str], *, blobs: Blobs, workers: int) -> Iterator[Trial]:
    """Unpack artefacts and make a gateway beside them; behind it nothing is left. Raises Corrupt, NotFound."""
    folder = Path(tempfile.mkdtemp(prefix="keepwell-trial-"))
    try:
        shelf = Shelf(folder / "editions")
        for artefact in set(artefacts):
            unpack_artefact(artefact, shelf.artefact_folder(artefact), blobs=blobs)
        with bind("127.0.0.1", 0) as listening:
            pool = Pool(
                listening,
                editions=shelf.folder,
                log=folder / "log",
                meters=folder / "meters",
                workers=workers,
            )
            application = HttpApplication(f"http://127.0.0.1:{listening.getsockname()[1]}")
            try:
                yield Trial(shelf, pool, application)
            finally:
                pool.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
