"""``keepwell activate``: the seven steps that put a released version before users."""

from __future__ import annotations

import argparse

from keepwell.app.cli.common import actor, project_state, version_named, wait_for
from keepwell.app.cli.plans import show_change
from keepwell.app.cli.steps import show_procedure
from keepwell.app.wiring import State
from keepwell.core.admission import standing_approvals
from keepwell.core.records.lifecycle import Activation
from keepwell.core.records.models import ModelVersion
from keepwell.lifecycle.activation import course_of, start_activation
from keepwell.lifecycle.roles import require


def run(given: argparse.Namespace) -> int:
    """Start the activation, and show it once it waits or has ended."""
    state = project_state(given)
    version = version_named(state, given.version)
    who = actor(given, state)
    if given.dry_run:
        return _dry_run(state, version, who, given)
    activation = start_activation(state.context, version, actor=who, strategy=given.strategy)

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


def _dry_run(state: State, version: ModelVersion, who: str, given: argparse.Namespace) -> int:
    require(who, "activate", store=state.store)
    endpoint, strategy = course_of(state.context, state.store, version, strategy=given.strategy)
    held, _ = standing_approvals(
        version,
        store=state.store,
        blobs=state.blobs,
        verifier=state.verifier,
        now=state.clock.now(),
    )
    needed = state.settings.policy.approvals
    found = state.rollouts.preview(endpoint=endpoint, version=version, strategy=strategy)
    return show_change(
        f"{version.label()} would be activated at {endpoint} by {strategy}",
        found.before,
        found.after,
        as_json=given.json,
        forecast=found.forecast,
        approvals=f"{len(held)} of {needed}",
    )
