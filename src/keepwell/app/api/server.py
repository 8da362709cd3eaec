"""The control server: tracking API, control API and dashboard in one application."""

from __future__ import annotations

from starlette.applications import Starlette

from keepwell.app.api.mlflow import routes as tracking_routes
from keepwell.app.wiring import State


def application(state: State) -> Starlette:
    """Make the application of a project."""
    return Starlette(
        routes=[*tracking_routes(state.tracker, state.store, state.blobs, state.clock)]
    )
