"""MLflow's registered models: the same Model and Alias records that Keepwell's own rooms read, audited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from keepwell.app.api.mlflow.listing import page_of
from keepwell.app.api.mlflow.versions import newest, the_version, written_version
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
    tagged,
    unpair,
    untagged,
)
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Refused
from keepwell.core.records.lifecycle import Release
from keepwell.core.records.models import Alias, Model, ModelVersion
from keepwell.core.standing import may_delete_model

if TYPE_CHECKING:
    from keepwell.core.ports.store import Reader

COLUMNS = {
    "name": "name",
    "creation_timestamp": "created",
    "timestamp": "created",
    "last_updated_timestamp": "updated",
}


def the_model(name: str, store: Reader) -> Model:
    """Give a model. Raises NotFound."""
    found = store.get(Model, needed(name, "name"))
    if found is None:
        raise NotFound(f"There is no registered model {name!r}.")
    return found


def written(model: Model, store: Reader) -> dict[str, Any]:
    """Write a registered model as MLflow does."""
    aliases = store.find(Alias, {"model": model.name})
    latest = newest(model.name, store)
    return {
        "name": model.name,
        "creation_timestamp": milliseconds(model.created),
        "last_updated_timestamp": milliseconds(model.updated),
        "description": model.description,
        "latest_versions": [written_version(latest, aliases)] if latest else [],
        "tags": pairs(model.tags),
        "aliases": [{"alias": one.alias, "version": str(one.version)} for one in aliases],
    }


class Create(Body):
    """Body of registered-models/create."""

    name: str = ""
    tags: tuple[Pair, ...] = ()
    description: str = ""


class One(Body):
    """Body of what takes a registered model."""

    name: str = ""


class Rename(One):
    """Body of registered-models/rename."""

    new_name: str = ""


class Update(One):
    """Body of registered-models/update."""

    description: str = ""


class Tag(One):
    """Body of registered model tags."""

    key: str = ""
    value: str = ""


class GivenAlias(One):
    """Body of aliases."""

    alias: str = ""
    version: str = ""


class Search(Searching):
    """Query of registered-models/search."""

    max_results: int = 100


class Latest(One):
    """Body of registered-models/get-latest-versions."""

    stages: tuple[str, ...] = ()


def check_name(name: str) -> str:
    """Refuse a name that cannot be part of an address. Raises InvalidInput."""
    check_text(needed(name, "name"), "The name", 250)
    if "/" in name or ":" in name:
        raise InvalidInput(f"The name {name!r} holds '/' or ':'.", todo="Take a name without them.")
    return name


def create(call: Call, body: Create) -> dict[str, Any]:
    """Register a name."""
    now = call.services.clock.now()
    made = Model(
        name=check_name(body.name),
        description=body.description,
        tags=unpair(body.tags),
        created=now,
        updated=now,
    )
    with call.services.store.transaction(actor=call.actor) as work:
        if work.get(Model, made.name) is not None:
            raise Conflict(
                f"There is a registered model {made.name!r} already.", todo="Take another name."
            )
        work.add(made, reason="created by a tracking client")
    return {"registered_model": written(made, call.services.store)}


def get(call: Call, body: One) -> dict[str, Any]:
    """Give a registered model."""
    store = call.services.store
    return {"registered_model": written(the_model(body.name, store), store)}


def change(call: Call, name: str, reason: str, **changes: object) -> Model:
    """Replace a model's record with these fields changed."""
    with call.services.store.transaction(actor=call.actor) as work:
        model = the_model(name, work)
        changed = msgspec.structs.replace(
            model, updated=call.services.clock.now(), revision=model.revision + 1, **changes
        )
        work.replace(changed, reason=reason)
    return changed


def update(call: Call, body: Update) -> dict[str, Any]:
    """Describe a registered model."""
    description = check_text(body.description, "The description", 100_000)
    changed = change(call, body.name, "described", description=description)
    return {"registered_model": written(changed, call.services.store)}


def rename(call: Call, body: Rename) -> dict[str, Any]:
    """Rename a registered model that nothing stands on and no evidence names."""
    name = check_name(body.new_name)
    reason = f"renamed from {body.name} to {name}"
    with call.services.store.transaction(actor=call.actor) as work:
        model = the_model(body.name, work)
        if work.get(Model, name) is not None:
            raise Conflict(f"There is a registered model {name!r} already.")
        may_delete_model(model, work)
        if work.count(Release, {"model": model.name}):
            raise Refused(
                "Its releases and their signed evidence name it, so it keeps its name.",
                where=f"model {model.name!r}",
                todo="Register the version under another name instead.",
            )
        changed = msgspec.structs.replace(
            model, name=name, updated=call.services.clock.now(), revision=1
        )
        work.add(changed, reason=reason)
        for version in work.find(ModelVersion, {"model": model.name}):
            work.add(msgspec.structs.replace(version, model=name, revision=1), reason=reason)
            work.remove(ModelVersion, model.name, version.version, reason=reason)
        work.remove(Model, model.name, reason=reason)
    return {"registered_model": written(changed, call.services.store)}


