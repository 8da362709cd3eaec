"""MLflow's model versions: Keepwell's ModelVersion records over the client's uploaded files, audited."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from keepwell.app.api.mlflow.listing import page_of
from keepwell.app.api.mlflow.wire import (
    Body,
    Call,
    Operation,
    Pair,
    Searching,
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
from keepwell.core.digest import Digest, canonical
from keepwell.core.errors import InvalidInput, NotFound
from keepwell.core.paths import clean_path
from keepwell.core.records.models import Alias, Artefact, Model, ModelVersion
from keepwell.core.standing import may_delete

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepwell.core.ports.store import Reader

ARTEFACTS = "artefacts"
"""First part of the read-only paths under which packaged artefacts are downloaded, by digest."""
COLUMNS = {
    "name": "model",
    "version_number": "version",
    "version": "version",
    "run_id": "run",
    "source_path": "source",
    "creation_timestamp": "created",
    "last_updated_timestamp": "updated",
}


def the_version(name: str, version: str, store: Reader) -> ModelVersion:
    """Give a version. Raises NotFound, InvalidInput."""
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise InvalidInput(f"The version {version!r} is not a number.", todo="Give it as '1'.")
    found = store.get(ModelVersion, needed(name, "name"), int(version))
    if found is None:
        raise NotFound(f"The model {name!r} has no version {version}.")
    return found


def newest(model: str, store: Reader) -> ModelVersion | None:
    """Give the version with the highest number, if there is one."""
    found = store.find(ModelVersion, {"model": model}, order=["-version"], limit=1)
    return found[0] if found else None


def written_version(version: ModelVersion, aliases: Sequence[Alias]) -> dict[str, Any]:
    """Write a version as MLflow does; Keepwell's state is shown as a tag."""
    return {
        "name": version.model,
        "version": str(version.version),
        "creation_timestamp": milliseconds(version.created),
        "last_updated_timestamp": milliseconds(version.updated),
        "user_id": version.author,
        "current_stage": "None",
        "description": version.description,
        "source": version.source or _address(version.artefact),
        "run_id": version.run,
        "status": "READY",
        "tags": pairs({**version.tags, "keepwell.state": version.state}),
        "aliases": [one.alias for one in aliases if one.version == version.version],
    }


def _address(artefact: Digest) -> str:
    return f"mlflow-artifacts:/{ARTEFACTS}/{artefact.removeprefix('sha256:')}"


class Create(Body):
    """Body of model-versions/create."""

    name: str = ""
    source: str = ""
    run_id: str = ""
    tags: tuple[Pair, ...] = ()
    description: str = ""
    model_id: str = ""


class One(Body):
    """Body of what takes a version."""

    name: str = ""
    version: str = ""


class Update(One):
    """Body of model-versions/update."""

    description: str = ""


class Tag(One):
    """Body of version tags."""

    key: str = ""
    value: str = ""


class Stage(One):
    """Body of model-versions/transition-stage."""

    stage: str = ""


class Search(Searching):
    """Query of model-versions/search."""

    max_results: int = 10_000


def _folder(call: Call, source: str) -> tuple[str, str]:
    """Give the uploaded folder that a source names, and the run it came from."""
    tracker = call.services.tracker
    logged = re.fullmatch(r"models:/+(m-[0-9a-f]{32})/?", source)
    if logged:
        model = tracker.get_logged_model(logged[1])
        return model.artifacts, model.run
    of_run = re.fullmatch(r"runs:/+([0-9a-f]{32})/(.+)", source)
    if of_run:
        run = tracker.run(of_run[1])
        return f"{run.artifacts}/{of_run[2]}", run.id
    uploaded = re.fullmatch(r"mlflow-artifacts:/(?:/[^/]*/)?(.+)", source)
    if uploaded:
        parts = uploaded[1].strip("/").split("/")
        return source, parts[1] if len(parts) > 1 and re.fullmatch("[0-9a-f]{32}", parts[1]) else ""
    raise InvalidInput(
        f"The source {source[:300]!r} is outside of Keepwell.",
        todo="Log the model to this server first, and register what was logged.",
    )


def _artefact(call: Call, source: str) -> tuple[Digest, str]:
    """Give the artefact that a source names, written from blobs that are there, and its run."""
    store = call.services.store
    registered = re.fullmatch(r"models:/+([^/@]+)/(\d+)", source)
    if registered:
        version = the_version(registered[1], registered[2], store)
        return version.artefact, version.run
    address, run = _folder(call, source)
    path = clean_path(re.sub(r"^mlflow-artifacts:/(?:/[^/]*/)?", "", address))
    if path.startswith(f"{ARTEFACTS}/"):
        digest = "sha256:" + path.split("/")[1]
        packaged(call, digest)
        return digest, run
    files = call.services.tracker.files_under(path)
    if not files:
        raise InvalidInput(
            f"No file was uploaded under {source[:300]!r}.", todo="Upload the model first."
        )
    contents = {file.path[len(path) + 1 :]: file.digest for file in files}
    return call.services.blobs.put(canonical(Artefact(files=contents))), run


