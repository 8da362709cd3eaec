# mypy: ignore-errors
"""A full session of an unmodified MLflow client; run by MLflow's own interpreter, it writes what it found as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LogisticRegression

found: dict[str, object] = {}


def code_of(call) -> str:
    """Give the error code that a call is refused with."""
    try:
        call()
    except MlflowException as error:
        return error.error_code
    return "no error"


client = MlflowClient()
experiment = mlflow.set_experiment("flights")
found["experiment"] = experiment.name
found["experiment again"] = (
    mlflow.set_experiment("flights").experiment_id == experiment.experiment_id
)
client.set_experiment_tag(experiment.experiment_id, "team", "ops")
found["experiment tag"] = client.get_experiment(experiment.experiment_id).tags.get("team")
found["missing experiment"] = client.get_experiment_by_name("nowhere")
found["duplicate experiment"] = code_of(lambda: client.create_experiment("flights"))

rng = np.random.default_rng(7)
frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["a", "b", "c"])
label = (frame["a"] + frame["b"] > 0).astype(int)

mlflow.sklearn.autolog(log_models=False)
with mlflow.start_run(run_name="autologged") as run:
    LogisticRegression(C=0.5).fit(frame, label)
auto = client.get_run(run.info.run_id)
found["autolog param"] = auto.data.params.get("C")
found["autolog metric"] = "training_accuracy_score" in auto.data.metrics
found["autolog datasets"] = len(auto.inputs.dataset_inputs)
mlflow.sklearn.autolog(disable=True)

with mlflow.start_run(run_name="by hand", description="said by hand") as run:
    run_id = run.info.run_id
    mlflow.log_param("depth", 3)
    mlflow.log_params({"rate": 0.1, "kind": "linear"})
    for step in range(5):
        mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
    mlflow.log_metrics(
        {"auc": 0.75, "nan": float("nan"), "inf": float("inf"), "minus": float("-inf")}, step=2
    )
    client.log_batch(
        run_id,
        metrics=[Metric("batch", float(i), 1_700_000_000_000 + i, i) for i in range(120)],
        params=[Param("batched", "yes")],
        tags=[RunTag("phase", "training")],
    )
    mlflow.set_tags({"owner": "amy", "stale": "yes"})
    mlflow.delete_tag("stale")
    dataset = mlflow.data.from_pandas(frame, source="flights.csv", name="flights")
    mlflow.log_input(dataset, context="training", tags={"part": "first"})
    mlflow.log_text("hello", "notes/hello.txt")
    mlflow.log_dict({"a": 1}, "notes/deep/numbers.json")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one.txt", "two with space.txt"):
            (Path(folder) / name).write_text(name)
        (Path(folder) / "sub").mkdir()
        (Path(folder) / "sub" / "three.bin").write_bytes(bytes(range(256)) * 5000)
        mlflow.log_artifacts(folder, "files")
        mlflow.log_artifact(str(Path(folder) / "one.txt"))
    with mlflow.start_run(run_name="child", nested=True) as child:
        mlflow.log_metric("loss", 0.5)
    model = LogisticRegression().fit(frame, label)
    signature = mlflow.models.infer_signature(frame, model.predict(frame))
    info = mlflow.sklearn.log_model(
        model,
        name="model",
        signature=signature,
        input_example=frame.head(2),
        pip_requirements=["scikit-learn", "numpy"],
        registered_model_name="late",
        serialization_format="cloudpickle",
    )

got = client.get_run(run_id)
found["status"] = got.info.status
found["name"] = got.info.run_name
found["note"] = got.data.tags.get("mlflow.note.content")
found["params"] = {k: got.data.params[k] for k in ("depth", "rate", "kind", "batched")}
found["loss"] = got.data.metrics["loss"]
found["nan"] = repr(got.data.metrics["nan"])
found["inf"] = [repr(got.data.metrics["inf"]), repr(got.data.metrics["minus"])]
found["tags"] = [got.data.tags.get("owner"), got.data.tags.get("stale"), got.data.tags.get("phase")]
found["history"] = [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")]
found["batch history"] = len(client.get_metric_history(run_id, "batch"))
found["dataset"] = [
    (i.dataset.name, {t.key: t.value for t in i.tags}) for i in got.inputs.dataset_inputs
]
found["artifacts"] = sorted(a.path for a in client.list_artifacts(run_id))
found["files"] = sorted(
    (a.path, a.is_dir, a.file_size) for a in client.list_artifacts(run_id, "files")
)
with tempfile.TemporaryDirectory() as folder:
    local = Path(client.download_artifacts(run_id, "files", folder))
    found["downloaded"] = sorted(
        (str(p.relative_to(local)), p.stat().st_size) for p in local.rglob("*") if p.is_file()
    )
found["text"] = mlflow.artifacts.load_text(f"runs:/{run_id}/notes/hello.txt")
found["param changed"] = code_of(lambda: client.log_param(run_id, "depth", 4))
found["missing run"] = code_of(lambda: client.get_run("0" * 32))

# Registry
version = client.get_registered_model("late").latest_versions[0]
found["version"] = [version.version, version.run_id == run_id, version.status]
client.set_registered_model_alias("late", "champion", 1)
client.set_model_version_tag("late", "1", "checked", "yes")
client.set_registered_model_tag("late", "task", "binary")
client.update_model_version("late", "1", description="the first")
client.update_registered_model("late", description="lateness")
by_alias = client.get_model_version_by_alias("late", "champion")
found["alias"] = [by_alias.version, by_alias.tags, by_alias.description, list(by_alias.aliases)]
found["model"] = [
    client.get_registered_model("late").description,
    client.get_registered_model("late").tags,
    client.get_registered_model("late").aliases,
]
loaded = mlflow.pyfunc.load_model("models:/late@champion")
found["predicts"] = bool((loaded.predict(frame) == model.predict(frame)).all())
found["predicts by number"] = bool(
    (mlflow.sklearn.load_model("models:/late/1").predict(frame) == model.predict(frame)).all()
)
found["predicts by run"] = bool(
    (mlflow.pyfunc.load_model(f"runs:/{run_id}/model").predict(frame) == model.predict(frame)).all()
)
found["predicts by model"] = bool(
    (mlflow.pyfunc.load_model(info.model_uri).predict(frame) == model.predict(frame)).all()
)
second = mlflow.register_model(f"runs:/{run_id}/model", "late", tags={"by": "hand"})
found["second"] = [second.version, second.tags]
found["versions"] = [v.version for v in client.search_model_versions("name='late'")]
found["versions of run"] = [
    v.version
    for v in client.search_model_versions(f"run_id='{run_id}'", order_by=["version_number ASC"])
]
found["models"] = [m.name for m in client.search_registered_models("name LIKE 'la%'")]
found["download uri"] = client.get_model_version_download_uri("late", "1") != ""
found["champion kept"] = code_of(lambda: client.delete_model_version("late", "1"))
found["model kept"] = code_of(lambda: client.delete_registered_model("late"))
client.delete_model_version("late", "2")
found["left"] = [v.version for v in client.search_model_versions("name='late'")]
client.delete_model_version_tag("late", "1", "checked")
client.delete_registered_model_tag("late", "task")
found["logged models"] = [
    m.name for m in mlflow.search_logged_models([experiment.experiment_id], output_format="list")
]
client.create_registered_model("passing", tags={"a": "b"}, description="soon gone")
found["duplicate model"] = code_of(lambda: client.create_registered_model("passing"))
client.rename_registered_model("passing", "passed")
client.delete_registered_model("passed")
found["missing model"] = code_of(lambda: client.get_registered_model("passed"))

# Search
other = client.create_experiment("search", tags={"kind": "many"})
for i in range(25):
    made = client.create_run(other, run_name=f"r{i}", tags={"even": str(i % 2 == 0)})
    client.log_batch(
        made.info.run_id,
        metrics=[Metric("score", i * 0.5, 1_700_000_000_000, 0)],
        params=[Param("lr", str(i % 3))],
    )
    client.set_terminated(made.info.run_id)
page = client.search_runs(
    [other], "metrics.score > 2 and params.lr = '1'", order_by=["metrics.score DESC"], max_results=3
)
found["page"] = [r.data.metrics["score"] for r in page]
following = client.search_runs(
    [other],
    "metrics.score > 2 and params.lr = '1'",
    order_by=["metrics.score DESC"],
    max_results=3,
    page_token=page.token,
)
found["next page"] = [r.data.metrics["score"] for r in following]
found["by tag"] = len(
    client.search_runs([other], "tags.even = 'True' and attributes.status = 'FINISHED'")
)
found["by name"] = [
    r.info.run_name
    for r in client.search_runs([other], "run_name LIKE 'r2%'", order_by=["start_time ASC"])
]
found["bad filter"] = code_of(lambda: client.search_runs([other], "metrics.score >>> 2"))
found["frame"] = list(
    mlflow.search_runs([other], "params.lr IN ('0', '2')", max_results=100).shape
)[:1]
found["experiments"] = sorted(
    e.name for e in client.search_experiments(filter_string="name ILIKE 'SEA%'")
)
found["by experiment tag"] = [
    e.name for e in client.search_experiments(filter_string="tags.kind = 'many'")
]
found["children"] = [
    r.info.run_name
    for r in client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
]
client.delete_run(run_id)
client.restore_run(run_id)
client.delete_run(child.info.run_id)
found["deleted"] = client.get_run(child.info.run_id).info.lifecycle_stage
client.update_run(run_id, name="renamed")
found["renamed"] = client.get_run(run_id).info.run_name
client.rename_experiment(other, "searched")
client.delete_experiment(other)
found["experiment deleted"] = client.get_experiment(other).lifecycle_stage
client.restore_experiment(other)
found["experiment restored"] = client.get_experiment(other).name

Path(sys.argv[1]).write_text(json.dumps(found))
