"""MLflow's run operations: create, read, change, search, and what a run read and wrote."""

from __future__ import annotations

from typing import Any

from keepwell.app.api.mlflow.experiments import stage_of
from keepwell.app.api.mlflow.metrics import written_metric
from keepwell.app.api.mlflow.wire import (
    Body,
    Call,
    Operation,
    Pair,
    Searching,
    check_key,
    check_page,
    check_text,
    microseconds,
    milliseconds,
    needed,
    paged,
    pairs,
    unpair,
)
from keepwell.core.errors import InvalidInput
from keepwell.core.records.tracking import (
    Dataset,
    DatasetInput,
    ModelLink,
    Run,
    RunStatus,
)

STATUSES: dict[str, RunStatus] = {
    "RUNNING": "RUNNING",
    "SCHEDULED": "SCHEDULED",
    "FINISHED": "FINISHED",
    "FAILED": "FAILED",
    "KILLED": "KILLED",
    "1": "RUNNING",
    "2": "SCHEDULED",
    "3": "FINISHED",
    "4": "FAILED",
    "5": "KILLED",
}


def written_info(run: Run) -> dict[str, Any]:
    """Write a run's facts as MLflow does."""
    info: dict[str, Any] = {
        "run_id": run.id,
        "run_uuid": run.id,
        "run_name": run.name,
        "experiment_id": run.experiment,
        "user_id": run.user,
        "status": run.status,
        "start_time": milliseconds(run.started),
        "artifact_uri": run.artifacts,
        "lifecycle_stage": run.stage,
    }
    if run.ended is not None:
        info["end_time"] = milliseconds(run.ended)
    return info


def written(run: Run) -> dict[str, Any]:
    """Write a whole run as MLflow does, without empty parts: clients take long to read a field."""
    data: dict[str, Any] = {"tags": pairs(run.tags)}
    if run.metrics:
        data["metrics"] = [written_metric(metric) for metric in run.metrics]
    if run.params:
        data["params"] = pairs(run.params)
    found: dict[str, Any] = {"info": written_info(run), "data": data}
    if run.inputs or run.models_in:
        found["inputs"] = {
            "dataset_inputs": [_written_input(one) for one in run.inputs],
            "model_inputs": [{"model_id": link.model} for link in run.models_in],
        }
    if run.models_out:
        found["outputs"] = {
            "model_outputs": [
                {"model_id": link.model, "step": link.step} for link in run.models_out
            ]
        }
    return found


def _written_input(one: DatasetInput) -> dict[str, Any]:
    data = one.dataset
    return {
        "tags": pairs(one.tags),
        "dataset": {
            "name": data.name,
            "digest": data.digest,
            "source_type": data.source_type,
            "source": data.source,
            "schema": data.schema,
            "profile": data.profile,
        },
    }


class Create(Body):
    """Body of runs/create."""

    experiment_id: str = "0"
    user_id: str = ""
    run_name: str = ""
    start_time: int | None = None
    tags: tuple[Pair, ...] = ()


class One(Body):
    """Body of what takes a run, by either name of its id."""

    run_id: str = ""
    run_uuid: str = ""

    def id(self) -> str:
        """Give the id. Raises InvalidInput if there is none."""
        return needed(self.run_id or self.run_uuid, "run_id")


class Update(One):
    """Body of runs/update."""

    status: str = ""
    end_time: int | None = None
    run_name: str = ""


class Tag(One):
    """Body of run tags."""

    key: str = ""
    value: str = ""


class Search(Searching):
    """Body of runs/search."""

    experiment_ids: tuple[str, ...] = ()
    run_view_type: str = "ACTIVE_ONLY"
    max_results: int = 1000


class GivenDataset(Body):
    """A dataset as a client describes it."""

    name: str
    digest: str
    source_type: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""


class GivenInput(Body):
    """A dataset and its tags."""

    dataset: GivenDataset
    tags: tuple[Pair, ...] = ()


class GivenModel(Body):
    """A logged model that was read or written."""

    model_id: str
    step: int = 0


class Inputs(One):
    """Body of runs/log-inputs."""

    datasets: tuple[GivenInput, ...] = ()
    models: tuple[GivenModel, ...] = ()


class Outputs(One):
    """Body of runs/outputs."""

    models: tuple[GivenModel, ...] = ()


