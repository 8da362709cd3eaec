"""What the page of a rollout shows: shares over time, turns, the evidence as it grows, and what was measured last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from keepwell.app.web.charts import Point, line_chart, share_chart
from keepwell.core.clock import Time
from keepwell.core.records.rollouts import OPEN, Look, Rollout
from keepwell.core.records.traffic import BUCKETS, Arm, TrafficPlan
from keepwell.serving.desk.assign import in_turns

LOOKS = 50
"""The latest looks that are listed."""
POLICIES = frozenset({"linucb", "lints"})
"""Algorithms whose plans draw the arm of each request from its features."""
TURNS = 168
"""The latest turns that are drawn: a week of hours."""


def called(arm: Arm) -> str:
    """Name an arm as people ask for it: ``challenger v2``."""
    return f"{arm.name} v{arm.version}"


def shares_of(looks: Sequence[Look], until: Time, *, by_policy: bool = False) -> Markup:
    """Draw who had which share; looks that changed nothing leave no seam."""
    moments: list[tuple[Time, dict[str, float]]] = []
    told: dict[str, int] = {}
    # What passes a stage does not serve by that: the next stage's first look says who does.
    stages = [look.stage for look in looks]
    for look, following in zip(looks, [*stages[1:], None], strict=True):
        if following is not None and following != look.stage:
            continue
        shares = {called(arm): arm.weight / BUCKETS for arm in look.arms if arm.weight}
        rewards: dict[str, int] = look.measured.get("rewards", {}) if by_policy else {}
        new = {name: count - told.get(name, 0) for name, count in rewards.items()}
        if sum(new.values()) > 0 and moments:
            # The weights part nothing where a policy draws: what was drawn since the look before is told.
            shares = {called(arm): new.get(arm.name, 0) / sum(new.values()) for arm in look.arms}
            told = rewards
        if not moments or moments[-1][1] != shares:
            moments.append((look.at, shares))
    return share_chart(moments, label="share of the traffic by arm", until=until)


def turns_of(plan: TrafficPlan | None, looks: Sequence[Look]) -> Markup:
    """Draw whose turn it was, where arms take turns; nothing elsewhere, and where groups do so each by itself."""
    if plan is None or plan.period is None or plan.period.field or not looks:
        return Markup("")
    length = plan.period.seconds * 1_000_000
    last = looks[-1].event_time // length
    since = min((look.event_time for look in looks if look.rows), default=last * length) // length
    turns = range(max(since, last - TURNS + 1), last + 1)
    times = [turn * length for turn in turns]
    places = in_turns(times, [], plan.arms, plan.salt, plan.period).tolist()
    # All arms are named at the first, so that each has its colour of the chart above.
    moments: list[tuple[Time, dict[str, float]]] = [
        (at, {called(arm): float(k == place) for k, arm in enumerate(plan.arms)})
        for at, place in zip(times, places, strict=True)
    ]
    return share_chart(moments, label="whose turn it was", until=times[-1] + length)


def evidence_of(looks: Sequence[Look], way: Sequence[str]) -> list[tuple[str, Markup]]:
    """Draw what looks have measured as it grew, by stage: differences with their bounds, and shares of errors."""
    found: dict[str, list[Point]] = {}
    for look in looks:
        stage = f"{way[look.stage]}: " if len(way) > 1 else ""
        for title, estimate, low, high in _intervals(look.measured):
            named = f"{stage}{title[0].lower()}{title[1:]}" if stage else title
            found.setdefault(named, []).append(Point(look.event_time, estimate, low, high))
    charts = []
    for title, points in found.items():
        if len(points) > 1:
            charts.append((title, line_chart(points, label=title, reference=0.0)))
    return charts


def _intervals(measured: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    wanted: dict[str, Any] = {}
    if "low" in measured:
        wanted["Gain of the challenger over the champion"] = measured
    for what, word in (
        ("gain", "Gain of {} over the champion"),
        ("effects", "Gain of {} over the champion a decision, by propensities (one look)"),
    ):
        given = measured.get(what)
        if isinstance(given, dict):
            wanted |= {word.format(name): value for name, value in given.items()}
    found = []
    for title, value in wanted.items():
        middle = value.get("gain", value.get("mean"))
        bounds = value.get("low"), value.get("high")
        if middle is not None and bounds[0] is not None and bounds[1] is not None:
            found.append((title, middle, *bounds))
    requests = measured.get("requests")
    if isinstance(requests, int) and requests and isinstance(measured.get("errors"), int):
        from keepwell.stats.intervals import (
            wilson_interval,
        )  # brings scipy, and the server starts without

        rate = wilson_interval(measured["errors"], requests)
        title = "Share of the challenger's requests that failed (95% interval at one look)"
        found.append((title, rate.estimate, rate.lower, rate.upper))
    return found


def facts_of(look: Look) -> list[tuple[str, str]]:
    """List what one look has measured, in words; long lists are left to the evidence."""
    found = []
    for name, value in look.measured.items():
        said = _said(value)
        if said:
            found.append((name.replace("_", " "), said))
    return found


def _said(value: Any) -> str:
    if isinstance(value, dict):
        parts = ((name, _said(each)) for name, each in value.items())
        if {"low", "high"} <= value.keys():
            middle = value.get("mean", value.get("gain"))
            bounds = [_said(value[end]) or "not yet" for end in ("low", "high")]
            return f"{_said(middle)} ({bounds[0]} to {bounds[1]})"
        return ", ".join(f"{name} {said}" for name, said in parts if said)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def drawn_otherwise(rollout: Rollout, plan: TrafficPlan | None) -> str:
    """Say it where shares alone would mislead about who answers; nothing elsewhere."""
    if plan is None or rollout.state not in OPEN:
        return ""
    if plan.policy is not None:
        said = f"{plan.policy.kind} draws the arm of each request from its features"
        return f"{said}; shares are those of the decisions whose reward became known since the look before."
    if plan.period is not None:
        by = f", each {plan.period.field} by itself" if plan.period.field else ""
        length = f"{plan.period.seconds / 60:g} minutes"
        return f"Shares are of turns: for {length} one arm answers all{by}, then chance draws anew."
    return ""
