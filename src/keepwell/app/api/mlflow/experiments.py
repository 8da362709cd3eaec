"""MLflow's experiment operations."""

from __future__ import annotations

from typing import Any

from keepwell.app.api.mlflow.wire import (
    Body,
    Call,
    Operation,
    Pair,
    Searching,
    check_key,
    check_page,
    check_text,
    milliseconds,
    needed,
    paged,
    pairs,
    unpair,
)
from keepwell.core.errors import InvalidInput, NotFound
from keepwell.core.records.tracking import Experiment, Stage

STAGES: dict[str, Stage | None] = {
    "ACTIVE_ONLY": "active",
    "DELETED_ONLY": "deleted",
    "ALL": None,
    "1": "active",
    "2": "deleted",
    "3": None,
}


def stage_of(view: str) -> Stage | None:
    """Read a view type. Raises InvalidInput."""
    if view not in STAGES:
        raise InvalidInput(
            f"The view type {view!r} is unknown.", todo="Use ACTIVE_ONLY, DELETED_ONLY or ALL."
        )
    return STAGES[view]


def written(experiment: Experiment) -> dict[str, Any]:
    """Write an experiment as MLflow does."""
    return {
        "experiment_id": experiment.id,
        "name": experiment.name,
        "artifact_location": experiment.artifacts,
        "lifecycle_stage": experiment.stage,
        "creation_time": milliseconds(experiment.created),
        "last_update_time": milliseconds(experiment.updated),
        "tags": pairs(experiment.tags),
    }


class Create(Body):
    """Body of experiments/create."""

    name: str = ""
    artifact_location: str = ""
    tags: tuple[Pair, ...] = ()


class Named(Body):
    """Body of experiments/get-by-name."""

    experiment_name: str = ""


class One(Body):
    """Body of what takes an experiment."""

    experiment_id: str = ""


class Update(One):
    """Body of experiments/update."""

    new_name: str = ""


class Tag(One):
    """Body of experiment tags."""

    key: str = ""
    value: str = ""


class Search(Searching):
    """Body of experiments/search."""

    max_results: int = 1000
    view_type: str = "ACTIVE_ONLY"


def create(call: Call, body: Create) -> dict[str, Any]:
    """Make an experiment."""
    place = body.artifact_location
    if place and not place.startswith("mlflow-artifacts:"):
        raise InvalidInput(
            f"The artifact location {place[:200]!r} is outside of Keepwell.",
            todo="Leave it out: Keepwell keeps the files itself.",
        )
    made = call.services.tracker.create_experiment(
        check_text(needed(body.name, "name"), "The name", 500),
        tags=unpair(body.tags),
        now=call.services.clock.now(),
    )
    return {"experiment_id": made.id}


def get(call: Call, body: One) -> dict[str, Any]:
    """Give an experiment by id."""
    found = call.services.tracker.get_experiment(needed(body.experiment_id, "experiment_id"))
    return {"experiment": written(found)}


def get_by_name(call: Call, body: Named) -> dict[str, Any]:
    """Give an experiment by name."""
    name = needed(body.experiment_name, "experiment_name")
    found = call.services.tracker.find_experiment(name)
    if found is None:
        raise NotFound(f"There is no experiment {name!r}.")
    return {"experiment": written(found)}


def delete(call: Call, body: One) -> None:
    """Mark an experiment and its runs as deleted."""
    call.services.tracker.update_experiment(
        body.experiment_id, stage="deleted", now=call.services.clock.now()
    )


def restore(call: Call, body: One) -> None:
    """Take a deletion back."""
    call.services.tracker.update_experiment(
        body.experiment_id, stage="active", now=call.services.clock.now()
    )


def update(call: Call, body: Update) -> None:
    """Rename an experiment."""
    call.services.tracker.update_experiment(
        body.experiment_id,
        name=check_text(needed(body.new_name, "new_name"), "The name", 500),
        now=call.services.clock.now(),
    )


def set_tag(call: Call, body: Tag) -> None:
    """Set a tag."""
    call.services.tracker.tag_experiment(
        body.experiment_id,
        check_key(body.key),
        check_text(body.value, "The tag", 20_000),
        now=call.services.clock.now(),
    )


def delete_tag(call: Call, body: Tag) -> None:
    """Remove a tag."""
    call.services.tracker.tag_experiment(
        body.experiment_id, check_key(body.key), None, now=call.services.clock.now()
    )


def search(call: Call, body: Search) -> dict[str, Any]:
    """Find experiments."""
    found, token = call.services.tracker.search_experiments(
        filter=body.filter,
        order=body.order_by,
        stage=stage_of(body.view_type),
        limit=check_page(body.max_results, 50_000),
        token=body.page_token,
    )
    return paged("experiments", [written(one) for one in found], token)


OPERATIONS = (
    Operation("POST", "experiments/create", Create, create),
    Operation("GET", "experiments/get", One, get),
    Operation("GET", "experiments/get-by-name", Named, get_by_name),
    Operation("POST", "experiments/delete", One, delete),
    Operation("POST", "experiments/restore", One, restore),
    Operation("POST", "experiments/update", Update, update),
    Operation("POST", "experiments/set-experiment-tag", Tag, set_tag),
    Operation("POST", "experiments/delete-experiment-tag", Tag, delete_tag),
    Operation("POST", "experiments/search", Search, search, slow=True),
    Operation("GET", "experiments/search", Search, search, slow=True),
)