class Datasets(Body):
    """Body of experiments/search-datasets."""

    experiment_ids: tuple[str, ...] = ()


def create(call: Call, body: Create) -> dict[str, Any]:
    """Begin a run."""
    started = (
        call.services.clock.now()
        if body.start_time is None
        else microseconds(body.start_time, "start_time")
    )
    tags = unpair(body.tags)
    made = call.services.tracker.start_run(
        body.experiment_id,
        name=check_text(body.run_name, "The name", 8_000),
        user=body.user_id or tags.get("mlflow.user", ""),
        tags=tags,
        now=started,
    )
    return {"run": written(made)}


def get(call: Call, body: One) -> dict[str, Any]:
    """Give a run."""
    return {"run": written(call.services.tracker.run(body.id()))}


def update(call: Call, body: Update) -> dict[str, Any]:
    """Change a run's status, end or name."""
    if body.status and body.status not in STATUSES:
        raise InvalidInput(
            f"The status {body.status!r} is unknown.", todo=f"Use one of {', '.join(STATUSES)}."
        )
    changed = call.services.tracker.update_run(
        body.id(),
        name=check_text(body.run_name, "The name", 8_000) or None,
        status=STATUSES.get(body.status),
        ended=None if body.end_time is None else microseconds(body.end_time, "end_time"),
    )
    return {"run_info": written_info(changed)}


def delete(call: Call, body: One) -> None:
    """Mark a run as deleted; its files stay."""
    call.services.tracker.update_run(body.id(), stage="deleted")


def restore(call: Call, body: One) -> None:
    """Take a deletion back."""
    call.services.tracker.update_run(body.id(), stage="active")


def delete_tag(call: Call, body: Tag) -> None:
    """Remove a tag."""
    call.services.tracker.untag_run(body.id(), check_key(body.key))


def search(call: Call, body: Search) -> dict[str, Any]:
    """Find runs."""
    page = call.services.tracker.search_runs(
        body.experiment_ids,
        filter=body.filter,
        order=body.order_by,
        stage=stage_of(body.run_view_type),
        limit=check_page(body.max_results, 50_000),
        token=body.page_token,
    )
    return paged("runs", [written(run) for run in page.runs], page.token)


def log_inputs(call: Call, body: Inputs) -> None:
    """Enter what a run read."""
    call.services.tracker.log_inputs(
        body.id(),
        datasets=[_dataset(one) for one in body.datasets],
        models=[ModelLink(model=one.model_id, step=one.step) for one in body.models],
    )


def _dataset(given: GivenInput) -> DatasetInput:
    data = given.dataset
    return DatasetInput(
        dataset=Dataset(
            name=check_text(needed(data.name, "dataset.name"), "The dataset's name", 500),
            digest=check_text(needed(data.digest, "dataset.digest"), "The dataset's digest", 64),
            source_type=check_text(data.source_type, "The source's type", 500),
            source=check_text(data.source, "The source", 65_535),
            schema=check_text(data.schema, "The schema", 1_048_575),
            profile=check_text(data.profile, "The profile", 16_777_215),
        ),
        tags=unpair(given.tags),
    )


def log_outputs(call: Call, body: Outputs) -> None:
    """Enter the logged models that a run wrote."""
    call.services.tracker.log_outputs(
        body.id(), [ModelLink(model=one.model_id, step=one.step) for one in body.models]
    )


def search_datasets(call: Call, body: Datasets) -> dict[str, Any]:
    """List the datasets that runs of these experiments read."""
    found = call.services.tracker.dataset_summaries(body.experiment_ids)
    names = ("experiment_id", "name", "digest", "context")
    return {"dataset_summaries": [dict(zip(names, row, strict=True)) for row in found]}


OPERATIONS = (
    Operation("POST", "runs/create", Create, create),
    Operation("GET", "runs/get", One, get),
    Operation("POST", "runs/update", Update, update),
    Operation("POST", "runs/delete", One, delete),
    Operation("POST", "runs/restore", One, restore),
    Operation("POST", "runs/delete-tag", Tag, delete_tag),
    Operation("POST", "runs/search", Search, search, slow=True),
    Operation("POST", "runs/log-inputs", Inputs, log_inputs),
    Operation("POST", "runs/outputs", Outputs, log_outputs),
    Operation("POST", "experiments/search-datasets", Datasets, search_datasets, slow=True),
)
