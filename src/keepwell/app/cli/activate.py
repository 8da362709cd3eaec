"""``keepwell activate``: the seven steps that put a released version before users."""

from __future__ import annotations

import argparse

from keepwell.app.cli.common import actor, project_state, version_named, wait_for
from keepwell.app.cli.steps import show_procedure
from keepwell.core.records.lifecycle import Activation
from keepwell.lifecycle.activation import start_activation


def run(given: argparse.Namespace) -> int:
    """Start the activation, and show it once it waits or has ended."""
    state = project_state(given)
    version = version_named(state, given.version)
    activation = start_activation(
        state.context, version, actor=actor(given), strategy=given.strategy
    )

    def look() -> tuple[bool, str]:
        current = state.store.get(Activation, activation.id) or activation
        return (
            current.state != "running",
            f"activation {version.label()}: {current.step or 'queued'}",
        )

    wait_for(state, look, quiet=given.json)
    return show_procedure(
        state, state.store.get(Activation, activation.id) or activation, as_json=given.json
    )
