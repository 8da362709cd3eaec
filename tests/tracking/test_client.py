"""An unmodified MLflow client goes through a whole session against Keepwell, on both databases."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepwell.core.records.models import Alias, Model, ModelVersion

if TYPE_CHECKING:
    from tests.tracking.conftest import Running

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("KEEPWELL_MLFLOW_PYTHON", ROOT / ".venv-mlflow/bin/python"))


def session(server: Running, folder: Path) -> dict[str, Any]:
    assert PYTHON.exists(), f"{PYTHON} is missing; run `make setup-mlflow`"
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("client_session.py"), folder / "found.json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "MLFLOW_TRACKING_URI": server.url,
            "GIT_PYTHON_REFRESH": "quiet",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_an_unmodified_client_session_passes_and_what_it_registers_are_keepwells_records(
    server: Running, tmp_path: Path
) -> None:
    found = session(server, tmp_path)
    expected = {
        "experiment again": True,
        "experiment tag": "ops",
        "missing experiment": None,
        "duplicate experiment": "RESOURCE_ALREADY_EXISTS",
        "autolog param": "0.5",
        "autolog metric": True,
        "autolog datasets": 1,
        "status": "FINISHED",
        "name": "by hand",
        "note": "said by hand",
        "params": {"depth": "3", "rate": "0.1", "kind": "linear", "batched": "yes"},
        "loss": 0.2,
        "nan": "nan",
        "inf": ["inf", "-inf"],
        "tags": ["amy", None, "training"],
        "history": [[0, 1.0], [1, 0.5], [2, 1 / 3], [3, 0.25], [4, 0.2]],
        "batch history": 120,
        "dataset": [["flights", {"part": "first", "mlflow.data.context": "training"}]],
        "artifacts": ["files", "notes", "one.txt"],
        "downloaded": [["one.txt", 7], ["sub/three.bin", 1_280_000], ["two with space.txt", 18]],
        "text": "hello",
        "param changed": "INVALID_PARAMETER_VALUE",
        "missing run": "RESOURCE_DOES_NOT_EXIST",
        "version": ["1", True, "READY"],
        "model": ["lateness", {"task": "binary"}, {"champion": "1"}],
        "predicts": True,
        "predicts by number": True,
        "predicts by run": True,
        "predicts by model": True,
        "versions": ["2", "1"],
        "versions of run": ["1", "2"],
        "models": ["late"],
        "champion kept": "RESOURCE_CONFLICT",
        "model kept": "RESOURCE_CONFLICT",
        "left": ["1"],
        "logged models": ["model"],
        "duplicate model": "RESOURCE_ALREADY_EXISTS",
        "missing model": "RESOURCE_DOES_NOT_EXIST",
        "page": [11.0, 9.5, 8.0],
        "next page": [6.5, 5.0, 3.5],
        "by tag": 13,
        "by name": ["r2", "r20", "r21", "r22", "r23", "r24"],
        "bad filter": "INVALID_PARAMETER_VALUE",
        "frame": [17],
        "experiments": ["search"],
        "by experiment tag": ["search"],
        "children": ["child"],
        "deleted": "deleted",
        "renamed": "renamed",
        "experiment deleted": "deleted",
        "experiment restored": "searched",
    }
    assert {key: found.get(key) for key in expected} == expected
    store = server.store
    version = store.get(ModelVersion, "late", 1)
    assert version is not None
    assert "MLmodel" in server.blobs.get(version.artefact).decode()
    assert store.get(Alias, "late", "champion") == Alias(model="late", alias="champion", version=1)
    model = store.get(Model, "late")
    assert model is not None
    assert model.latest == 2
    subjects = {entry.subject for entry in store.audit()}
    assert {"models/late", "model_versions/late/1", "aliases/late/champion"} <= subjects
