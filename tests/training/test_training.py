"""A packaged model answers as the fitted one did, can be made again, and never runs what it should not."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from tests.data.flights_like import micros
from tests.training import shop

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.stores.sql import open_store
from keepwell.adapters.tracking.sql import open_tracking
from keepwell.checks.artefact.manifest import manifest_complete
from keepwell.checks.artefact.pickles import pickle_scan
from keepwell.core.digest import canonical, digest_of
from keepwell.core.errors import Corrupt, InvalidInput, NotFound, Refused
from keepwell.core.records.data import Column
from keepwell.core.records.models import Artefact, Model, ModelVersion, Package, Signature
from keepwell.data.training_sets import build_training_set, read_training_set
from keepwell.training.artefacts import pack_folder, read_artefact, read_package, unpack_artefact
from keepwell.training.predictors import estimator_output, load_predictor
from keepwell.training.predictors import onnx as onnx_kind
from keepwell.training.predictors.onnx import OnnxPredictor
from keepwell.training.train import (
    CPU_SECONDS,
    fit_candidate,
    inputs_of,
    matrix_of,
    package_candidate,
    register_version,
    reproduce,
    split_by_time,
    train_candidate,
)

CASES = {
    ("buys", "linear"): "linear",
    ("buys", "boosting"): "onnx",
    ("buys", "forest"): "onnx",
    ("buys", "bayes"): {"onnx", "native"},
    ("buys", "own"): "native",
    ("towns", "by_town"): {"onnx", "native"},
    ("spends", "ridge"): "linear",
    ("groups", "boosting"): "onnx",
    ("groups", "bayes"): {"onnx", "native"},
}


class Site:
    """A store, blobs and the training sets of the shop."""

    def __init__(self, folder):
        self.url = f"sqlite:///{folder}/a.db"
        self.store = open_store(self.url)
        self.tracker = open_tracking(self.url)
        self.blobs = FileBlobs(folder / "blobs")
        self.project = shop.project()
        self.sets = {
            name: build_training_set(
                self.project, name, as_of=micros(900), since=None, until=micros(900), store=self.store,
                blobs=self.blobs, now=1, actor="ana",
            )
            for name in self.project.models
        }  # fmt: skip

    def package(self, model, candidate, folder, seed=0):
        declared = self.project.model(model)
        folder.mkdir(parents=True, exist_ok=True)
        return package_candidate(
            self.project, declared, declared.candidates[candidate], self.sets[model], seed=seed, blobs=self.blobs,
            validation_share=0.2, folder=folder,
        )  # fmt: skip

    def train(self, model, candidate, **fields):
        return train_candidate(
            self.project, model, candidate, self.sets[model],
            **{"seed": 0, "store": self.store, "blobs": self.blobs, "tracker": self.tracker, "now": 5, "actor": "ana", **fields},
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.tracker.close()
    made.store.close()


@pytest.mark.parametrize(("model", "candidate"), CASES)
def test_a_predictor_answers_as_the_fitted_estimator_on_every_row_with_gaps(
    site, tmp_path, model, candidate
):
    _, package, metrics = site.package(model, candidate, tmp_path / "m", seed=3)
    wanted = CASES[model, candidate]
    assert package.predictor in ({wanted} if isinstance(wanted, str) else wanted)
    declared = site.project.model(model)
    rows = read_training_set(site.sets[model], blobs=site.blobs)
    older, _ = split_by_time(rows, 0.2)
    estimator = fit_candidate(declared, declared.candidates[candidate], older, seed=3)
    inputs = inputs_of(rows, declared)
    expected = estimator_output(estimator, inputs, signature=package.signature)
    predictor, read = load_predictor(tmp_path / "m")
    assert read == package
    matrix = matrix_of(inputs, package.signature)
    missing = [
        any(v is None or (isinstance(v, float) and math.isnan(v)) for v in row) for row in matrix
    ]
    assert sum(missing) > 50
    found = predictor.predict(matrix)
    assert found.shape == ((600, 3) if model == "groups" else (600,))
    assert np.max(np.abs(found - expected)) <= 1e-6
    # One row alone gives the same as the row among others.
    assert np.max(np.abs(predictor.predict(matrix[:1]) - expected[:1])) <= 1e-6
    assert metrics["validation_rows"] == package.equal_rows == 120


def test_rows_as_the_gateway_decodes_them_give_the_same_answers(site, tmp_path):
    from keepwell.serving.desk.codec import Codec
    from keepwell.training.predictors import golden_problem

    for model, candidate in (("towns", "by_town"), ("buys", "boosting")):
        site.package(model, candidate, tmp_path / model)
        predictor, package = load_predictor(tmp_path / model)
        rows = inputs_of(
            read_training_set(site.sets[model], blobs=site.blobs), site.project.model(model)
        )
        sent = [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
            for row in rows.to_dicts()
        ]
        decoded = Codec(package.signature).decode(msgspec.json.encode({"rows": sent}))
        expected = predictor.predict(matrix_of(rows, package.signature))
        assert decoded.matrix is not None
        assert np.max(np.abs(predictor.predict(decoded.matrix) - expected)) <= 1e-6
        assert golden_problem(predictor, tmp_path / model, numeric=package.signature.numeric) == ""


@pytest.mark.parametrize(
    ("model", "candidate"),
    [("buys", "boosting"), ("buys", "linear"), ("buys", "own"), ("towns", "by_town")],
)
def test_the_same_inputs_give_the_same_artefact_and_another_seed_another(
    site, tmp_path, model, candidate
):
    first = site.package(model, candidate, tmp_path / "1")[0]
    assert site.package(model, candidate, tmp_path / "2")[0] == first
    assert site.package(model, candidate, tmp_path / "3", seed=1)[0] != first


def test_training_registers_a_whole_artefact_that_can_be_reproduced(site, tmp_path):
    version = site.train("buys", "boosting")
    assert (version.version, version.state, version.author) == (1, "registered", "ana")
    assert site.store.get(ModelVersion, "buys", 1) == version
    artefact = read_artefact(version.artefact, blobs=site.blobs)
    package = read_package(artefact, blobs=site.blobs)
    assert manifest_complete(artefact, package).verdict == "pass"
    run = site.tracker.run(version.run)
    assert run.status == "FINISHED"
    assert {metric.key: metric.value for metric in run.metrics}[CPU_SECONDS] > 0
    again, _ = reproduce(
        version,
        package,
        site.sets["buys"],
        project=site.project,
        blobs=site.blobs,
        validation_share=0.2,
    )
    assert again == version.artefact
    assert site.train("buys", "linear", renews=1).version == 2


def test_a_manifest_that_lacks_a_part_fails(site, tmp_path):
    digest, package, _ = site.package("buys", "linear", tmp_path / "m")
    artefact = read_artefact(digest, blobs=site.blobs)
    without = Artefact(files={k: v for k, v in artefact.files.items() if k != "golden.json"})
    assert manifest_complete(without, package).verdict == "fail"
    for change in ({"code": ""}, {"requirements": ()}, {"equal_rows": 0}):
        assert (
            manifest_complete(artefact, msgspec.structs.replace(package, **change)).verdict
            == "fail"
        )


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("raising", r"shop\.py:\d+.*ZeroDivisionError: no luck"),
        ("nothing", r"gave None, which has no predict_proba"),
    ],
)
def test_a_training_function_that_fails_is_named_and_its_run_too(site, candidate, said):
    with pytest.raises(InvalidInput, match=said):
        site.train("buys", candidate)
    runs = site.tracker.search_runs([site.tracker.experiment("buys", now=1).id]).runs
    assert {run.status for run in runs if run.name.startswith(candidate)} == {"FAILED"}


def test_an_unknown_model_or_candidate_names_the_nearest(site):
    with pytest.raises(NotFound, match=r"no candidate 'linaer'.*Did you mean 'linear'"):
        site.train("buys", "linaer")
    with pytest.raises(NotFound, match="Did you mean 'buys'"):
        train_candidate(
            site.project, "buy", "linear", site.sets["buys"],
            seed=0, store=site.store, blobs=site.blobs, tracker=site.tracker, now=1, actor="ana",
        )  # fmt: skip


def test_the_newest_rows_are_kept_for_validation(site):
    rows = read_training_set(site.sets["buys"], blobs=site.blobs)
    older, newer = split_by_time(rows, 0.25)
    assert (older.height, newer.height) == (450, 150)
    assert max(older.get_column("__time").to_list()) < min(newer.get_column("__time").to_list())
    one_instant = rows.with_columns(
        rows.get_column("__time").replace_strict(rows.get_column("__time"), 1).alias("__time")
    )
    assert [part.height for part in split_by_time(one_instant, 0.25)] == [450, 150]


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/keepwell-was-here",))


class Loads:
    def __reduce__(self):
        return (np.load, ("somewhere.npy",))


def native_folder(site, folder, content):
    site.package("buys", "own", folder)
    (folder / "model.pkl").write_bytes(content)
    return folder


def test_a_malicious_pickle_is_refused_by_the_scan_and_by_the_loader(site, tmp_path, monkeypatch):
    passed = pickle_scan(pickle.dumps([1]))
    for content in (pickle.dumps(Evil(), protocol=5), pickle.dumps(Evil(), protocol=0)):
        assert pickle_scan(content).verdict == "fail"
        folder = native_folder(site, tmp_path / "m", content)
        with pytest.raises(Refused, match=r"system"):
            load_predictor(folder)
        with monkeypatch.context() as patch:
            # And where the scan were fooled, the loader itself still refuses.
            patch.setattr(
                "keepwell.training.predictors.native.pickle_scan", lambda *_, **__: passed
            )
            with pytest.raises(Refused, match=r"system"):
                load_predictor(folder)
    assert not Path("/tmp/keepwell-was-here").exists()


def test_a_function_of_a_known_package_is_refused_by_the_loader(site, tmp_path):
    folder = native_folder(site, tmp_path / "m", pickle.dumps(Loads(), protocol=5))
    with pytest.raises(Refused, match=r"load"):
        load_predictor(folder)


@pytest.mark.parametrize(
    "content", [b"", b"x", pickle.dumps(np.ones(3))[:-9], b"\x80\x04}\x94K\x01a."]
)
def test_a_damaged_pickle_is_not_loaded(site, tmp_path, content):
    folder = native_folder(site, tmp_path / "m", content)
    with pytest.raises((Refused, Corrupt)):
        load_predictor(folder)


@pytest.mark.parametrize(
    ("candidate", "file"),
    [("linear", "linear.json"), ("boosting", "model.onnx"), ("linear", "package.json")],
)
def test_a_damaged_or_missing_file_is_corrupt(site, tmp_path, candidate, file):
    site.package("buys", candidate, tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(b"{")
    with pytest.raises(Corrupt):
        load_predictor(tmp_path / "m")
    (tmp_path / "m" / file).unlink()
    with pytest.raises(Corrupt):
        load_predictor(tmp_path / "m")


def test_an_unknown_kind_of_predictor_is_named(site, tmp_path):
    _, package, _ = site.package("buys", "linear", tmp_path / "m")
    (tmp_path / "m" / "package.json").write_bytes(
        canonical(msgspec.structs.replace(package, predictor="linaer"))
    )
    with pytest.raises(NotFound, match="Did you mean 'linear'"):
        load_predictor(tmp_path / "m")


def test_an_artefact_is_unpacked_as_it_was_packed_and_a_changed_byte_is_found(tmp_path):
    blobs = FileBlobs(tmp_path / "blobs")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(b"1")
    (tmp_path / "in" / "deep" / "b").write_bytes(b"2")
    digest = pack_folder(tmp_path / "in", blobs=blobs)
    out = unpack_artefact(digest, tmp_path / "out", blobs=blobs)
    assert (out / "deep" / "b").read_bytes() == b"2"
    unpack_artefact(digest, tmp_path / "out", blobs=blobs)
    place = blobs._place(read_artefact(digest, blobs=blobs).files["a"])
    place.chmod(0o644)
    place.write_bytes(b"x")
    with pytest.raises(Corrupt):
        unpack_artefact(digest, tmp_path / "out", blobs=blobs)
    assert (out / "a").read_bytes() == b"1", "what was there before stays"


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_artefact_that_names_a_path_outside_its_folder_is_corrupt(tmp_path, name):
    blobs = FileBlobs(tmp_path / "blobs")
    digest = blobs.put(canonical(Artefact(files={name: blobs.put(b"x")})))
    with pytest.raises(Corrupt):
        unpack_artefact(digest, tmp_path / "deep" / "out", blobs=blobs)
    assert not list(tmp_path.rglob("outside"))


def test_an_empty_folder_is_no_artefact(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InvalidInput):
        pack_folder(tmp_path / "in", blobs=FileBlobs(tmp_path / "blobs"))


def register_five(url, name):
    store = open_store(url)
    for n in range(5):
        register_version(
            ModelVersion(model="m", version=0, artefact=digest_of(f"{name}-{n}"), author=name, created=n, updated=n),
            store=store, actor=name,
        )  # fmt: skip
    store.close()


def test_versions_registered_by_many_processes_get_numbers_without_a_gap(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    open_store(url).close()
    processes = multiprocessing.get_context("fork")
    children = [processes.Process(target=register_five, args=(url, f"p{n}")) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(150)
    assert [child.exitcode for child in children] == [0] * 4
    store = open_store(url)
    versions = store.find(ModelVersion)
    assert [v.version for v in versions] == list(range(1, 21))
    assert len({v.artefact for v in versions}) == 20
    found = store.get(Model, "m")
    assert found is not None
    assert found.latest == 20
    store.close()


@pytest.mark.parametrize("candidate", ["boosting", "linear"])
def test_loading_and_predicting_need_none_of_the_packages_it_was_trained_with(
    site, tmp_path, candidate
):
    site.package("buys", candidate, tmp_path / "m")
    script = (
        "import sys, keepwell.serving.worker, numpy; from pathlib import Path;"
        "from keepwell.training.predictors import load_predictor;"
        "predictor, _ = load_predictor(Path(sys.argv[1]));"
        "predictor.predict(numpy.ones((1, 3)));"
        "print(sorted({'sqlalchemy', 'polars', 'sklearn', 'alembic', 'dbos', 'scipy', 'skl2onnx'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"


def test_a_package_names_what_it_was_made_of(site, tmp_path):
    _, package, _ = site.package("spends", "ridge", tmp_path / "m")
    assert isinstance(package, Package)
    assert package.params == {"alpha": 0.5}
    assert package.training_set == site.sets["spends"].content
    assert any(r.startswith("scikit-learn==") for r in package.requirements)
    assert package.own_modules == ("tests.training.shop",)


def test_a_boosted_classifier_of_two_classes_keeps_only_its_score(tmp_path):
    rows = np.random.default_rng(3).normal(size=(300, 3))
    labels = (rows[:, 0] * rows[:, 1] > 0.1).astype(int)
    signature = Signature(
        inputs=tuple(Column(name=f"x{k}", dtype="float64", nullable=True) for k in range(3)), task="binary"
    )  # fmt: skip
    estimator = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(rows, labels)
    assert onnx_kind.KIND.convert(estimator, signature=signature, folder=tmp_path, sample=rows)
    written = onnx.load(tmp_path / "model.onnx")
    assert [node.op_type for node in written.graph.node] == ["TreeEnsembleRegressor", "Sigmoid"]
    predictor = OnnxPredictor(tmp_path, signature=signature)
    rows[::7, 1] = np.nan
    np.testing.assert_allclose(
        predictor.predict(rows), estimator.predict_proba(rows)[:, 1], atol=1e-6
    )
