"""The control server: tracking API, control API and dashboard in one application."""

from __future__ import annotations

from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request

from keepwell.app.api.control import routes as control_routes
from keepwell.app.api.metrics import routes as metrics_routes
from keepwell.app.api.mlflow import routes as tracking_routes
from keepwell.app.web.pages import Pages
from keepwell.app.web.pages import routes as page_routes
from keepwell.app.wiring import State
from keepwell.core.errors import KeepwellError
from keepwell.lifecycle.tokens import user_of


def tracking_actor(state: State, request: Request) -> str:
    """Name who tracks: the user of a token, or 'tracking client'. Raises Refused for a token that does not hold."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return "tracking client"
    return user_of(token.strip(), store=state.store, now=state.clock.now())


def application(state: State) -> Starlette:
    """Make the application of a project."""
    return Starlette(
        routes=[
            *tracking_routes(
                state.tracker,
                state.store,
                state.blobs,
                state.clock,
                actor=partial(tracking_actor, state),
            ),
            *control_routes(state),
            *metrics_routes(state),
            *page_routes(state),
        ],
        exception_handlers={KeepwellError: Pages(state).trouble},
    )
