"""Fits one candidate on a training set, proves its predictor, packages it and registers the version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from keepwell.checks.model.validation import loss_rows
from keepwell.core.clock import Time
from keepwell.core.digest import Digest, canonical
from keepwell.core.errors import InvalidInput, KeepwellError, NotFound, near_miss, users_own
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.store import Store
from keepwell.core.ports.tracking import Tracker
from keepwell.core.project import Candidate, ModelDeclaration, Project
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.models import Model, ModelVersion, Package, Signature
from keepwell.core.records.tracking import Metric, RunBatch
from keepwell.data.decisions import ID, LABEL, SLICE, UNIT
from keepwell.data.features import TIME
from keepwell.data.frames import describe_columns
from keepwell.data.training_sets import read_training_set
from keepwell.training.artefacts import pack_folder
from keepwell.training.own import checked, run_own
from keepwell.training.predictors import (
    PREDICTORS,
    Predictor,
    estimator_output,
    load_predictor,
    process,
)
from keepwell.training.predictors.native import frame_of

CPU_SECONDS = "cpu_seconds"
"""The run's metric with what training took of all cores, packaging and its proof included."""
TOLERANCE = 1e-6
"""Largest difference between predictor and estimator: float32 rounding of a probability, a hundred times over."""
GOLDEN_ROWS = 32
PREDICTION, BASELINE = "__prediction", "__baseline"
_PREFERENCE = ("linear", "onnx", "native")


