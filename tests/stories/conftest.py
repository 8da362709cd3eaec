import json
import shutil

import pytest
from tests.stories.projects import flights, keepwell


@pytest.fixture(scope="session")
def told(tmp_path_factory):
    """The main job on a month of live traffic, told once: the project's folder and its summary."""
    folder = flights(tmp_path_factory.mktemp("main") / "flights", replay_until="2013-05-01")
    keepwell("demo", ".", "--exit", "--summary", "summary.json", folder=folder, timeout=400)
    return folder, json.loads((folder / "summary.json").read_text())


@pytest.fixture
def copy_of_told(told, tmp_path):
    """A copy of the told project that a test may damage."""
    folder = tmp_path / "flights"
    shutil.copytree(told[0], folder)
    return folder
