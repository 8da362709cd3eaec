"""Projects to misuse: one without state, and a copy of one that is trained and released."""

import pytest
from tests.app.projects import Commands, copied, made, trained
from tests.stories.projects import shared


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory, worker_id):
    return shared(tmp_path_factory, worker_id, "tumours", trained)


@pytest.fixture
def fresh(tmp_path, capsys, monkeypatch):
    """Commands on a new project."""
    return Commands(made(tmp_path / "tumours"), capsys, monkeypatch)


@pytest.fixture
def released(trained_project, tmp_path, capsys, monkeypatch):
    """Commands on a project whose version 1 is released."""
    return Commands(copied(trained_project, tmp_path / "tumours"), capsys, monkeypatch)
