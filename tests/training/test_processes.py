"""Candidates with a process of their own: packaged with their code, proved in a process, served by the gateway."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.serving.gateways import arm, endpoint, lay_out, running
from tests.training import shop
from tests.training.test_training import Site

from keepwell.checks.artefact.manifest import manifest_complete
from keepwell.checks.artefact.pickles import scan_files
from keepwell.core.errors import InvalidInput, Refused
from keepwell.core.project import ModelDeclaration
from keepwell.training.artefacts import read_artefact
from keepwell.training.predictors import load_predictor
from keepwell.training.predictors.process import Described, own_code

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("KEEPWELL_MLFLOW_PYTHON", ROOT / ".venv-mlflow/bin/python"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.tracker.close()
    made.store.close()


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def declare(site: Site, model: str, name: str, train, **fields) -> ModelDeclaration:
    declared = site.project.model(model)
    declared.candidates.pop(name, None)
    declared.candidate(name, runtime="process", **fields)(train)
    return declared


def test_a_class_with_save_and_load_is_packaged_with_its_code_and_proved_in_a_process(
    site, tmp_path
):
    declare(site, "buys", "mean", shop.kept)
    digest, package, metrics = site.package("buys", "mean", tmp_path / "m")
    assert (package.predictor, package.equal_rows) == ("process", 120)
    assert package.largest_difference == 0.0
    assert metrics["validation_rows"] == 120
    assert any(one.startswith("polars==") for one in package.requirements)
    described = msgspec.json.decode((tmp_path / "m/process.json").read_bytes(), type=Described)
    assert (described.form, described.name) == ("class", "tests.training.shop:Kept")
    # Its module, and of those that it imports the project's own: not Keepwell's, not installed ones.
    code = {
        p.relative_to(tmp_path / "m/code").as_posix() for p in (tmp_path / "m/code").rglob("*.py")
    }
    assert code == {"tests/training/shop.py", "tests/data/flights_like.py"}
    artefact = read_artefact(digest, blobs=site.blobs)
    assert manifest_complete(artefact, package).verdict == "pass"
    again, _, _ = site.package("buys", "mean", tmp_path / "again")
    assert again == digest


def test_what_is_packaged_answers_though_the_project_goes_on_changing(site, tmp_path, monkeypatch):
    declare(site, "buys", "mean", shop.kept)
    site.package("buys", "mean", tmp_path / "m")
    changed = tmp_path / "changed"
    for name, content in own_code("tests.training.shop").items():
        place = changed / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.replace(b"np.full(len(X), self.mean)", b"np.full(len(X), 0.0)"))
    monkeypatch.setenv("PYTHONPATH", f"{changed}:{ROOT}")
    predictor, _ = load_predictor(tmp_path / "m")
    mean = float((tmp_path / "m/model/mean.txt").read_text())
    assert predictor.predict(np.zeros((2, 3))).tolist() == [mean, mean]
    predictor.close()  # type: ignore[attr-defined]


def test_what_cannot_be_served_from_a_process_is_refused_with_what_to_do(site, tmp_path):
    for train, said in (
        (lambda X, y, params, seed: tmp_path, "no MLflow model lies"),
        (lambda X, y, params, seed: shop.Unsaved(), "wrote nothing"),
        (lambda X, y, params, seed: shop.Raising(), "ZeroDivisionError"),
    ):
        declare(site, "buys", "bad", train)
        with pytest.raises(InvalidInput, match=said):
            site.package("buys", "bad", tmp_path / "bad")
    declare(site, "buys", "bad", shop.kept, environment="nowhere")
    with pytest.raises(InvalidInput, match="KEEPWELL_PYTHON_NOWHERE"):
        site.package("buys", "bad", tmp_path / "bad")
    with pytest.raises(InvalidInput, match="Declare runtime"):
        site.project.model("buys").candidate("worse", environment="mlflow")
    with pytest.raises(InvalidInput, match="Did you mean 'process'"):
        site.project.model("buys").candidate("worse", runtime="proces")


def test_real_mlflow_models_are_packaged_scanned_and_served_from_their_own_environment(
    site, tmp_path, monkeypatch
):
    if not PYTHON.exists():
        pytest.fail("There is no environment with MLflow; run: make setup-mlflow")
    monkeypatch.setenv("KEEPWELL_PYTHON_MLFLOW", str(PYTHON))
    saved = tmp_path / "saved"
    saved.mkdir()
    script = Path(__file__).with_name("mlflow_models.py")
    subprocess.run([PYTHON, script, saved], check=True, timeout=150, capture_output=True)
    # A pickle of MLflow's own kind would run code that nobody has read: the scan says so, before anything is loaded.
    assert "cloudpickle" in scan_files(saved / "pickled").message
    declare(site, "spends", "pickled", lambda *_: saved / "pickled", environment="mlflow")
    with pytest.raises(Refused, match="cloudpickle"):
        site.package("spends", "pickled", tmp_path / "bad")
    declare(site, "spends", "code", lambda *_: saved / "from_code", environment="mlflow")
    _, package, _ = site.package("spends", "code", tmp_path / "code")
    assert "mlflow==3.17.2" in package.requirements
    with running(tmp_path / "gateway", workers=2) as gateway:
        digest = lay_out(gateway.shelf, tmp_path / "code")
        gateway.publish(endpoint(arms=[arm(1, digest)]))
        rows = [
            {"size": 2.5, "age": None, "member": 1.0},
            {"size": None, "age": 1.0, "member": None},
        ]
        status, answer = gateway.post({"rows": rows, "ids": ["a", "b"]})
        assert (status, [p["prediction"] for p in answer["predictions"]]) == (200, [7.5, 300.0])
        assert [p.output for p in gateway.records()[0]] == [7.5, 300.0]
        # What the model prints goes to its own file.
        (said,) = (gateway.shelf.folder / "runtimes").glob("*.log")
        assert "asked for 2 rows" in said.read_text()
