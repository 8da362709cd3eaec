"""What the page of a rollout shows: shares over time, turns, the evidence as it grows, and what was measured last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from markupsafe import Markup

from keepwell.app.web.charts import Point, line_chart, share_chart
from keepwell.core.clock import Time, iso
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


def _intervals(
    measured: Mapping[str, Any],
) -> list[tuple[str, float, float | None, float | None]]:
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
    found: list[tuple[str, float, float | None, float | None]] = []
    for title, value in wanted.items():
        middle = value.get("gain", value.get("mean"))
        if middle is not None:
            found.append((title, middle, value.get("low"), value.get("high")))
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


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a mirror's answers are furthest from those that were sent."""

    slices: list[tuple[str, str, int, str]]
    """Field, its values, decisions, share of them that disagree; the worst first."""
    fields: list[str]
    examples: list[tuple[str, str, str, list[str]]]
    """When, what was sent, what the mirror said, and the features by ``fields``."""


def disagreement_of(look: Look) -> Disagreement | None:
    """Give the slices that disagree most and the decisions furthest apart; None where nothing is compared so."""
    slices, examples = look.measured.get("worst_slices"), look.measured.get("examples")
    if not slices and not examples:
        return None
    return Disagreement(
        slices=[
            (each["field"], each["values"], each["rows"], f"{each['disagreed']:.1%}")
            for each in slices or ()
        ],
        fields=list(examples[0]["features"]) if examples else [],
        examples=[
            (
                iso(each["time"])[:16],
                _said(each["sent"]),
                _said(each["mirrored"]),
                [_said(value) or "missing" for value in each["features"].values()],
            )
            for each in examples or ()
        ],
    )


def effects_of(look: Look) -> list[tuple[str, str, str]]:
    """List what each factor's level adds, and pairs beyond that: name, effect with its interval, adjusted p-value."""
    given = look.measured.get("effects")
    if not isinstance(given, list):
        return []
    return [
        (
            " and ".join(
                f"{factor} = {level}"
                for factor, level in zip(each["factors"], each["levels"], strict=True)
            ),
            f"{each['effect']:+.4g} ({each['low']:.4g} to {each['high']:.4g})",
            f"{each['p_value']:.2g}",
        )
        for each in given
    ]


def spell_rule(value: Any) -> str:
    """Write the value of a rule as it is declared.

    >>> spell_rule(True), spell_rule(""), spell_rule([0.1, 0.5]), spell_rule([{"metric": "latency_ms", "margin": 5.0}])
    ('true', 'none', '0.1, 0.5', 'latency_ms: margin 5')
    """
    if isinstance(value, dict):
        named = dict(value)
        metric = named.pop("metric", "")
        if any(isinstance(each, dict) for each in named.values()):
            return "; ".join(f"{name}: {spell_rule(each)}" for name, each in named.items())
        said = ", ".join(f"{name} {spell_rule(v)}" for name, v in named.items() if v != "")
        return f"{metric}: {said}" if metric else said
    if isinstance(value, list | tuple):
        between = "; " if any(isinstance(each, dict) for each in value) else ", "
        return between.join(map(spell_rule, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value in {"", None} else str(value)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        parts = ((name, _said(each)) for name, each in value.items())
        if {"low", "high"} <= value.keys():
            middle = _said(value.get("mean", value.get("gain")))
            bounds = [_said(value[end]) for end in ("low", "high")]
            if not middle:
                return "nothing yet"
            return f"{middle} ({' to '.join(bounds) if all(bounds) else 'no bounds yet'})"
        if any(isinstance(each, dict) and each.keys() for each in value.values()):
            return "; ".join(f"{name}: {said}" for name, said in parts if said)
        return ", ".join(f"{name.replace('_', ' ')} {said}" for name, said in parts if said)
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
