"""``keepwell holdout``: hold units out of all rollouts, end that, and see what was earned over them."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.attribution import holdouts
from keepwell.app.cli.common import actor, print_json, project_state, table
from keepwell.app.cli.plans import show_change
from keepwell.app.holding import Holding, hold_out, preview_hold_out, wanted_version
from keepwell.app.wiring import State
from keepwell.core.clock import iso
from keepwell.core.records.returns import HeldOut
from keepwell.serving.rollouts.plans import describe_plan


def run(given: argparse.Namespace) -> int:
    """Do what the verb says."""
    state = project_state(given)
    if given.verb == "show":
        return _show(given, state)
    wanted = Holding(
        endpoint=given.endpoint,
        version=wanted_version(given.version) if given.verb == "set" else None,
        share=given.share,
        reason=given.reason,
        anew=given.anew,
    )
    who = actor(given, state)
    if given.dry_run:
        before, after = preview_hold_out(state, wanted, actor=who)
        what = "units would be held out" if given.verb == "set" else "nobody would be held out"
        return show_change(f"at {after.endpoint} {what}", before, after, as_json=given.json)
    plan = hold_out(state, wanted, actor=who)
    if given.json:
        print_json(plan)
    else:
        sys.stdout.write(
            f"{plan.endpoint} is answered by {describe_plan(plan)} (plan {plan.revision})\n"
        )
    return 0


def _show(given: argparse.Namespace, state: State) -> int:
    found = holdouts(state, given.endpoint)
    if given.json:
        print_json({"holdouts": found})
        return 0
    if not found:
        sys.stdout.write(
            "Nobody is held out. Begin: keepwell holdout set ENDPOINT --version NUMBER --share 0.05 --reason '...'\n"
        )
        return 0
    sys.stdout.write("\n".join(text_of(each) for each in found))
    return 0


def text_of(held: HeldOut) -> str:
    """Write what one holdout tells."""
    sides = (
        ("outside", held.units, held.decisions, held.labelled, held.earned),
        (
            f"held out, v{held.version}",
            held.units_held_out,
            held.decisions_held_out,
            held.labelled_held_out,
            held.earned_held_out,
        ),
    )
    rows = [
        (name, *(f"{number:,}" for number in numbers), _money(earned, held.unit))
        for name, *numbers, earned in sides
    ]
    lines = [
        (
            f"{held.endpoint}: {held.share:g} of the units are held out at {held.model}/{held.version}"
            f" since plan {held.since_plan} ({iso(held.since)}, {held.by}: {held.reason})"
        ),
        table(rows, ("side", "units", "decisions", "labelled", "earned a decision")),
    ]
    gain, total = held.gain, held.total
    if gain is None or total is None:
        lines.append("Too little is labelled to say what was earned over the holdout.")
    else:
        lines.append(
            f"gain over the holdout {gain.estimate:+.4g} {held.unit} a decision"
            f" (95% interval {gain.low:.4g} to {gain.high:.4g}),"
            f" in all {total.estimate:+,.0f} {held.unit} ({total.low:,.0f} to {total.high:,.0f})"
        )
    return "\n".join([*lines, *(f"  {note}" for note in held.notes)]) + "\n"


def _money(value: float | None, unit: str) -> str:
    return "not known" if value is None else f"{value:.4g} {unit}"
