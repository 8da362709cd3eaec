"""``keepwell train``: durable training of a model's candidates."""

from __future__ import annotations

import argparse
import secrets
import sys

from keepwell.app.cli.common import actor, failed_work, print_json, project_state, table, wait_for
from keepwell.core.clock import moment
from keepwell.core.errors import InvalidInput, near_miss
from keepwell.core.records.lifecycle import Release
from keepwell.core.records.work import Work
from keepwell.lifecycle.training import start_training, training_work, versions_of


def run(given: argparse.Namespace) -> int:
    """Train, wait, and show the versions."""
    state = project_state(given)
    names = sorted(state.project.models)
    if not names:
        raise InvalidInput(
            "It declares no model.",
            where=f"{state.settings.project.module}.py",
            todo="Declare one with keepwell.model(...); 'keepwell init' makes an example.",
        )
    if not given.model and len(names) != 1:
        raise InvalidInput("The project has several models; name one.", todo=near_miss("", names))
    model = state.project.model(given.model or names[0])
    now = state.clock.now()
    until = moment(given.until) if given.until else now
    who = actor(given, state)
    work = start_training(
        state.project,
        training_work(
            id=f"train-{model.name}-{secrets.token_hex(4)}",
            model=model.name,
            candidates=tuple(given.candidate) or tuple(model.candidates),
            since=moment(given.since) if given.since else None,
            until=until,
            as_of=until,
            seed=given.seed,
            author=who,
            now=now,
            release=given.release,
        ),
        actor=who,
        store=state.store,
    )

    def look() -> tuple[bool, str]:
        current = state.store.get(Work, work.id) or work
        if current.state == "failed":
            raise failed_work(current)
        over = current.state == "done"
        releases = [
            release
            for version in (versions_of(work, store=state.store) if over and given.release else [])
            for release in state.store.find(
                Release, {"model": version.model, "version": version.version}
            )
        ]
        running = [r for r in releases if r.state == "running"]
        progress = f"train: {current.progress or current.state}"
        if running:
            progress = f"release {running[0].model}/{running[0].version}: {running[0].step}"
        return over and not running, progress

    wait_for(state, look, quiet=given.json)
    versions = versions_of(work, store=state.store)
    if given.json:
        print_json(versions)
        return 0
    rows = [(v.label(), v.candidate, v.state, v.reason[:100]) for v in versions]
    sys.stdout.write(table(rows, ("version", "candidate", "state", "reason")) + "\n")
    if not given.release:
        sys.stdout.write(f"\nnext: keepwell release {versions[-1].label()}\n")
    return 0