def split_by_time(rows: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split decisions into an older part to fit on and the newest ``share`` to judge by; no instant is in both."""
    boundary = rows.get_column(TIME).sort()[min(int(rows.height * (1 - share)), rows.height - 1)]
    older, newer = rows.filter(pl.col(TIME) < boundary), rows.filter(pl.col(TIME) >= boundary)
    if older.is_empty():
        # All decisions carry one time (a plain table): the order of the rows is all there is.
        cut = max(1, int(rows.height * (1 - share)))
        older, newer = rows.head(cut), rows.tail(rows.height - cut)
    return older, newer


def inputs_of(rows: pl.DataFrame, model: ModelDeclaration) -> pl.DataFrame:
    """Give the features as a model sees them: numbers as float64 that float32 holds exactly, missing as NaN.

    Rounding before fitting is what makes a float32 runtime provably equal: a threshold between two such
    values parts them alike in both.
    """
    return rows.select(
        pl.col(name).cast(pl.Float32).cast(pl.Float64).fill_null(float("nan"))
        if rows.schema[name].is_numeric() or rows.schema[name] == pl.Boolean
        else pl.col(name).cast(pl.String)
        for name in model.features
    )


def matrix_of(inputs: pl.DataFrame, signature: Signature) -> npt.NDArray[Any]:
    """Give features as rows for a predictor."""
    if signature.numeric:
        return inputs.to_numpy().astype(np.float64, copy=False)
    return np.array(inputs.rows(), dtype=object)


def candidate_of(model: ModelDeclaration, name: str) -> Candidate:
    """Give a candidate of a model. Raises NotFound."""
    if name not in model.candidates:
        raise NotFound(
            f"There is no candidate {name!r}.",
            where=f"model {model.name!r}",
            todo=near_miss(name, model.candidates),
        )
    return model.candidates[name]


def fit_candidate(
    model: ModelDeclaration, candidate: Candidate, rows: pl.DataFrame, *, seed: int
) -> Any:
    """Run the project's own training function and check what it gave. Raises InvalidInput naming the user's line."""
    where = f"candidate {candidate.name!r} of model {model.name!r}"
    labels = rows.get_column(LABEL).to_numpy()
    if model.task != "regression":
        _need_classes(labels, task=model.task, where=where)
        labels = labels.astype(np.int64)
        if len(np.unique(labels)) < 2:
            raise InvalidInput("All labels are the same; there is nothing to learn.", where=where)
    todo = "Mend the training function; it gets (X, y, params, seed)."
    with users_own(where, doing="Training", todo=todo):
        estimator = candidate.train(inputs_of(rows, model), labels, dict(candidate.params), seed)
    if candidate.runtime == "process" and isinstance(estimator, str | Path):
        if (Path(estimator) / "MLmodel").is_file():
            return Path(estimator)
        raise InvalidInput(
            f"Training gave the path {str(estimator)!r}, where no MLflow model lies.",
            where=where,
            todo="Return the folder that mlflow.pyfunc.save_model wrote: it has a file MLmodel.",
        )
    verb = "predict" if model.task == "regression" else "predict_proba"
    if isinstance(estimator, type) or not hasattr(estimator, verb):
        raise InvalidInput(
            f"Training gave {estimator!r:.80}, which has no {verb}().",
            where=where,
            todo="Return the fitted estimator, for example 'return LogisticRegression().fit(X, y)'.",
        )
    return estimator


def _need_classes(labels: npt.NDArray[np.float64], *, task: str, where: str) -> None:
    good = np.isin(labels, (0.0, 1.0)) if task == "binary" else (labels >= 0) & (labels % 1 == 0)
    if not good.all():
        raise InvalidInput(
            f"The labels of a {task} task are {'0 and 1' if task == 'binary' else '0, 1, 2 and so on'};"
            f" {labels[~good][0]:g} is none.",
            where=where,
            todo="Turn the label into such numbers in the source, or declare another task.",
        )


def package_candidate(
    project: Project,
    model: ModelDeclaration,
    candidate: Candidate,
    training_set: TrainingSet,
    *,
    seed: int,
    blobs: Blobs,
    validation_share: float,
    folder: Path,
) -> tuple[Digest, Package, dict[str, float]]:
    """Fit and package into ``folder``; the same inputs give the same artefact. Gives digest, package and metrics."""
    rows = read_training_set(training_set, blobs=blobs)
    older, newer = split_by_time(rows, validation_share)
    fitted = fit_candidate(model, candidate, older, seed=seed)
    inputs = inputs_of(newer, model)
    signature = Signature(
        inputs=describe_columns(inputs_of(rows, model)),
        task=model.task,
        classes=tuple(str(c) for c in getattr(fitted, "classes_", ())),
    )
    # The training part alone says little of what may be missing later: any number may.
    signature = msgspec.structs.replace(
        signature,
        inputs=tuple(msgspec.structs.replace(c, nullable=True) for c in signature.inputs),
    )
    sample = matrix_of(inputs, signature)
    package = Package(
        model=model.name,
        candidate=candidate.name,
        predictor="",
        signature=signature,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        requirements=installed_requirements()
        if candidate.runtime == "worker"
        else process.requirements(candidate.environment),
        code=project.code(model.name),
        revision=code_revision(Path(candidate.train.__code__.co_filename).parent),
        training_set=training_set.content,
        seed=seed,
        params={
            k: v if isinstance(v, str | int | float | bool) else repr(v)
            for k, v in candidate.params.items()
        },
        own_modules=(candidate.train.__module__,),
        environment=candidate.environment,
    )
    estimator = process.Folder(fitted, package=package) if isinstance(fitted, Path) else fitted
    where = f"candidate {candidate.name!r} of model {model.name!r}"
    expected = _output(estimator, inputs, sample, signature, where=where)
    kinds = ("process",) if candidate.runtime == "process" else _PREFERENCE
    package, predictor = _prove(estimator, package, sample, expected, folder, kinds)
    predictions = predictor.predict(sample)
    baseline = baseline_output(model, inputs)
    _write(folder, newer, inputs, package, sample, predictions, baseline, predictor)
    labels = newer.get_column(LABEL).to_numpy()
    metrics = {
        "validation_loss": float(np.mean(loss_rows(model.task, labels, predictions))),
        "validation_rows": float(len(labels)),
    }
    if baseline.shape == predictions.shape:
        metrics["baseline_loss"] = float(np.mean(loss_rows(model.task, labels, baseline)))
    return pack_folder(folder, blobs=blobs), package, metrics


def _output(
    estimator: Any,
    inputs: pl.DataFrame,
    sample: npt.NDArray[Any],
    signature: Signature,
    *,
    where: str,
) -> npt.NDArray[np.float64]:
    """Give what the estimator says of the validation rows. Raises InvalidInput if that is not a number for each."""
    predicted = run_own(
        lambda: (
            estimator.outputs(sample)
            if isinstance(estimator, process.Folder)
            else estimator_output(estimator, inputs, signature=signature)
        ),
        where=f"{where}: predicting the validation rows",
    )
    return checked(predicted, inputs.height, where=f"{where}: its predictions", flat=False)


def baseline_output(model: ModelDeclaration, inputs: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Run the project's baseline rule on features. Raises InvalidInput if it raises or gives no number for a row."""
    if model.baseline_function is None:
        raise InvalidInput("The model declares no baseline.", where=f"model {model.name!r}")
    where = f"the baseline of model {model.name!r}"
    result = run_own(model.baseline_function, inputs, where=where)
    return checked(result, inputs.height, where=where, flat=False)


def _prove(
    estimator: Any,
    package: Package,
    sample: npt.NDArray[Any],
    expected: npt.NDArray[np.float64],
    folder: Path,
    kinds: Sequence[str],
) -> tuple[Package, Predictor]:
    """Take the first of the kinds, fastest first, whose predictions equal the estimator's on every validation row."""
    tried = []
    for name in kinds:
        trial = folder / ".trial"
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir(parents=True)
        kind = PREDICTORS.load(name)
        held = run_own(
            partial(kind.convert, signature=package.signature, folder=trial, sample=sample),
            estimator,
            where=f"candidate {package.candidate!r}: packaging it",
        )
        if not held:
            tried.append(f"{name}: cannot hold it")
            continue
        named = msgspec.structs.replace(package, predictor=name)
        (trial / "package.json").write_bytes(canonical(named))
        try:
            predictor, _ = load_predictor(trial)
            worst = float(np.max(np.abs(predictor.predict(sample) - expected)))
        except KeepwellError as error:
            tried.append(f"{name}: {error}")
            continue
        if worst > TOLERANCE:
            tried.append(f"{name}: differs by {worst:.3g}")
            continue
        for path in trial.iterdir():
            path.replace(folder / path.name)
        trial.rmdir()
        proved = msgspec.structs.replace(named, equal_rows=len(sample), largest_difference=worst)
        (folder / "package.json").write_bytes(canonical(proved))
        return proved, predictor
    raise InvalidInput(
        f"No predictor can stand for the estimator {type(estimator).__name__} ({'; '.join(tried)}).",
        where=f"candidate {package.candidate!r}",
        todo="Return a scikit-learn, LightGBM or XGBoost estimator that can be pickled; for anything else declare"
        ' runtime="process" and give your class save(folder) and load(folder).',
    )


def _write(
    folder: Path,
    newer: pl.DataFrame,
    inputs: pl.DataFrame,
    package: Package,
    sample: npt.NDArray[Any],
    predictions: npt.NDArray[np.float64],
    baseline: npt.NDArray[np.float64],
    predictor: Predictor,
) -> None:
    own = [ID, TIME, UNIT, LABEL, *(c for c in newer.columns if c.startswith(SLICE))]
    judged = newer.select(own).with_columns(
        pl.Series(PREDICTION, predictions.tolist()), pl.Series(BASELINE, baseline.tolist())
    )
    judged.hstack(inputs).write_parquet(
        folder / "validation.parquet", compression="zstd", compression_level=3, statistics=False
    )
    golden = sample[:: max(1, len(sample) // GOLDEN_ROWS)][:GOLDEN_ROWS]
    rows = [[_plain(v) for v in row] for row in golden]
    (folder / "golden.json").write_bytes(
        canonical(
            {
                "rows": rows,
                "predictions": predictor.predict(golden).tolist(),
                "tolerance": TOLERANCE,
            }
        )
    )
    (folder / "MLmodel").write_text(_mlmodel(package), encoding="utf-8")


def _plain(value: Any) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    return None if np.isnan(number) else number


def _mlmodel(package: Package) -> str:
    """Write the MLmodel file (MLflow's format, YAML): what other tools need to know of the folder."""
    inputs = [
        {"name": c.name, "type": "string" if c.dtype == "string" else "double", "required": False}
        for c in package.signature.inputs
    ]
    lines = ["flavors:"]
    if package.predictor == "onnx":
        lines += ["  onnx:", "    data: model.onnx", "    onnx_version: '1'"]
    lines += [
        "  keepwell:",
        f"    predictor: {package.predictor}",
        "    package: package.json",
        "signature:",
        f"  inputs: '{canonical(inputs).decode()}'",
        '  outputs: \'[{"type":"tensor","tensor-spec":{"dtype":"float64","shape":[-1]}}]\'',
    ]
    return "\n".join(lines) + "\n"


def installed_requirements() -> tuple[str, ...]:
    """List the installed packages that a model may be made of, with their versions."""
    names = (
        "keepwell",
        "numpy",
        "scipy",
        "polars",
        "scikit-learn",
        "lightgbm",
        "xgboost",
        "onnxruntime",
        "skl2onnx",
    )
    found = []
    for name in names:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def code_revision(folder: Path) -> str:
    """Give the Git revision of a folder, with ``+dirty`` where it has changes; empty where there is no Git."""
    try:
        revision = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        if revision.returncode:
            return ""
        changes = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "."],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return revision.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def train_candidate(
    project: Project,
    model_name: str,
    candidate_name: str,
    training_set: TrainingSet,
    *,
    seed: int,
    store: Store,
    blobs: Blobs,
    tracker: Tracker,
    now: Time,
    actor: str,
    renews: int | None = None,
    validation_share: float = 0.2,
) -> ModelVersion:
    """Train, package, track and register one candidate as the next version of its model.

    Raises InvalidInput for what the project's functions do wrong, NotFound for an unknown model or candidate.
    """
    model = project.model(model_name)
    candidate = candidate_of(model, candidate_name)
    run = tracker.start_run(
        tracker.experiment(model_name, now=now).id,
        name=f"{candidate_name}-{training_set.content[7:15]}",
        user=actor,
        tags={"keepwell.training_set": training_set.content, "keepwell.candidate": candidate_name},
        now=now,
    )
    before = _cpu_seconds()
    try:
        with tempfile.TemporaryDirectory(prefix="keepwell-") as temporary:
            artefact, package, metrics = package_candidate(
                project,
                model,
                candidate,
                training_set,
                seed=seed,
                blobs=blobs,
                validation_share=validation_share,
                folder=Path(temporary),
            )
    except BaseException:
        tracker.end_run(run.id, status="FAILED", now=now)
        raise
    tracker.log(
        RunBatch(
            run=run.id,
            metrics=tuple(
                Metric(key=k, value=v, time=now)
                for k, v in {**metrics, CPU_SECONDS: _cpu_seconds() - before}.items()
            ),
            params={k: str(v) for k, v in {**package.params, "seed": seed}.items()},
            tags={"keepwell.artefact": artefact, "keepwell.predictor": package.predictor},
        )
    )
    version = register_version(
        ModelVersion(
            model=model_name,
            version=0,
            candidate=candidate_name,
            artefact=artefact,
            run=run.id,
            training_set=training_set.content,
            code=package.code,
            signature=package.signature,
            author=actor,
            renews=renews,
            created=now,
            updated=now,
        ),
        store=store,
        actor=actor,
        description=model.purpose,
    )
    tracker.end_run(run.id, now=now)
    return version


def _cpu_seconds() -> float:
    """Give the time of all cores that this process, and children that it waited for, have taken."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def register_version(
    version: ModelVersion, *, store: Store, actor: str, description: str = ""
) -> ModelVersion:
    """Register a version under the next number of its model; the model is made if it is new."""
    with store.transaction(actor=actor) as transaction:
        model = transaction.get(Model, version.model)
        if model is None:
            model = Model(
                name=version.model,
                description=description,
                created=version.created,
                updated=version.created,
            )
            transaction.add(model)
        number = model.latest + 1
        transaction.replace(
            msgspec.structs.replace(
                model, latest=number, updated=version.created, revision=model.revision + 1
            )
        )
        numbered = msgspec.structs.replace(version, version=number)
        transaction.add(numbered)
    return numbered


def reproduce(
    version: ModelVersion,
    package: Package,
    training_set: TrainingSet,
    *,
    project: Project,
    blobs: Blobs,
    validation_share: float,
    seed: int | None = None,
) -> tuple[Digest, npt.NDArray[np.float64]]:
    """Train again from what was recorded; give the artefact's digest and the predictions on its validation rows.

    Another ``seed`` than the recorded one tells how much of the model was luck.

    Equal digests prove that nothing was left to chance. Where a numeric library adds up in another order on
    another number of threads, last bits may differ and the predictions tell whether that matters.
    """
    model = project.model(version.model)
    with tempfile.TemporaryDirectory(prefix="keepwell-") as temporary:
        artefact, _, _ = package_candidate(
            project,
            model,
            candidate_of(model, version.candidate),
            training_set,
            seed=package.seed if seed is None else seed,
            blobs=blobs,
            validation_share=validation_share,
            folder=Path(temporary),
        )
        judged = pl.read_parquet(Path(temporary) / "validation.parquet")
    return artefact, np.array(judged.get_column(PREDICTION).to_list(), dtype=np.float64)


__all__ = [
    "BASELINE",
    "PREDICTION",
    "candidate_of",
    "fit_candidate",
    "frame_of",
    "package_candidate",
    "register_version",
    "reproduce",
    "split_by_time",
    "train_candidate",
]
