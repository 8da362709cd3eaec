"""Training as durable work: take the data, fit the candidates, ask for their release."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.clock import iso
from keepwell.core.errors import InvalidInput, NotFound, near_miss
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Work
from keepwell.data.training_sets import build_training_set
from keepwell.lifecycle.release import enqueue_release
from keepwell.lifecycle.roles import require
from keepwell.training.train import train_candidate

if TYPE_CHECKING:
    from keepwell.core.clock import Clock, Time
    from keepwell.core.ports.blobs import Blobs
    from keepwell.core.ports.store import Reader, Store, Transaction
    from keepwell.core.ports.tracking import Tracker
    from keepwell.core.project import Project
    from keepwell.core.settings import Settings
    from keepwell.lifecycle.context import Context

TRAINING_SET = "training_set"
"""The argument in which training work notes the training set that it has taken."""
TRAIN_STEPS = ("take data", "fit", "request release")


def training_work(
    *,
    id: str,
    model: str,
    candidates: tuple[str, ...],
    since: Time | None,
    until: Time,
    as_of: Time,
    seed: int,
    author: str,
    now: Time,
    renews: int | None = None,
    release: bool = False,
) -> Work:
    """Make the work that trains candidates on the decisions of a window, as known at ``as_of``."""
    return Work(
        id=id,
        kind="train",
        subject=model,
        args={
            "candidates": ",".join(candidates),
            "since": since,
            "until": until,
            "as_of": as_of,
            "seed": seed,
            "author": author,
            "renews": renews,
            "release": release,
        },
        requested_by=author,
        created=now,
    )


def start_training(project: Project, work: Work, *, actor: str, store: Store) -> Work:
    """Enqueue training.

    Raises NotFound for an unknown model or candidate, InvalidInput for a window without time in it,
    Refused for a role.
    """
    declared = project.model(work.subject)
    since, until = _number(work, "since"), _number(work, "until")
    if since is not None and until is not None and since >= until:
        raise InvalidInput(
            f"The window has no time in it: --since {iso(since)} is not before --until {iso(until)}.",
            todo="Give an earlier --since or a later --until.",
        )
    for candidate in candidates_of(work):
        if candidate not in declared.candidates:
            raise NotFound(
                f"The model {declared.name!r} has no candidate {candidate!r}.",
                todo=near_miss(candidate, declared.candidates),
            )
    require(actor, "train", store=store)
    with store.transaction(actor=actor) as transaction:
        transaction.add(work)
    return work


def candidates_of(work: Work) -> tuple[str, ...]:
    """List the candidates that a piece of training work names."""
    return tuple(name for name in str(work.args["candidates"]).split(",") if name)


def _number(work: Work, name: str) -> int | None:
    value = work.args.get(name)
    return None if value is None else int(value)


def training_set_of(work: Work, *, store: Reader) -> TrainingSet | None:
    """Give the training set that this work has made or found, if it has."""
    current = store.get(Work, work.id) or work
    content = current.args.get(TRAINING_SET)
    return store.get(TrainingSet, content) if content else None


def versions_of(work: Work, *, store: Reader) -> list[ModelVersion]:
    """List the versions that this work has registered, the newest of each candidate.

    They are known by their training set, their author and the time: two trainings of the same data by the
    same person that run at the same time are not told apart.
    """
    training_set = training_set_of(work, store=store)
    if training_set is None:
        return []
    candidates = candidates_of(work)
    newest: dict[str, ModelVersion] = {}
    for version in store.find(ModelVersion, {"model": work.subject}, order=["version"]):
        if (
            version.training_set == training_set.content
            and version.candidate in candidates
            and version.author == work.args["author"]
            and version.created >= work.created
        ):
            newest[version.candidate] = version
    return list(newest.values())


def take_data(work: Work, *, project: Project, store: Store, blobs: Blobs, clock: Clock) -> None:
    """Snapshot the sources and join the training set, unless this work has done so."""
    as_of, until = _number(work, "as_of"), _number(work, "until")
    if as_of is None or until is None:
        raise InvalidInput("Training needs the end of its window.", where=work.id)
    if training_set_of(work, store=store) is not None:
        return
    # The same rows make the same training set, whenever they were asked for: the work notes which it is.
    training_set = build_training_set(
        project,
        work.subject,
        as_of=as_of,
        since=_number(work, "since"),
        until=until,
        store=store,
        blobs=blobs,
        now=clock.now(),
        actor=work.requested_by,
    )
    with store.transaction(actor=work.requested_by) as transaction:
        current = transaction.get(Work, work.id) or work
        noted = {**current.args, TRAINING_SET: training_set.content}
        transaction.replace(
            msgspec.structs.replace(current, args=noted, revision=current.revision + 1)
        )


def fit(
    work: Work,
    *,
    project: Project,
    settings: Settings,
    store: Store,
    blobs: Blobs,
    clock: Clock,
    tracker: Tracker,
) -> None:
    """Fit, package and register each candidate that this work has not registered yet."""
    training_set = training_set_of(work, store=store)
    if training_set is None:
        raise NotFound("The training set of this work is not in the store.", where=work.id)
    done = {version.candidate for version in versions_of(work, store=store)}
    for candidate in candidates_of(work):
        if candidate in done:
            continue
        train_candidate(
            project,
            work.subject,
            candidate,
            training_set,
            seed=_number(work, "seed") or 0,
            store=store,
            blobs=blobs,
            tracker=tracker,
            now=clock.now(),
            actor=str(work.args["author"]),
            renews=_number(work, "renews"),
            validation_share=settings.policy.validation_share,
        )


def request_release(context: Context, work: Work) -> bool:
    """Ask for the release of what was trained, where the work says so."""
    if not work.args.get("release"):
        return True
    with context.store.transaction(actor=work.requested_by) as transaction:
        for version in versions_of(work, store=transaction):
            _ask_once(context, transaction, version, actor=work.requested_by)
    return True


def _ask_once(
    context: Context, transaction: Transaction, version: ModelVersion, *, actor: str
) -> None:
    if version.state == "registered" and not transaction.count(
        Work, {"kind": "release", "subject": version.label()}
    ):
        enqueue_release(context, transaction, version, actor=actor)
