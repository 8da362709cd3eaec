"""MLflow's REST API over Keepwell's tracking and registry: what an unmodified MLflow client talks to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from keepwell.app.api.mlflow import (
    artifacts,
    experiments,
    logged,
    metrics,
    models,
    runs,
    versions,
)
from keepwell.app.api.mlflow.batching import GroupCommit
from keepwell.app.api.mlflow.wire import Call, Limits, Operation, Services, answer, error, perform

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from keepwell.core.clock import Clock
    from keepwell.core.ports.blobs import Blobs
    from keepwell.core.ports.store import Store
    from keepwell.core.ports.tracking import TrackingStore

__all__ = ["OPERATIONS", "SPEAKS", "Limits", "routes"]

SPEAKS = "3.17.2"
"""The newest MLflow whose client is tested against this server."""
OPERATIONS: tuple[Operation, ...] = (
    *experiments.OPERATIONS,
    *runs.OPERATIONS,
    *metrics.OPERATIONS,
    *models.OPERATIONS,
    *versions.OPERATIONS,
    *logged.OPERATIONS,
    *artifacts.OPERATIONS,
)
_SERVER = {
    "store_type": "SqlStore",
    "workspaces_enabled": False,
    "trace_archival_enabled": False,
    "multipart_uploads_enabled": False,
    "multipart_downloads_enabled": False,
}


def _client(_request: Request) -> str:
    return "tracking client"


def routes(
    tracker: TrackingStore,
    store: Store,
    blobs: Blobs,
    clock: Clock,
    *,
    limits: Limits | None = None,
    actor: Callable[[Request], str] = _client,
) -> list[Route]:
    """Give the routes to mount at ``/``. ``actor`` names who calls, for the audit trail."""
    services = Services(
        tracker=tracker,
        store=store,
        blobs=blobs,
        clock=clock,
        limits=limits or Limits(),
        commits=GroupCommit(tracker),
        actor=actor,
    )
    # One route and a dictionary: a route an operation would cost a regular expression each.
    plain = {(one.method, one.path): one for one in OPERATIONS if "{" not in one.path}
    patterns = [
        (one, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", one.path)))
        for one in OPERATIONS
        if "{" in one.path
    ]

    async def operate(request: Request) -> Response:
        path = request.path_params["path"]
        operation = plain.get((request.method, path))
        parts: dict[str, str] = {}
        if operation is None:
            for one, pattern in patterns:
                fitting = pattern.fullmatch(path)
                if fitting and one.method == request.method:
                    operation, parts = one, fitting.groupdict()
                    break
        if operation is None:
            return error(
                "ENDPOINT_NOT_FOUND", f"There is no operation {request.method} {path}.", 404
            )
        return await perform(services, operation, parts, request)

    async def file(request: Request) -> Response:
        call = Call(services, dict(request.path_params), actor(request))
        return await artifacts.guarded(services, call, request)

    async def files(request: Request) -> Response:
        call = Call(services, {}, actor(request))
        return await artifacts.guarded_listing(call, request)

    async def server(_request: Request) -> Response:
        return answer(_SERVER)

    async def version(_request: Request) -> Response:
        return PlainTextResponse(SPEAKS)

    async def health(_request: Request) -> Response:
        return PlainTextResponse("OK")

    every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    found = []
    for prefix in ("/api/2.0", "/api/3.0"):
        root = f"{prefix}/mlflow-artifacts/artifacts"
        found += [
            Route(f"{prefix}/mlflow/server-info", server),
            Route(f"{prefix}/mlflow/{{path:path}}", operate, methods=every),
            Route(root, files),
            Route(f"{root}/{{path:path}}", file, methods=["GET", "PUT", "DELETE"]),
        ]
    return [*found, Route("/version", version), Route("/health", health)]
