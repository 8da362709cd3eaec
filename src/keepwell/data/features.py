"""Point-in-time features: each decision sees, of every entity, the newest row known at its own moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from keepwell.core.errors import InvalidInput, near_miss, users_own
from keepwell.core.project import FeatureView, ModelDeclaration, OnDemandView, Project
from keepwell.data.frames import microseconds

TIME = "__time"
ORDER = "__order"
KNOWN = "__known"


def run_view(transform: Callable[[Any], Any], frame: pl.DataFrame, *, where: str) -> pl.DataFrame:
    """Run a user's transformation. Raises InvalidInput naming the user's line."""
    with users_own(where, todo="Mend the transformation."):
        result: Any = transform(frame)
    if isinstance(result, pl.LazyFrame):
        result = result.collect()
    if not isinstance(result, pl.DataFrame):
        raise InvalidInput(
            f"It gave a {type(result).__name__}.", where=where, todo="Return a polars DataFrame."
        )
    return result


def join_features(
    project: Project,
    model: ModelDeclaration,
    decisions: pl.DataFrame,
    *,
    sources: Mapping[str, pl.DataFrame],
) -> pl.DataFrame:
    """Give the model's features, one row a decision, in the order of ``decisions``.

    ``decisions`` holds the decision rows with ``__time`` (microseconds); ``sources`` the rows of every
    source that a view reads. A row of a view counts for a decision if it was known at or before the
    decision's time and is not older than the view's ``ttl``. Raises InvalidInput.
    """
    joined = decisions.with_row_index(ORDER)
    for view in project.views.values():
        joined = _join(joined, view, sources)
    for on_demand in project.on_demand.values():
        joined = _add(joined, on_demand)
    missing = [name for name in model.features if name not in joined.columns]
    if missing:
        raise InvalidInput(
            f"No view gives the feature {missing[0]!r}.",
            where=f"model {model.name!r}",
            todo=near_miss(missing[0], joined.columns),
        )
    return joined.sort(ORDER).select(model.features)


def _join(
    joined: pl.DataFrame, view: FeatureView, sources: Mapping[str, pl.DataFrame]
) -> pl.DataFrame:
    where = f"feature view {view.name!r}"
    rows = run_view(view.transform, sources[view.source], where=where)
    needed = [*view.entity, *([view.timestamp] if view.timestamp else [])]
    for name in needed:
        if name not in rows.columns:
            raise InvalidInput(
                f"Its result has no column {name!r}.",
                where=where,
                todo=near_miss(name, rows.columns),
            )
    for name in view.entity:
        if name not in joined.columns:
            raise InvalidInput(
                f"The decisions have no column {name!r} to join it by.",
                where=where,
                todo=near_miss(name, joined.columns),
            )
    features = [name for name in rows.columns if name not in needed]
    clash = [name for name in features if name in joined.columns]
    if clash:
        raise InvalidInput(
            f"The column {clash[0]!r} is there already, in the decisions or from another view.",
            where=where,
            todo="Give it another name.",
        )
    if view.timestamp is None:
        repeated = rows.height - rows.select(view.entity).n_unique()
        if repeated:
            raise InvalidInput(
                f"{repeated:,} rows repeat an entity, though the view has no timestamp.",
                where=where,
            )
        return joined.join(rows, on=list(view.entity), how="left", maintain_order="left")
    known = (
        rows.with_columns(microseconds(pl.col(view.timestamp).cast(pl.Datetime("us"))).alias(KNOWN))
        .drop(view.timestamp)
        .drop_nulls(KNOWN)
        .sort(KNOWN, maintain_order=True)
    )
    # Of several rows known at the same instant the last one given counts, as for any newest value.
    return (
        joined.sort(TIME, maintain_order=True)
        .join_asof(
            known,
            left_on=TIME,
            right_on=KNOWN,
            by=list(view.entity),
            strategy="backward",
            tolerance=view.ttl,
            check_sortedness=False,
        )
        .drop(KNOWN, strict=False)
    )


def _add(joined: pl.DataFrame, view: OnDemandView) -> pl.DataFrame:
    where = f"on-demand view {view.name!r}"
    rows = run_view(view.transform, joined.drop(ORDER), where=where)
    if rows.height != joined.height:
        raise InvalidInput(
            f"It gave {rows.height:,} rows for {joined.height:,} decisions.",
            where=where,
            todo="Compute one row of features for each row, without filtering or joining.",
        )
    return joined.hstack(rows.select(name for name in rows.columns if name not in joined.columns))
