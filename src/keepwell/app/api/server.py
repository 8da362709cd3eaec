"""The control server: tracking API, control API and dashboard in one application."""

from __future__ import annotations

from starlette.applications import Starlette

from keepwell.app.api.control import routes as control_routes
from keepwell.app.api.mlflow import routes as tracking_routes
from keepwell.app.web.pages import Pages
from keepwell.app.web.pages import routes as page_routes
from keepwell.app.wiring import State
from keepwell.core.errors import KeepwellError


def application(state: State) -> Starlette:
    """Make the application of a project."""
    return Starlette(
        routes=[
            *tracking_routes(state.tracker, state.store, state.blobs, state.clock),
            *control_routes(state),
            *page_routes(state),
        ],
        exception_handlers={KeepwellError: Pages(state).trouble},
    )
