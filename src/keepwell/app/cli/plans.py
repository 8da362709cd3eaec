"""Showing what would change: the traffic plan in force and the one that would follow it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from keepwell.app.cli.common import print_json
from keepwell.core.records.rollouts import Forecast
from keepwell.core.records.traffic import TrafficPlan
from keepwell.serving.rollouts.plans import describe_plan


def show_change(
    what: str,
    before: TrafficPlan | None,
    after: TrafficPlan,
    *,
    as_json: bool,
    forecast: Sequence[Forecast] = (),
    **more: Any,
) -> int:
    """Print both plans and whatever else is to be known; nothing was changed."""
    if as_json:
        known = {"forecast": forecast, **more}
        print_json({"dry_run": True, "before": before, "after": after, **known})
        return 0
    lines = [f"{what} (a dry run: nothing was changed)"]
    lines += [f"  {name:<10}  {value}" for name, value in more.items()]
    now = f"{describe_plan(before)} (plan {before.revision})" if before else "nothing deployed"
    then = "the same" if after is before else f"{describe_plan(after)} (plan {after.revision})"
    lines += [f"  now         {now}", f"  then        {then}"]
    sys.stdout.write("\n".join(lines + forecast_lines(forecast)) + "\n")
    return 0


def forecast_lines(forecast: Sequence[Forecast]) -> list[str]:
    """Say what a rollout will need, a line each."""
    several = len(forecast) > 1
    return [
        f"  {'foretold' if first else '':<10}  {f'{stage.stage}: ' if several else ''}{said}"
        for stage in forecast
        for first, said in _firstly([*stage.notes, *(each.said for each in stage.expected)])
    ]


def _firstly(lines: Sequence[str]) -> Iterator[tuple[bool, str]]:
    return ((not place, line) for place, line in enumerate(lines))
