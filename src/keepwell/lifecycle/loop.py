"""The loop: decisions become training, training a release, a release an activation. Rows in, rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.clock import duration
from keepwell.core.errors import Conflict
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.lifecycle import Activation, Release
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.watching import Decision
from keepwell.core.records.work import Work
from keepwell.lifecycle.activation import ACTIVATION, wake_waiting
from keepwell.lifecycle.procedures import close_broken
from keepwell.lifecycle.release import RELEASE
from keepwell.lifecycle.training import training_work

if TYPE_CHECKING:
    from keepwell.core.ports.store import Reader
    from keepwell.lifecycle.context import Context

ACTOR = "keepwell"
"""Author of renewals: a service, so that any approver may judge its work."""


def turn(context: Context) -> int:
    """Act on everything that is due now, and say how many things that was. Safe to call from anywhere, any time."""
    closed = sum(close_broken(context, course) for course in (RELEASE, ACTIVATION))
    return closed + take_decisions(context) + wake_waiting(context)


def take_decisions(context: Context) -> int:
    """Turn open decisions to retrain into work; the decision and its work change in one transaction."""
    taken = 0
    for decision in context.store.find(Decision, {"state": "open"}, order=["event_time"]):
        try:
            with context.store.transaction(actor=ACTOR) as transaction:
                work = _renewal(context, decision, store=transaction)
                transaction.replace(
                    msgspec.structs.replace(
                        decision,
                        state="taken" if isinstance(work, Work) else "dismissed",
                        result=work.id if isinstance(work, Work) else work,
                        revision=decision.revision + 1,
                    ),
                    reason=decision.reason,
                )
                if isinstance(work, Work):
                    transaction.add(work, reason=decision.reason)
        except Conflict:
            continue  # another process took it
        taken += 1
    return taken


def _renewal(context: Context, decision: Decision, *, store: Reader) -> Work | str:
    """Make the training work that a decision asks for, or say why there is none."""
    if decision.kind != "retrain":
        return f"nothing to do for {decision.kind!r}"
    champion = store.get(ModelVersion, decision.model, decision.version)
    if champion is None:
        return f"there is no version {decision.model}/{decision.version}"
    if renewal_under_way(decision.model, store=store):
        return "a renewal of this model is under way"
    trained_on = store.get(TrainingSet, champion.training_set)
    history = context.settings.renewal.history
    since = (
        decision.event_time - duration(history)
        if history
        else trained_on.since
        if trained_on is not None
        else None
    )
    return training_work(
        id=f"train-{decision.id}",
        model=decision.model,
        candidates=(champion.candidate,),
        since=since,
        until=decision.event_time,
        as_of=decision.event_time,
        seed=0,
        author=ACTOR,
        now=context.clock.now(),
        renews=champion.version,
        release=True,
    )


def renewal_under_way(model: str, *, store: Reader) -> bool:
    """Tell whether a renewal of this model has begun and not ended."""
    open_states = ["queued", "running"]
    if store.count(Work, {"kind": "train", "subject": model, "state": open_states}):
        return True
    from_renewal = [
        version
        for version in store.find(
            ModelVersion, {"model": model, "state": ["registered", "released"]}
        )
        if version.renews is not None
    ]
    return any(_is_on_its_way(version, store=store) for version in from_renewal)


def _is_on_its_way(version: ModelVersion, *, store: Reader) -> bool:
    unfinished = {
        "model": version.model,
        "version": version.version,
        "state": ["running", "waiting"],
    }
    return bool(store.count(Release, unfinished) or store.count(Activation, unfinished))
