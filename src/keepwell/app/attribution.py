"""Tells what an endpoint's decisions have earned over those of the units that are held out, by its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keepwell.core.clock import Time
from keepwell.core.errors import NotFound, near_miss
from keepwell.core.records.appraisals import Range
from keepwell.core.records.returns import Earned, HeldOut
from keepwell.core.records.traffic import BUCKETS, Endpoint, TrafficPlan
from keepwell.core.records.watching import Watermark
from keepwell.serving.rollouts.holdouts import standing_since

if TYPE_CHECKING:
    from keepwell.app.wiring import State
    from keepwell.serving.rollouts.attribution import Sides, Worth
    from keepwell.stats.intervals import Interval

FEW_UNITS = 30
"""Under so many units on a side it is told that the interval is a rough one."""
MOST_KEPT = 64


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading of an endpoint's log says of its holdout."""

    held: HeldOut
    earned: dict[int, Earned]
    """By version; nothing of those with too few decisions."""


_TOLD: dict[tuple[Path, str, int, Time], Told] = {}
"""By where, the plan in force and the event time up to which labels are known: the dashboard asks again and again,
and each answer reads the endpoint's whole log: five seconds of a core for a million decisions."""


def holdouts(state: State, endpoint: str = "") -> list[HeldOut]:
    """Give all holdouts, or that of one endpoint. Raises NotFound for an endpoint that is not there."""
    wanted = state.store.find(Endpoint, {"name": endpoint} if endpoint else {})
    if endpoint and not wanted:
        known = [each.name for each in state.store.find(Endpoint)]
        raise NotFound(f"There is no endpoint {endpoint!r}.", todo=near_miss(endpoint, known))
    return [told.held for each in wanted if (told := told_of(state, each)) is not None]


def over_holdout(state: State, endpoint: Endpoint) -> dict[int, Earned]:
    """Give what each version earned over the units that are held out; nothing where nobody is."""
    told = told_of(state, endpoint)
    return told.earned if told is not None else {}


def told_of(state: State, endpoint: Endpoint) -> Told | None:
    """Compare both sides since the holdout stands, by the decisions whose labels have had time to come.

    None where nobody is held out. Raises InvalidInput with the project's own line if its KPI cannot be computed.
    """
    plans = state.store.find(TrafficPlan, {"endpoint": endpoint.name}, order=["revision"])
    since = standing_since(plans)
    if since is None:
        return None
    watermark = state.store.get(Watermark, endpoint.name)
    until = (watermark.event_time if watermark else state.clock.now()) - endpoint.label_delay
    key = (state.state, endpoint.name, plans[-1].revision, until)
    # Without a watermark it is another time at each question.
    if key not in _TOLD:
        while len(_TOLD) >= MOST_KEPT:
            del _TOLD[next(iter(_TOLD))]
        _TOLD[key] = _read(state, endpoint, plans, since, until=until)
    return _TOLD[key]


def _read(
    state: State,
    endpoint: Endpoint,
    plans: Sequence[TrafficPlan],
    since: TrafficPlan,
    *,
    until: Time,
) -> Told:
    # They bring polars, and the server starts without.
    from keepwell.app.wiring import gain_of
    from keepwell.serving.rollouts.attribution import earned_by_version, sides, worth_of

    found = sides(state.decisions(endpoint.name, since=0, until=until), plans)
    assert found is not None
    declared = state.project.model(endpoint.model)
    worth = None
    if declared.kpi_function is not None:
        worth = worth_of(found, gain_of(state.project, endpoint.model, metric="kpi"))
    versions = earned_by_version(worth, plans) if worth is not None else {}
    return Told(
        held=_held(endpoint, since, found, worth, unit=declared.kpi_unit),
        earned={
            version: Earned(
                endpoint=endpoint.name,
                model=endpoint.model,
                version=version,
                against="holdout",
                unit=declared.kpi_unit,
                earned=each.total.estimate,
                low=each.total.lower,
                high=each.total.upper,
                decisions=found.decisions(version),
                labelled=each.decisions,
                since_plan=since.revision,
            )
            for version, each in versions.items()
            if each is not None
        },
    )


def _held(
    endpoint: Endpoint, since: TrafficPlan, found: Sides, worth: Worth | None, *, unit: str
) -> HeldOut:
    from keepwell.serving.rollouts.attribution import earned_over_holdout

    assert since.holdout is not None
    units, decisions = found.count(held=False)
    units_held, decisions_held = found.count(held=True)
    notes = []
    if worth is None:
        notes.append("The model declares no KPI, so there is no money to compare.")
    if min(units, units_held) < FEW_UNITS:
        notes.append(
            f"One side has {min(units, units_held)} units: the interval covers less than it says."
        )
    if found.astray:
        notes.append(
            f"{found.astray:,} decisions of units that are held out were answered by another arm, while their own could"
            " not answer; they count as held out, so the gain is rather too small."
        )
    if bool((found.table["share"] < 1).any()):
        notes.append("The log is sampled: sums are those of the decisions that were written down.")
    base = HeldOut(
        endpoint=endpoint.name,
        model=endpoint.model,
        version=since.holdout.version,
        share=since.holdout.weight / BUCKETS,
        since_plan=since.revision,
        since=since.created,
        by=since.by,
        reason=since.reason,
        units=units,
        units_held_out=units_held,
        decisions=decisions,
        decisions_held_out=decisions_held,
        labelled=0,
        labelled_held_out=0,
        astray=found.astray,
        unit=unit,
        notes=tuple(notes),
    )
    earned = earned_over_holdout(worth) if worth is not None else None
    if earned is None:
        return base
    return msgspec.structs.replace(
        base,
        labelled=earned.decisions,
        labelled_held_out=earned.held_out,
        earned=earned.mean_held_out + earned.per_decision.estimate,
        earned_held_out=earned.mean_held_out,
        gain=_range(earned.per_decision),
        total=_range(earned.total),
    )


def _range(interval: Interval) -> Range:
    return Range(estimate=interval.estimate, low=interval.lower, high=interval.upper)
