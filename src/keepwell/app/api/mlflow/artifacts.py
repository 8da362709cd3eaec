"""MLflow's artifact proxy: uploads stream into blobs, an index maps their paths, downloads stream out."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse, Response

from keepwell.app.api.mlflow.versions import ARTEFACTS, packaged
from keepwell.app.api.mlflow.wire import Body, Call, Operation, Services, answer, needed, refusal
from keepwell.core.errors import InvalidInput, KeepwellError, NotFound, Refused
from keepwell.core.paths import clean_path
from keepwell.core.records.models import ModelVersion
from keepwell.core.standing import what_stands_on

if TYPE_CHECKING:
    from starlette.requests import Request

    from keepwell.core.digest import Digest

IN_MEMORY = 1024 * 1024
"""Bytes up to which an upload is not put on disk before it becomes a blob."""


class Listed(Body):
    """Query of artifacts/list and of the listing of a logged model."""

    run_id: str = ""
    run_uuid: str = ""
    path: str = ""
    artifact_directory_path: str = ""


async def upload(services: Services, call: Call, request: Request) -> Response:
    """Keep the body as a blob, and enter it in the index."""
    path = _writable(call.path["path"])
    digest, size = await _receive(services, request)
    await asyncio.to_thread(
        services.tracker.put_file, path, digest=digest, size=size, now=services.clock.now()
    )
    return answer(None)


async def _receive(services: Services, request: Request) -> tuple[Digest, int]:
    limit = services.limits.artifact
    too_large = InvalidInput(
        f"The file is larger than {limit} bytes.", todo="Raise the limit, or store it elsewhere."
    )
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limit:
        raise too_large
    size = 0
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            spool.write(part)
        spool.seek(0)
        if size <= IN_MEMORY:
            return await asyncio.to_thread(services.blobs.put, spool.read()), size
        return await asyncio.to_thread(_keep_large, services, spool), size


def _keep_large(services: Services, spool: Any) -> Digest:
    with tempfile.NamedTemporaryFile() as named:
        while part := spool.read(IN_MEMORY):
            named.write(part)
        named.flush()
        return services.blobs.put_file(Path(named.name))


async def download(_services: Services, call: Call, _request: Request) -> Response:
    """Stream a file out, after its bytes were checked against its digest."""
    place = await asyncio.to_thread(_find, call, clean_path(call.path["path"]))
    return FileResponse(place, media_type="application/octet-stream")


def _find(call: Call, path: str) -> Path:
    if path.startswith(f"{ARTEFACTS}/"):
        digest, inside = _inside_artefact(path)
        found = packaged(call, digest).files.get(inside)
    else:
        file = call.services.tracker.get_file(path)
        found = file.digest if file else None
    if found is None:
        raise NotFound(f"There is no file {path!r}.")
    return call.services.blobs.path(found)


def _inside_artefact(path: str) -> tuple[Digest, str]:
    parts = path.split("/", 2)
    return "sha256:" + (parts[1] if len(parts) > 1 else ""), parts[2] if len(parts) > 2 else ""


async def listing(call: Call, request: Request) -> Response:
    """List the files and folders directly in a folder."""
    found = await asyncio.to_thread(_list, call, request.query_params.get("path", ""))
    return answer({"files": found})


def _list(call: Call, path: str) -> list[dict[str, Any]]:
    path = clean_path(path) if path.strip("/") else ""
    if path.startswith(f"{ARTEFACTS}/"):
        return _list_artefact(call, path)
    return [
        {"path": name, "is_dir": True}
        if file is None
        else {"path": name, "is_dir": False, "file_size": file.size}
        for name, file in call.services.tracker.list_files(path)
    ]


def _list_artefact(call: Call, path: str) -> list[dict[str, Any]]:
    digest, inside = _inside_artefact(path)
    prefix = inside + "/" if inside else ""
    found: dict[str, dict[str, Any]] = {}
    for name, content in packaged(call, digest).files.items():
        if not name.startswith(prefix):
            continue
        first, deeper, _ = name[len(prefix) :].partition("/")
        if deeper:
            found[first] = {"path": first, "is_dir": True}
        else:
            size = call.services.blobs.path(content).stat().st_size
            found[first] = {"path": first, "is_dir": False, "file_size": size}
    return [found[name] for name in sorted(found)]


async def delete(services: Services, call: Call, _request: Request) -> Response:
    """Take files out of the index, unless a version that must stay was made from their run."""
    path = _writable(call.path["path"])
    await asyncio.to_thread(_delete, services, path)
    return answer(None)


def _delete(services: Services, path: str) -> None:
    for run in _runs_of(services, path):
        for version in services.store.find(ModelVersion, {"run": run}):
            standing = what_stands_on(version, services.store)
            if standing:
                raise Refused(
                    f"The files of run {run} cannot be deleted: {version.label()} was made from "
                    f"it, and on that stand {', '.join(standing)}.",
                    where=path,
                    todo="Move the alias or the traffic to another version first.",
                )
    if not services.tracker.remove_files(path):
        raise NotFound(f"There is no file or folder {path!r}.")


def _runs_of(services: Services, path: str) -> list[str]:
    """Name the runs whose files lie at or below a path, whole experiments included."""
    parts = path.split("/")
    if len(parts) == 1 or parts[1:] == ["models"]:
        below = services.tracker.files_under(path)
        owners = {"/".join(file.path.split("/")[:3]) for file in below}
        return sorted({run for owner in owners for run in _runs_of(services, owner)})
    if parts[1] != "models":
        return [parts[1]]
    return [services.tracker.get_logged_model(parts[2]).run]


def _writable(path: str) -> str:
    path = clean_path(path)
    if path.split("/")[0] == ARTEFACTS:
        raise Refused("Packaged artefacts never change.", where=path)
    return path


def list_run(call: Call, body: Listed) -> dict[str, Any]:
    """List a run's files, named from the run's root."""
    run = call.services.tracker.run(needed(body.run_id or body.run_uuid, "run_id"))
    return _listed(call, run.artifacts, body.path)


def list_logged(call: Call, body: Listed) -> dict[str, Any]:
    """List a logged model's files, named from the model's root."""
    model = call.services.tracker.get_logged_model(call.path["model"])
    return _listed(call, model.artifacts, body.artifact_directory_path)


def _listed(call: Call, root: str, path: str) -> dict[str, Any]:
    inside = clean_path(path) if path.strip("/") else ""
    folder = root.removeprefix("mlflow-artifacts:/") + (f"/{inside}" if inside else "")
    files = [
        one | {"path": f"{inside}/{one['path']}" if inside else one["path"]}
        for one in _list(call, folder)
    ]
    return {"root_uri": root, "files": files}


OPERATIONS = (
    Operation("GET", "artifacts/list", Listed, list_run, slow=True),
    Operation("GET", "logged-models/{model}/artifacts/directories", Listed, list_logged, slow=True),
)


async def guarded(services: Services, call: Call, request: Request) -> Response:
    """Do what the method asks of one path."""
    work = {"GET": download, "HEAD": download, "PUT": upload, "DELETE": delete}[request.method]
    try:
        return await work(services, call, request)
    except KeepwellError as problem:
        return refusal(problem)


async def guarded_listing(call: Call, request: Request) -> Response:
    """List, and turn what is raised into MLflow's errors."""
    try:
        return await listing(call, request)
    except KeepwellError as problem:
        return refusal(problem)
