"""``keepwell rollback``: the lever that anybody in charge may pull."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import actor, print_json, project_state
from keepwell.app.cli.plans import show_change
from keepwell.app.rolling import need_reason
from keepwell.core.errors import Refused
from keepwell.lifecycle.roles import require
from keepwell.serving.rollouts.plans import describe_plan, latest_plan


def run(given: argparse.Namespace) -> int:
    """Show what would change, ask, and give the traffic back."""
    state = project_state(given)
    who = actor(given, state)
    require(who, "rollback", store=state.store)
    now = latest_plan(given.endpoint, store=state.store)
    if given.dry_run:
        return show_change(
            f"the traffic of {given.endpoint} would be given back",
            now,
            state.rollouts.preview_roll_back(given.endpoint, reason=given.reason),
            as_json=given.json,
        )
    need_reason(given.reason)
    if now is not None and not given.yes and not given.json:
        sys.stderr.write(
            f"{given.endpoint} is answered by {describe_plan(now)}.\nGive it back to the version before? [y/N] "
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise Refused("Nothing was changed.")
    plan = state.rollouts.roll_back(given.endpoint, actor=who, reason=given.reason)
    if given.json:
        print_json(plan)
    else:
        sys.stdout.write(
            f"{given.endpoint} is answered by {describe_plan(plan)} (plan {plan.revision})\n"
        )
    return 0
