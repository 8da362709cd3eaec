"""Decision rows: what was to be decided, when, about whom, with which features, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from keepwell.core.clock import Time
from keepwell.core.errors import InvalidInput, near_miss
from keepwell.core.project import ModelDeclaration, Project, Source
from keepwell.data.features import TIME, join_features
from keepwell.data.frames import microseconds
from keepwell.data.snapshots import load_source, rows_known

ID, UNIT, LABEL, LABEL_TIME, SLICE = "__id", "__unit", "__label", "__label_time", "__slice_"
OWN = (TIME, ID, UNIT, LABEL, LABEL_TIME)


def load_sources(project: Project, model: ModelDeclaration) -> dict[str, pl.DataFrame]:
    """Load every source that the model's decisions or a view read."""
    names = {model.source, *(view.source for view in project.views.values())}
    return {name: load_source(project.source(name)) for name in sorted(names)}


def decision_rows(
    project: Project,
    model_name: str,
    *,
    since: Time | None,
    until: Time,
    as_of: Time | None = None,
    sources: Mapping[str, pl.DataFrame] | None = None,
) -> pl.DataFrame:
    """Give the decisions of [since, until) in the order of time.

    Columns: ``__time`` (int64, microseconds), ``__id``, ``__unit`` (text), ``__label`` (float64, null while
    unknown), ``__label_time`` (int64, null while unknown), ``__slice_<column>`` (text), then the features
    in the model's order. With ``as_of``, whatever became known later is not there: rows, features, labels.
    A row of the decisions' own source is a decision from its timestamp on; its ``known_at`` tells when its
    outcome was known.
    """
    model = project.model(model_name)
    source = project.source(model.source)
    loaded = dict(sources) if sources is not None else load_sources(project, model)
    decisions = _decisions(
        loaded[model.source], source, model, since=since, until=until, as_of=as_of
    )
    if as_of is not None:
        loaded = {
            name: rows_known(frame, project.source(name), as_of=as_of)
            for name, frame in loaded.items()
        }
    features = join_features(project, model, decisions, sources=loaded)
    own = [name for name in decisions.columns if name in OWN or name.startswith(SLICE)]
    return decisions.select(own).hstack(features)


def _decisions(
    frame: pl.DataFrame,
    source: Source,
    model: ModelDeclaration,
    *,
    since: Time | None,
    until: Time,
    as_of: Time | None,
) -> pl.DataFrame:
    where = f"model {model.name!r}"
    for role, column in (
        ("label", model.label),
        ("label's time", model.label_known_at),
        *(("slice", name) for name in model.slices),
        *((("unit", model.unit),) if model.unit else ()),
    ):
        if column not in frame.columns:
            raise InvalidInput(
                f"Its {role} column {column!r} is not in the source {source.name!r}.",
                where=where,
                todo=near_miss(column, frame.columns),
            )
    if not (
        frame.schema[model.label].is_numeric() or frame.schema[model.label] in (pl.Boolean, pl.Null)
    ):
        raise InvalidInput(
            f"Its label column {model.label!r} holds {frame.schema[model.label]}, not numbers.",
            where=where,
            todo="Turn it into numbers in the source: 0 and 1 for a binary task.",
        )
    if not isinstance(frame.schema[model.label_known_at], pl.Datetime | pl.Date):
        raise InvalidInput(
            f"Its label's time column {model.label_known_at!r} holds"
            f" {frame.schema[model.label_known_at]}, not times.",
            where=where,
            todo="Convert it with .str.to_datetime() or .cast(pl.Datetime).",
        )
    at = microseconds(pl.col(source.timestamp).cast(pl.Datetime("us")))
    inside = at < until
    if since is not None:
        inside &= at >= since
    label_time = microseconds(pl.col(model.label_known_at).cast(pl.Datetime("us")))
    label = pl.col(model.label).cast(pl.Float64)
    known = label.is_not_null() & label_time.is_not_null()
    if as_of is not None:
        known &= label_time <= as_of
    identity = (
        pl.concat_str([pl.col(name).cast(pl.String) for name in source.key], separator="|")
        if source.key
        else pl.concat_str(
            [at.cast(pl.String), pl.int_range(pl.len()).cast(pl.String)], separator="|"
        )
    )
    return (
        frame.with_columns(
            at.alias(TIME),
            identity.alias(ID),
            (pl.col(model.unit).cast(pl.String) if model.unit else identity).alias(UNIT),
            pl.when(known).then(label).alias(LABEL),
            pl.when(known).then(label_time).alias(LABEL_TIME),
            *(
                pl.col(name).cast(pl.String).fill_null("(missing)").alias(f"{SLICE}{name}")
                for name in model.slices
            ),
        )
        .filter(inside)
        .sort(TIME, ID)
    )


__all__ = [
    "ID",
    "LABEL",
    "LABEL_TIME",
    "OWN",
    "SLICE",
    "TIME",
    "UNIT",
    "decision_rows",
    "load_sources",
]
