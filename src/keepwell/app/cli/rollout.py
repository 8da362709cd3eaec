"""``keepwell rollout``: what rollouts there are and what they found."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import print_json, project_state, table, version_named
from keepwell.app.cli.plans import show_change
from keepwell.core.clock import iso
from keepwell.core.errors import NotFound, near_miss
from keepwell.core.records.traffic import Rollout, TrafficPlan
from keepwell.lifecycle.activation import course_of
from keepwell.serving.rollouts import describe_plan, latest_plan


def run(given: argparse.Namespace) -> int:
    """Show all rollouts, or one with the traffic plans of its time."""
    state = project_state(given)
    if given.dry_run:
        version = version_named(state, given.id)
        endpoint, strategy = course_of(state.context, state.store, version, strategy=given.strategy)
        return show_change(
            f"a rollout of {version.label()} at {endpoint} by {strategy} would begin",
            latest_plan(endpoint, store=state.store),
            state.rollouts.preview(endpoint=endpoint, version=version, strategy=strategy),
            as_json=given.json,
        )
    rollouts = state.store.find(Rollout, order=["started"])
    if given.id:
        rollouts = [r for r in rollouts if r.id == given.id]
        if not rollouts:
            known = [r.id for r in state.store.find(Rollout)]
            raise NotFound(f"There is no rollout {given.id!r}.", todo=near_miss(given.id, known))
    plans = state.store.find(TrafficPlan)
    if given.json:
        print_json({"rollouts": rollouts, "plans": plans})
        return 0
    rows = [(r.id, r.strategy, r.change, r.state, r.reason[:90]) for r in rollouts]
    sys.stdout.write(table(rows, ("rollout", "strategy", "versions", "state", "reason")) + "\n\n")
    plan_rows = [
        (p.endpoint, str(p.revision), iso(p.created), describe_plan(p), p.by) for p in plans
    ]
    sys.stdout.write(table(plan_rows, ("endpoint", "plan", "since", "who answers", "by")) + "\n")
    return 0
