"""``keepwell rollout``: start rollouts, see, steer and replay them; and what a version would have earned."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from keepwell.app.cli.common import actor, print_json, project_state, table, version_named
from keepwell.app.cli.plans import forecast_lines, show_change
from keepwell.app.rolling import (
    appraise_version,
    preview_rollout,
    start_rollout,
    steer_rollout,
    waits_for,
)
from keepwell.app.wiring import State
from keepwell.core.clock import duration, iso
from keepwell.core.errors import InvalidInput, NotFound
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import OPEN, Look, Rollout
from keepwell.core.records.traffic import TrafficPlan
from keepwell.serving.rollouts.plans import describe_plan


def run(given: argparse.Namespace) -> int:
    """Do what the verb says."""
    state = project_state(given)
    if given.verb == "list":
        _none_named(given)
        return _list(given, state)
    if given.verb == "start":
        return _start(given, state)
    if given.verb == "value":
        return _value(given, state)
    if len(given.names) != 1:
        known = ", ".join(r.id for r in state.store.find(Rollout)) or "none yet"
        raise InvalidInput(
            f"'keepwell rollout {given.verb}' is about one rollout.", todo=f"There are: {known}."
        )
    found = state.rollouts.named(given.names[0])
    if given.verb == "status":
        return _status(given, state, found)
    if given.verb == "replay":
        return _replay(given, state, found)
    return _steer(given, state, found)


def _none_named(given: argparse.Namespace) -> None:
    if given.names:
        raise InvalidInput(
            f"'keepwell rollout list' takes no name, received {given.names[0]!r}.",
            todo="One rollout: keepwell rollout status ID.",
        )


def _list(given: argparse.Namespace, state: State) -> int:
    rollouts = state.store.find(Rollout, order=["started"])
    plans = state.store.find(TrafficPlan)
    if given.json:
        print_json({"rollouts": rollouts, "plans": plans})
        return 0
    rows = [(r.id, r.strategy, r.change, r.state, r.reason[:90]) for r in rollouts]
    sys.stdout.write(table(rows, ("rollout", "strategy", "versions", "state", "reason")) + "\n\n")
    _plans(plans)
    return 0


def _plans(plans: list[TrafficPlan]) -> None:
    rows = [(p.endpoint, str(p.revision), iso(p.created), describe_plan(p), p.by) for p in plans]
    sys.stdout.write(table(rows, ("endpoint", "plan", "since", "who answers", "by")) + "\n")


def _start(given: argparse.Namespace, state: State) -> int:
    if not given.names:
        raise InvalidInput("Which version?", todo="keepwell rollout start MODEL/NUMBER")
    versions = _versions(given, state)
    rules = dict(_rule(text) for text in given.set)
    labels = ", ".join(version.label() for version in versions)
    if given.dry_run:
        strategy, found = preview_rollout(
            state, versions, actor=actor(given, state), strategy=given.strategy, rules=rules
        )
        return show_change(
            f"a rollout of {labels} at {found.after.endpoint} by {strategy} would begin",
            found.before,
            found.after,
            as_json=given.json,
            forecast=found.forecast,
        )
    rollout = start_rollout(
        state, versions, actor=actor(given, state), strategy=given.strategy, rules=rules
    )
    return _status(given, state, rollout)


def _versions(given: argparse.Namespace, state: State) -> list[ModelVersion]:
    """Give the versions that are named; all that are not there are told at once."""
    found, missing = [], []
    for name in given.names:
        try:
            found.append(version_named(state, name))
        except NotFound as error:
            missing.append(error)
    if len(missing) > 1:
        raise NotFound(" ".join(map(str, missing)))
    if missing:
        raise missing[0]
    return found


def _rule(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise InvalidInput(
            f"--set {text!r} is no rule.", todo="Write RULE=VALUE, as in min_rows=1000."
        )
    try:
        return name.strip(), msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name.strip(), value  # a word, as in gap=hold


def _status(given: argparse.Namespace, state: State, found: Rollout) -> int:
    looks = state.store.find(Look, {"rollout": found.id}, order=["number"])
    plans = [
        plan
        for plan in state.store.find(TrafficPlan, {"endpoint": found.endpoint}, order=["revision"])
        if looks and looks[0].written <= plan.revision <= looks[-1].written
    ]
    if given.json:
        known = {"rollout": found, "looks": looks, "plans": plans, "forecast": found.forecast}
        print_json(known)
        return 0
    stages = " -> ".join(
        f"[{name}]" if place == found.stage else name for place, name in enumerate(found.way)
    )
    lines = [f"{found.id}: {found.change} at {found.endpoint} by {stages}: {found.state}"]
    if found.reason:
        lines.append(f"  why         {found.reason}")
    if looks:
        last = looks[-1]
        lines.append(f"  last look   {iso(last.at)}: {last.reason}")
        lines += [f"  next        {each}" for each in [waits_for(found, last)] if each]
        if found.state in OPEN:
            lines += forecast_lines(found.forecast[found.stage :])
    if found.evidence:
        lines.append(f"  evidence    {found.evidence}")
    sys.stdout.write("\n".join(lines) + "\n\n")
    rows = [
        (look.number, iso(look.at), f"{look.rows:,}", look.written, look.verdict, look.reason[:90])
        for look in looks
    ]
    sys.stdout.write(table(rows, ("look", "at", "answers", "plan", "says", "because")) + "\n\n")
    _plans(plans)
    return 0


def _value(given: argparse.Namespace, state: State) -> int:
    if len(given.names) != 1:
        raise InvalidInput("Which version?", todo="keepwell rollout value MODEL/NUMBER")
    found = appraise_version(
        state,
        version_named(state, given.names[0]),
        length=duration(given.since),
        endpoint=given.endpoint,
        way=None if given.by == "auto" else given.by,
    )
    if given.json:
        print_json(found)
        return 0
    value, gain, total, unit = found.value, found.gain, found.total, found.unit
    level = "95% interval"
    lines = [
        f"{found.version} at {found.endpoint}, {iso(found.since)} to {iso(found.until)}:",
        f"  would have earned {value.estimate:.4g} {unit} a decision ({level} {value.low:.4g} to {value.high:.4g})",
        (
            f"  who answered earned {found.logged:.4g}, so it gains {gain.estimate:+.4g}"
            f" ({level} {gain.low:.4g} to {gain.high:.4g})"
        ),
        (
            f"  in all {total.estimate:+,.0f} {unit} ({level} {total.low:,.0f} to {total.high:,.0f})"
            f" over {found.rows:,} decisions"
        ),
        (
            f"  of {found.decisions:,} in the log; {found.unknown:,} without outcome or answer"
            f" and {found.trained_on:,} in its training time are left out"
        ),
    ]
    over = found.over_holdout
    if over is not None:
        lines.append(
            f"  over the units that are held out {over.estimate:+.4g} ({level} {over.low:.4g} to {over.high:.4g})"
        )
    if found.effective is not None and found.snips is not None:
        lines.append(
            f"  effective sample {found.effective:,.0f}; by weights alone {found.snips.estimate:.4g}"
            f" ({level} {found.snips.low:.4g} to {found.snips.high:.4g})"
        )
    sys.stdout.write("\n".join(lines + [f"  {note}" for note in found.notes]) + "\n")
    return 0


def _replay(given: argparse.Namespace, state: State, found: Rollout) -> int:
    told = state.rollouts.replay(found.id)
    if given.json:
        print_json({"replay": told, "same": told.same})
    else:
        sys.stdout.write(
            f"{told.looks:,} looks and {told.assignments:,} assignments computed again: "
            + ("all the same\n" if told.same else "they differ\n")
            + "".join(f"  {line}\n" for line in told.differences)
        )
    return int(not told.same)


def _steer(given: argparse.Namespace, state: State, found: Rollout) -> int:
    after = steer_rollout(
        state,
        found.id,
        given.verb,
        actor=actor(given, state),
        reason=given.reason,
        version=given.version,
    )
    return _status(given, state, after)
