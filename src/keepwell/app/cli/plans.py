"""Showing what would change: the traffic plan in force and the one that would follow it."""

from __future__ import annotations

import sys
from typing import Any

from keepwell.app.cli.common import print_json
from keepwell.core.records.traffic import TrafficPlan
from keepwell.serving.rollouts.plans import describe_plan


def show_change(
    what: str,
    before: TrafficPlan | None,
    after: TrafficPlan,
    *,
    as_json: bool,
    **more: Any,
) -> int:
    """Print both plans and whatever else is to be known; nothing was changed."""
    if as_json:
        print_json({"dry_run": True, "before": before, "after": after, **more})
        return 0
    lines = [f"{what} (a dry run: nothing was changed)"]
    lines += [f"  {name:<10}  {value}" for name, value in more.items()]
    now = f"{describe_plan(before)} (plan {before.revision})" if before else "nothing deployed"
    then = "the same" if after is before else f"{describe_plan(after)} (plan {after.revision})"
    lines += [f"  now         {now}", f"  then        {then}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
