"""Training sets: the decisions of a window with features and labels as they were known at a moment."""

from __future__ import annotations

import polars as pl

from keepwell.core.clock import Time, iso
from keepwell.core.errors import InvalidInput
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.store import Store
from keepwell.core.project import Project
from keepwell.core.records.data import TrainingSet
from keepwell.data.decisions import LABEL, decision_rows, load_sources
from keepwell.data.frames import describe_columns, keep_frame, read_frame
from keepwell.data.snapshots import take_snapshot

MINIMUM = 50
"""Labelled decisions below which no split leaves enough to judge by."""


def build_training_set(
    project: Project,
    model_name: str,
    *,
    as_of: Time,
    since: Time | None,
    until: Time,
    store: Store,
    blobs: Blobs,
    now: Time,
    actor: str,
) -> TrainingSet:
    """Snapshot the sources as known at ``as_of`` and join the decisions of [since, until) point-in-time.

    Decisions whose label was not known at ``as_of`` are left out: they have nothing to teach yet.
    Raises InvalidInput if fewer than 50 labelled decisions are left.
    """
    model = project.model(model_name)
    sources = load_sources(project, model)
    snapshots = {
        name: take_snapshot(
            project.source(name),
            as_of=as_of,
            store=store,
            blobs=blobs,
            now=now,
            actor=actor,
            frame=frame,
        ).content
        for name, frame in sources.items()
    }
    rows = decision_rows(
        project, model_name, since=since, until=until, as_of=as_of, sources=sources
    ).filter(pl.col(LABEL).is_not_null())
    if rows.height < MINIMUM:
        raise InvalidInput(
            f"Only {rows.height:,} labelled decisions are known at {iso(as_of)}; {MINIMUM} are needed.",
            where=f"model {model_name!r}",
            todo="Widen the window, or see that labels and their times are there.",
        )
    content = keep_frame(rows, blobs=blobs)
    training_set = TrainingSet(
        content=content,
        model=model_name,
        snapshots=snapshots,
        views={view.name: view.code() for view in project.views.values()}
        | {view.name: view.code() for view in project.on_demand.values()},
        as_of=as_of,
        since=since,
        until=until,
        rows=rows.height,
        columns=describe_columns(rows.select(model.features)),
        created=now,
    )
    with store.transaction(actor=actor) as transaction:
        before = transaction.get(TrainingSet, content)
        if before is not None:
            return before
        transaction.add(training_set)
    return training_set


def read_training_set(training_set: TrainingSet, *, blobs: Blobs) -> pl.DataFrame:
    """Give the rows of a training set; the columns are those of ``decision_rows``. Raises NotFound, Corrupt."""
    return read_frame(training_set.content, blobs=blobs)