def packaged(call: Call, digest: Digest) -> Artefact:
    """Read an artefact's manifest. Raises NotFound if the digest names none."""
    try:
        return msgspec.json.decode(call.services.blobs.get(digest), type=Artefact)
    except msgspec.DecodeError as error:
        raise NotFound(f"{digest} is not a packaged artefact.") from error


def create(call: Call, body: Create) -> dict[str, Any]:
    """Register what was uploaded as the model's next version."""
    now = call.services.clock.now()
    source = needed(body.source, "source")
    artefact, run = _artefact(call, source)
    run = body.run_id or run
    author = call.actor
    if run:
        try:
            author = call.services.tracker.run(run).user or author
        except NotFound:
            # A run of another server may be named; it is only remembered.
            author = call.actor
    with call.services.store.transaction(actor=call.actor) as work:
        model = work.get(Model, needed(body.name, "name"))
        if model is None:
            raise NotFound(f"There is no registered model {body.name!r}.")
        made = ModelVersion(
            model=model.name,
            version=model.latest + 1,
            artefact=artefact,
            run=run,
            author=author,
            source=source,
            description=check_text(body.description, "The description", 100_000),
            tags=unpair(body.tags),
            created=now,
            updated=now,
        )
        work.replace(
            msgspec.structs.replace(
                model, latest=made.version, updated=now, revision=model.revision + 1
            ),
            reason=f"version {made.version}",
        )
        work.add(made, reason="registered by a tracking client")
    return {"model_version": written_version(made, ())}


def get(call: Call, body: One) -> dict[str, Any]:
    """Give a version."""
    store = call.services.store
    version = the_version(body.name, body.version, store)
    return {"model_version": written_version(version, store.find(Alias, {"model": version.model}))}


def _change(call: Call, body: One, reason: str, **changes: object) -> dict[str, Any]:
    store = call.services.store
    with store.transaction(actor=call.actor) as work:
        version = the_version(body.name, body.version, work)
        changed = msgspec.structs.replace(
            version, updated=call.services.clock.now(), revision=version.revision + 1, **changes
        )
        work.replace(changed, reason=reason)
    return {"model_version": written_version(changed, store.find(Alias, {"model": body.name}))}


def update(call: Call, body: Update) -> dict[str, Any]:
    """Describe a version."""
    description = check_text(body.description, "The description", 100_000)
    return _change(call, body, "described", description=description)


def set_tag(call: Call, body: Tag) -> None:
    """Set a tag."""
    tags = the_version(body.name, body.version, call.services.store).tags
    _change(call, body, f"tag {body.key}", tags=tagged(tags, body.key, body.value))


def delete_tag(call: Call, body: Tag) -> None:
    """Remove a tag."""
    tags = the_version(body.name, body.version, call.services.store).tags
    _change(call, body, f"tag {body.key} removed", tags=untagged(tags, body.key))


def delete(call: Call, body: One) -> None:
    """Delete a version, unless something stands on it."""
    with call.services.store.transaction(actor=call.actor) as work:
        version = the_version(body.name, body.version, work)
        may_delete(version, work)
        work.remove(
            ModelVersion, version.model, version.version, reason="deleted by a tracking client"
        )


def download_uri(call: Call, body: One) -> dict[str, Any]:
    """Say where the version's own files are: by digest, so that later uploads cannot change them."""
    version = the_version(body.name, body.version, call.services.store)
    return {"artifact_uri": _address(version.artefact)}


def transition(call: Call, body: Stage) -> None:
    """Refuse stages, and say what there is instead."""
    the_version(body.name, body.version, call.services.store)
    raise InvalidInput(
        f"Versions have no stages here, so none becomes {body.stage!r}.",
        todo="Set an alias, or release and activate the version.",
    )


def search(call: Call, body: Search) -> dict[str, Any]:
    """Find versions."""
    store = call.services.store
    found, token = page_of(
        ModelVersion,
        store,
        columns=COLUMNS,
        filter=body.filter,
        order=body.order_by or ("last_updated_timestamp DESC", "name ASC", "version_number DESC"),
        limit=check_page(body.max_results, 200_000),
        token=body.page_token,
    )
    aliases: dict[str, list[Alias]] = {}
    for name in {one.model for one in found}:
        aliases[name] = store.find(Alias, {"model": name})
    return paged(
        "model_versions", [written_version(one, aliases[one.model]) for one in found], token
    )


OPERATIONS = (
    Operation("POST", "model-versions/create", Create, create),
    Operation("GET", "model-versions/get", One, get),
    Operation("PATCH", "model-versions/update", Update, update),
    Operation("DELETE", "model-versions/delete", One, delete),
    Operation("POST", "model-versions/set-tag", Tag, set_tag),
    Operation("DELETE", "model-versions/delete-tag", Tag, delete_tag),
    Operation("GET", "model-versions/get-download-uri", One, download_uri),
    Operation("POST", "model-versions/transition-stage", Stage, transition),
    Operation("GET", "model-versions/search", Search, search, slow=True),
)