def delete(call: Call, body: One) -> None:
    """Delete a registered model and its versions, unless something stands on one."""
    with call.services.store.transaction(actor=call.actor) as work:
        model = the_model(body.name, work)
        may_delete_model(model, work)
        for version in work.find(ModelVersion, {"model": model.name}):
            work.remove(ModelVersion, model.name, version.version, reason="its model was deleted")
        work.remove(Model, model.name, reason="deleted by a tracking client")


def set_tag(call: Call, body: Tag) -> None:
    """Set a tag."""
    tags = the_model(body.name, call.services.store).tags
    change(call, body.name, f"tag {body.key}", tags=tagged(tags, body.key, body.value))


def delete_tag(call: Call, body: Tag) -> None:
    """Remove a tag."""
    tags = the_model(body.name, call.services.store).tags
    change(call, body.name, f"tag {body.key} removed", tags=untagged(tags, body.key))


def set_alias(call: Call, body: GivenAlias) -> None:
    """Point an alias to a version."""
    alias = check_key(needed(body.alias, "alias"))
    with call.services.store.transaction(actor=call.actor) as work:
        version = the_version(body.name, body.version, work)
        before = work.get(Alias, version.model, alias)
        new = Alias(
            model=version.model,
            alias=alias,
            version=version.version,
            revision=before.revision + 1 if before else 1,
        )
        if before is None:
            work.add(new, reason="alias set by a tracking client")
        elif before.version != new.version:
            work.replace(new, reason="alias moved by a tracking client")


def delete_alias(call: Call, body: GivenAlias) -> None:
    """Remove an alias; one that is not there is no error."""
    with call.services.store.transaction(actor=call.actor) as work:
        the_model(body.name, work)
        if work.get(Alias, body.name, needed(body.alias, "alias")) is not None:
            work.remove(Alias, body.name, body.alias, reason="alias removed by a tracking client")


def by_alias(call: Call, body: GivenAlias) -> dict[str, Any]:
    """Give the version behind an alias."""
    store = call.services.store
    model = the_model(body.name, store)
    alias = store.get(Alias, model.name, needed(body.alias, "alias"))
    if alias is None:
        raise NotFound(f"The model {model.name!r} has no alias {body.alias!r}.")
    version = the_version(model.name, str(alias.version), store)
    return {"model_version": written_version(version, store.find(Alias, {"model": model.name}))}


def search(call: Call, body: Search) -> dict[str, Any]:
    """Find registered models."""
    store = call.services.store
    found, token = page_of(
        Model,
        store,
        columns=COLUMNS,
        filter=body.filter,
        order=body.order_by or ("name ASC",),
        limit=check_page(body.max_results, 1_000),
        token=body.page_token,
    )
    return paged("registered_models", [written(one, store) for one in found], token)


def latest_versions(call: Call, body: Latest) -> dict[str, Any]:
    """Give the newest version; stages are not kept, so there is one."""
    store = call.services.store
    latest = newest(the_model(body.name, store).name, store)
    wanted = not body.stages or "None" in body.stages or "none" in body.stages
    aliases = store.find(Alias, {"model": body.name})
    return {"model_versions": [written_version(latest, aliases)] if latest and wanted else []}


OPERATIONS = (
    Operation("POST", "registered-models/create", Create, create),
    Operation("GET", "registered-models/get", One, get),
    Operation("PATCH", "registered-models/update", Update, update),
    Operation("POST", "registered-models/rename", Rename, rename),
    Operation("DELETE", "registered-models/delete", One, delete),
    Operation("POST", "registered-models/set-tag", Tag, set_tag),
    Operation("DELETE", "registered-models/delete-tag", Tag, delete_tag),
    Operation("POST", "registered-models/alias", GivenAlias, set_alias),
    Operation("DELETE", "registered-models/alias", GivenAlias, delete_alias),
    Operation("GET", "registered-models/alias", GivenAlias, by_alias),
    Operation("GET", "registered-models/search", Search, search, slow=True),
    Operation("POST", "registered-models/get-latest-versions", Latest, latest_versions),
    Operation("GET", "registered-models/get-latest-versions", Latest, latest_versions),
)
