"""``keepwell release``: the seven steps of a release, with what each found."""

from __future__ import annotations

import argparse

from keepwell.app.cli.common import actor, project_state, version_named, wait_for
from keepwell.app.cli.steps import show_procedure
from keepwell.core.records.lifecycle import Release
from keepwell.lifecycle.release import start_release


def run(given: argparse.Namespace) -> int:
    """Start the release, wait for its verdict, and show it."""
    state = project_state(given)
    version = version_named(state, given.version)
    release = start_release(state.context, version, actor=actor(given, state))

    def look() -> tuple[bool, str]:
        current = state.store.get(Release, release.id) or release
        return current.state in {
            "passed",
            "failed",
        }, f"release {version.label()}: {current.step or 'queued'}"

    wait_for(state, look, quiet=given.json)
    return show_procedure(
        state, state.store.get(Release, release.id) or release, as_json=given.json
    )
