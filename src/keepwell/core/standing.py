"""What stands on a version: the one rule by which it may not be deleted or collected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepwell.core.errors import Refused
from keepwell.core.records.lifecycle import Activation, Release
from keepwell.core.records.models import Alias, Model, ModelVersion
from keepwell.core.records.rollouts import OPEN, Rollout
from keepwell.core.records.traffic import Endpoint, TrafficPlan

if TYPE_CHECKING:
    from keepwell.core.ports.store import Reader


def what_stands_on(version: ModelVersion, store: Reader) -> list[str]:
    """Name everything that needs this version now, in words; an empty list lets it go.

    Aliases, an active state, a release or activation under way, a rollout under way, and the newest
    traffic plan of every endpoint (arms, mirrors).
    """
    which = {"model": version.model, "version": version.version}
    found = [f"alias {row.alias!r}" for row in store.find(Alias, which)]
    if version.state == "active":
        found.append("its state, active")
    for kind, noun in ((Release, "release"), (Activation, "activation")):
        under_way = store.find(kind, {**which, "state": ["running", "waiting"]})
        found += [f"{noun} {row.id} ({row.state})" for row in under_way]
    for rollout in store.find(Rollout, {"model": version.model, "state": OPEN}):
        if version.version in {rollout.champion, rollout.challenger}:
            found.append(f"rollout {rollout.id} ({rollout.state})")
    for endpoint in store.find(Endpoint):
        plans = store.find(TrafficPlan, {"endpoint": endpoint.name}, order=["-revision"], limit=1)
        for plan in plans:
            found += [
                f"arm {arm.name!r} of endpoint {endpoint.name!r} (traffic plan {plan.revision})"
                for arm in (*plan.answering, *plan.mirrors)
                if (arm.model, arm.version) == (version.model, version.version)
            ]
    return found


def may_delete(version: ModelVersion, store: Reader) -> None:
    """Raise Refused, naming what stands on the version, unless it may be deleted."""
    standing = what_stands_on(version, store)
    if standing:
        raise Refused(
            f"The version cannot be deleted: on it stand {', '.join(standing)}.",
            where=version.label(),
            todo="Move the alias or the traffic to another version first.",
        )


def may_delete_model(model: Model, store: Reader) -> None:
    """Raise Refused if anything stands on any version of the model."""
    for version in store.find(ModelVersion, {"model": model.name}):
        may_delete(version, store)
