"""Holdouts: since when one stands, and what could not stand beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keepwell.core.ports.store import Reader
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import TrafficPlan


def standing_since(plans: Iterable[TrafficPlan]) -> TrafficPlan | None:
    """Give the plan since which the newest one's holdout has stood as it is; None where nobody is held out."""
    since: TrafficPlan | None = None
    for plan in sorted(plans, key=lambda plan: -plan.revision):
        if plan.holdout is None or (since is not None and plan.holdout != since.holdout):
            break
        since = plan
    return since


def misfits(
    plan: TrafficPlan | None, versions: Sequence[ModelVersion], *, store: Reader
) -> list[str]:
    """Tell which versions do not read what the version that is held out reads: one signature reads all requests."""
    held = plan.holdout if plan is not None else None
    version = store.get(ModelVersion, held.model, held.version) if held is not None else None
    if version is None:
        return []
    return [
        f"{each.label()} has another signature than {version.label()}, which answers the units that are held out:"
        " end the holdout first (keepwell holdout end)."
        for each in versions
        if each.signature != version.signature
    ]
