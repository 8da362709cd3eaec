"""``keepwell status``: the project at a glance."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import print_json, project_state, table
from keepwell.core.records.lifecycle import Activation
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import Endpoint
from keepwell.core.records.work import Work
from keepwell.serving.rollouts.plans import describe_plan, latest_plan
from keepwell.watch.health import health


def run(given: argparse.Namespace) -> int:
    """Show versions, endpoints with their health, and work that waits or failed."""
    state = project_state(given)
    store = state.store
    versions = store.find(ModelVersion)
    endpoints = store.find(Endpoint)
    healths = {e.name: health(e.name, store) for e in endpoints}
    plans = {e.name: latest_plan(e.name, store=store) for e in endpoints}
    waiting = store.find(Activation, {"state": "waiting"})
    work = store.find(Work, {"state": ["queued", "running", "failed"]})
    if given.json:
        print_json(
            {
                "versions": versions,
                "endpoints": endpoints,
                "health": healths,
                "plans": plans,
                "waiting": waiting,
                "work": work,
            }
        )
        return 0
    if not versions:
        sys.stdout.write("No version yet. Next: keepwell train\n")
        return 0
    rows = [(v.label(), v.candidate, v.state, v.author, v.reason[:80]) for v in versions]
    sys.stdout.write(table(rows, ("version", "candidate", "state", "author", "reason")) + "\n")
    for endpoint in endpoints:
        plan = plans[endpoint.name]
        found = healths[endpoint.name]
        sys.stdout.write(
            f"\nendpoint {endpoint.name}: {found.state}. {found.message}\n"
            f"  {describe_plan(plan) if plan else 'nothing deployed'}\n"
        )
    for activation in waiting:
        sys.stdout.write(
            f"\nactivation {activation.model}/{activation.version} waits at {activation.step!r}"
            f" for {activation.waits_for}\n"
        )
    for item in work:
        sys.stdout.write(
            f"\nwork {item.kind} {item.subject}: {item.state} {item.progress} {item.error}\n"
        )
    return 0
