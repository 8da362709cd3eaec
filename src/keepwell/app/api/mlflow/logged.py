"""MLflow's logged models: what a run saved, before it is registered."""

from __future__ import annotations

from typing import Any

from keepwell.app.api.mlflow.metrics import written_metric
from keepwell.app.api.mlflow.wire import (
    Body,
    Call,
    Operation,
    Pair,
    check_page,
    check_text,
    milliseconds,
    needed,
    paged,
    pairs,
    unpair,
)
from keepwell.core.errors import InvalidInput
from keepwell.core.records.tracking import LoggedModel, LoggedModelStatus

STATUSES: dict[str, LoggedModelStatus] = {
    "LOGGED_MODEL_PENDING": "PENDING",
    "LOGGED_MODEL_READY": "READY",
    "LOGGED_MODEL_UPLOAD_FAILED": "UPLOAD_FAILED",
    "1": "PENDING",
    "2": "READY",
    "3": "UPLOAD_FAILED",
}


def written(model: LoggedModel) -> dict[str, Any]:
    """Write a logged model as MLflow does."""
    return {
        "info": {
            "model_id": model.id,
            "experiment_id": model.experiment,
            "name": model.name,
            "creation_timestamp_ms": milliseconds(model.created),
            "last_updated_timestamp_ms": milliseconds(model.updated),
            "artifact_uri": model.artifacts,
            "status": f"LOGGED_MODEL_{model.status}",
            "model_type": model.kind,
            "source_run_id": model.run,
            "tags": pairs(model.tags),
        },
        "data": {
            "params": pairs(model.params),
            "metrics": [written_metric(metric) | {"run_id": run} for run, metric in model.metrics],
        },
    }


class Create(Body):
    """Body of the creation of a logged model."""

    experiment_id: str = "0"
    name: str = ""
    model_type: str = ""
    source_run_id: str = ""
    params: tuple[Pair, ...] = ()
    tags: tuple[Pair, ...] = ()


class Change(Body):
    """Body of every change of a logged model."""

    status: str = ""
    params: tuple[Pair, ...] = ()
    tags: tuple[Pair, ...] = ()


class OrderKey(Body):
    """One key of an order."""

    field_name: str
    ascending: bool = True


class Search(Body):
    """Body of logged-models/search."""

    experiment_ids: tuple[str, ...] = ()
    filter: str = ""
    max_results: int = 100
    order_by: tuple[OrderKey, ...] = ()
    page_token: str = ""


class Nothing(Body):
    """A request whose path says all."""


def create(call: Call, body: Create) -> dict[str, Any]:
    """Make one in state PENDING."""
    made = call.services.tracker.create_logged_model(
        body.experiment_id,
        name=check_text(body.name, "The name", 500),
        kind=body.model_type,
        run=body.source_run_id,
        params=unpair(body.params),
        tags=unpair(body.tags),
        now=call.services.clock.now(),
    )
    return {"model": written(made)}


def get(call: Call, _body: Nothing) -> dict[str, Any]:
    """Give one."""
    return {"model": written(call.services.tracker.get_logged_model(call.path["model"]))}


def finalize(call: Call, body: Change) -> dict[str, Any]:
    """Say how its upload ended."""
    if body.status not in STATUSES:
        raise InvalidInput(
            f"The status {body.status!r} is unknown.", todo=f"Use one of {', '.join(STATUSES)}."
        )
    return _change(call, status=STATUSES[body.status])


def log_params(call: Call, body: Change) -> None:
    """Add params."""
    _change(call, params=unpair(body.params))


def set_tags(call: Call, body: Change) -> dict[str, Any]:
    """Set tags."""
    return _change(call, tags=unpair(body.tags))


def delete_tag(call: Call, _body: Nothing) -> None:
    """Remove a tag."""
    _change(call, tags={call.path["key"]: None})


def delete(call: Call, _body: Nothing) -> None:
    """Mark one as deleted; its files stay."""
    call.services.tracker.update_logged_model(
        call.path["model"], stage="deleted", now=call.services.clock.now()
    )


def _change(call: Call, **changes: Any) -> dict[str, Any]:
    model = call.path["model"]
    call.services.tracker.update_logged_model(model, now=call.services.clock.now(), **changes)
    return {"model": written(call.services.tracker.get_logged_model(model))}


def search(call: Call, body: Search) -> dict[str, Any]:
    """Find logged models."""
    found, token = call.services.tracker.search_logged_models(
        body.experiment_ids,
        filter=body.filter,
        order=[
            f"{needed(key.field_name, 'field_name')} {'ASC' if key.ascending else 'DESC'}"
            for key in body.order_by
        ],
        limit=check_page(body.max_results, 1_000),
        token=body.page_token,
    )
    return paged("models", [written(one) for one in found], token)


OPERATIONS = (
    Operation("POST", "logged-models", Create, create),
    Operation("POST", "logged-models/search", Search, search, slow=True),
    Operation("GET", "logged-models/{model}", Nothing, get),
    Operation("PATCH", "logged-models/{model}", Change, finalize),
    Operation("DELETE", "logged-models/{model}", Nothing, delete),
    Operation("POST", "logged-models/{model}/params", Change, log_params),
    Operation("PATCH", "logged-models/{model}/tags", Change, set_tags),
    Operation("DELETE", "logged-models/{model}/tags/{key}", Nothing, delete_tag),
)
