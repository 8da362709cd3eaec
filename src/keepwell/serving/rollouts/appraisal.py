"""What a version would have earned on decisions that are in the log, before it gets their traffic.

Two ways. Where chance gave it a part of the decisions (A/B, bandit), their propensities stand for the rest, and the
outcome may depend on the answer. Where others answered, its answers are computed anew and priced by the outcomes in
the log: a replay, right only if the outcome does not depend on who answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from keepwell.core.clock import DAY, Time, iso
from keepwell.core.errors import InvalidInput
from keepwell.core.ports.rollouts import Gain
from keepwell.core.records.appraisals import Appraisal, Range, Way
from keepwell.core.records.models import ModelVersion, Signature
from keepwell.core.records.traffic import Arm, TrafficPlan
from keepwell.stats.attribution import attribute_value
from keepwell.stats.intervals import FEW_CLUSTERS, Interval
from keepwell.stats.off_policy import (
    LEAST_EFFECTIVE,
    EffectiveSampleTooSmall,
    doubly_robust,
    snips,
)
from keepwell.stats.outcome_model import crossfit_predictions
from keepwell.stats.value import value_against_baseline
from keepwell.training.predictors import Predictor

Floats = npt.NDArray[np.float64]

CHUNK = 10_000
"""Rows that a predictor is shown at once."""


def appraise(
    table: pl.DataFrame,
    version: ModelVersion,
    *,
    endpoint: str,
    span: tuple[Time, Time],
    predictor: Callable[[], Predictor],
    gain: Gain,
    unit: str,
    signatures: Mapping[int, Signature],
    plans: Iterable[TrafficPlan],
    trained_until: Time | None = None,
    by_unit: bool = False,
    way: Way | None = None,
) -> Appraisal:
    """Tell what the version would have earned on a table of ``read_decisions``.

    A column ``held`` (``attribution.with_held``) says whose units are held out, to compare with those too.

    ``way`` None: by propensities where chance gave the version a part of the decisions, else by replay. ``signatures``
    are those of the versions in the log, ``plans`` those of the endpoint. Raises EffectiveSampleTooSmall, InvalidInput
    for a log without what the version needs.
    """
    kept = table if trained_until is None else table.filter(pl.col("time") >= trained_until)
    if "held" not in kept.columns:
        kept = kept.with_columns(held=pl.lit(None, dtype=pl.Boolean))
    known = kept.filter(
        pl.col("outcome").is_not_null()
        & pl.col("output").is_not_null()
        & pl.col("status").is_in(["ok", "fallback"])
    )
    if not known.height:
        trained = f", {table.height - kept.height:,} of them in its training time"
        raise InvalidInput(
            f"None of the {table.height:,} decisions from {iso(span[0])} to {iso(span[1])} can be used{trained}"
            f"; {kept.height:,} others have no outcome yet.",
            where=f"endpoint {endpoint!r}",
            todo="Look further back with --since, or wait for outcomes.",
        )
    plans = list(plans)
    drawn = _drawn(known, version, plans)
    chance = drawn.filter(pl.col("own") & (pl.col("propensity") < 1))
    chosen: Way = way or ("propensity" if chance.height else "replay")
    shared = {
        "version": version.label(),
        "endpoint": endpoint,
        "way": chosen,
        "unit": unit,
        "since": span[0],
        "until": span[1],
        "decisions": table.height,
        "trained_on": table.height - kept.height,
        "unknown": kept.height - known.height,
    }
    notes = []
    if (known["share"] < 1).any():
        notes.append("The log is sampled: sums are those of the decisions that were written down.")
    if chosen == "propensity":
        clusters = _clusters(drawn, plans, by_unit=by_unit)
        return _weighed(drawn, gain, clusters, shared=shared, notes=notes)
    return _replayed(known, version, predictor(), gain, signatures, shared=shared, notes=notes)


def _drawn(
    known: pl.DataFrame, version: ModelVersion, plans: Iterable[TrafficPlan]
) -> pl.DataFrame:
    """Keep what chance assigned under plans that let the version answer, and mark what it was given."""
    arms = [
        {"plan": plan.revision, "assigned": arm.name}
        for plan in plans
        for arm in _arms_of(plan, version)
    ]
    own = pl.DataFrame(arms, schema={"plan": pl.Int64, "assigned": pl.String}).unique()
    return (
        known.filter((pl.col("cohort") == "") & pl.col("plan").is_in(own["plan"].to_list()))
        .with_columns(
            assigned=pl.when(pl.col("chosen") == "").then("arm").otherwise("chosen"),
        )
        .join(own.with_columns(own=pl.lit(value=True)), on=["plan", "assigned"], how="left")
        .with_columns(pl.col("own").fill_null(value=False))
        .sort("time", "id")
    )


def _clusters(
    drawn: pl.DataFrame, plans: Iterable[TrafficPlan], *, by_unit: bool
) -> npt.NDArray[Any] | None:
    """Name what chance drew as one: a turn where arms took turns, else a unit; None if each row was drawn by itself."""
    if not drawn.height:
        return None
    lengths = {plan.revision: plan.period.seconds for plan in plans if plan.period is not None}
    rows = zip(drawn["plan"], drawn["time"], drawn["unit"], strict=True)
    keys = [
        f"turn {time // (lengths[plan] * 1_000_000)}" if plan in lengths else f"unit {unit}"
        for plan, time, unit in rows
    ]
    several = len(set(keys)) > 1 and (by_unit or any(p in lengths for p in drawn["plan"].unique()))
    return np.array(keys) if several else None


def _arms_of(plan: TrafficPlan, version: ModelVersion) -> list[Arm]:
    """List the version's arms; that of the units held out only where it has no other, or it would count twice."""
    own = [arm for arm in plan.arms if arm.version == version.version]
    held = plan.holdout
    return own or ([held] if held is not None and held.version == version.version else [])


def _weighed(
    drawn: pl.DataFrame,
    gain: Gain,
    clusters: npt.NDArray[Any] | None,
    *,
    shared: dict[str, Any],
    notes: list[str],
) -> Appraisal:
    if drawn.height < 2:
        raise EffectiveSampleTooSmall(0.0, LEAST_EFFECTIVE, drawn.height)
    worth = _worth(gain, outputs_of(drawn["output"]), drawn)
    arm = drawn["own"].to_numpy().astype(np.int64)
    propensity = drawn["propensity"].to_numpy()
    # The weights alone first: they refuse a log that says too little, before a model is fitted to it.
    alone = snips(worth, propensity, arm, clusters=clusters)
    predicted = crossfit_predictions(
        _numbers(drawn), arm, worth, np.random.default_rng(0), arms=2, clusters=clusters
    )
    found = doubly_robust(worth, propensity, arm, [0.0, 1.0], predicted, clusters=clusters)
    notes.append(
        "It answered a part of these decisions by chance; their propensities stand for the rest"
        " (doubly robust). The outcome may depend on the answer."
    )
    if found.weights.excludes(1.0):
        notes.append(
            f"The mean weight is {found.weights.estimate:.3g}, and its interval leaves out 1:"
            " the logged propensities are not those that chance had. Do not rely on this."
        )
    return Appraisal(
        over_holdout=_over_holdout(worth, drawn, arm == 1),
        rows=drawn.height,
        value=_range(found.value),
        logged=found.logged,
        gain=_range(found.gain),
        total=_range(found.gain, drawn.height),
        clusters=found.value.clusters,
        effective=found.effective,
        snips=_range(alone.value),
        notes=tuple(notes),
        **shared,
    )


def _over_holdout(worth: Floats, drawn: pl.DataFrame, own: npt.NDArray[np.bool_]) -> Range | None:
    """Weigh the version's decisions up to all that are not held out, and compare them with those that are."""
    held = drawn["held"].fill_null(value=False).to_numpy()
    own = own & drawn["held"].is_not_null().to_numpy() & ~held
    units = drawn["unit"].to_numpy()
    if any(len(np.unique(units[side])) < LEAST_EFFECTIVE for side in (own, held)):
        return None
    rows = own | held
    weights = np.where(held, 1.0, 1 / drawn["propensity"].to_numpy())
    found = attribute_value(worth[rows], held[rows], units=units[rows], weights=weights[rows])
    return _range(found.per_decision)


def _replayed(
    known: pl.DataFrame,
    version: ModelVersion,
    predictor: Predictor,
    gain: Gain,
    signatures: Mapping[int, Signature],
    *,
    shared: dict[str, Any],
    notes: list[str],
) -> Appraisal:
    if known.height < LEAST_EFFECTIVE:
        raise EffectiveSampleTooSmall(known.height, LEAST_EFFECTIVE, known.height)
    days = known["time"].to_numpy() // DAY
    if len(np.unique(days)) < 2:
        raise InvalidInput(
            f"The {known.height:,} decisions are of one day, and days tell chance from gain.",
            where=f"endpoint {shared['endpoint']!r}",
            todo="Look further back with --since.",
        )
    parts = []
    for (number,), rows in known.group_by("version", maintain_order=True):
        inputs = _inputs(rows, version, signatures.get(int(str(number))), int(str(number)))
        answers = np.concatenate(
            [predictor.predict(inputs[k : k + CHUNK]) for k in range(0, len(inputs), CHUNK)]
        )
        parts.append(
            (
                rows["time"].to_numpy() // DAY,
                _worth(gain, np.asarray(answers, dtype=np.float64), rows),
                _worth(gain, outputs_of(rows["output"]), rows),
                rows["held"].fill_null(value=False).to_numpy(),
            )
        )
    day, ours, theirs, held = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = value_against_baseline(ours, theirs, clusters=day)
    alone = value_against_baseline(ours, np.zeros_like(ours), clusters=day)
    over = None
    if held.sum() >= LEAST_EFFECTIVE and len(np.unique(day[held])) > 1:
        inside = value_against_baseline(ours[held], theirs[held], clusters=day[held])
        over = _range(inside.per_decision)
    notes.insert(
        0,
        "A replay: others answered, and its answers are priced by the outcomes in the log. That is right where the"
        " outcome is the same whoever answers, and wrong where the answer changes it.",
    )
    if found.per_decision.clusters < FEW_CLUSTERS:
        notes.append(
            f"The interval is by {found.per_decision.clusters} days; under {FEW_CLUSTERS} it covers less than it says."
        )
    return Appraisal(
        rows=known.height,
        value=_range(alone.per_decision),
        logged=float(theirs.mean()),
        gain=_range(found.per_decision),
        total=_range(found.total),
        clusters=found.per_decision.clusters,
        over_holdout=over,
        notes=tuple(notes),
        **shared,
    )


def _worth(gain: Gain, outputs: Floats, rows: pl.DataFrame) -> Floats:
    return np.asarray(gain(outputs, rows["outcome"].to_numpy()), dtype=np.float64)


def outputs_of(column: pl.Series) -> Floats:
    """Give logged answers as numbers, shape (n,) or (n, classes)."""
    """Give logged answers as numbers, shape (n,) or (n, classes)."""
    if column.dtype == pl.String:  # answers of several types, as JSON
        return np.array([msgspec.json.decode(text) for text in column], dtype=np.float64)
    return np.array(column.to_list(), dtype=np.float64)


def _inputs(
    rows: pl.DataFrame, version: ModelVersion, logged: Signature | None, by: int
) -> npt.NDArray[Any]:
    """Give logged features as the version wants them, shape (n, d): by name, not by place."""
    wanted = version.signature
    if wanted is None or logged is None:
        raise InvalidInput(
            f"Version {by if wanted else version.version} has no signature, so its features have no names.",
            where=version.label(),
        )
    missing = [name for name in wanted.names if name not in logged.names]
    if missing:
        raise InvalidInput(
            f"It needs {missing[0]!r}, which decisions of version {by} were not logged with.",
            where=version.label(),
            todo="Let it see traffic beside the champion: keepwell rollout start ... --strategy shadow.",
        )
    columns = [rows[f"f{logged.names.index(name)}"] for name in wanted.names]
    if wanted.numeric:
        try:
            return np.column_stack(
                [column.cast(pl.Float64).fill_null(np.nan).to_numpy() for column in columns]
            )
        except pl.exceptions.InvalidOperationError as error:
            raise InvalidInput(
                f"Logged features are no numbers: {str(error).splitlines()[0]}",
                where=version.label(),
            ) from error
    table = np.empty((rows.height, len(columns)), dtype=object)
    for k, column in enumerate(columns):
        table[:, k] = column.to_list()
    return table


def _numbers(rows: pl.DataFrame) -> Floats:
    """Give the features that are numbers, what is missing as their mean: they only sharpen the estimate."""
    columns = []
    for name in rows.columns:
        if not (name[0] == "f" and name[1:].isdigit()) or not (
            rows[name].dtype.is_numeric() or rows[name].dtype == pl.Boolean
        ):
            continue
        column = rows[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        finite = np.isfinite(column)
        if finite.any():
            columns.append(np.where(finite, column, column[finite].mean()))
    return np.column_stack(columns) if columns else np.zeros((rows.height, 0))


def _range(found: Interval, times: int = 1) -> Range:
    return Range(estimate=found.estimate * times, low=found.lower * times, high=found.upper * times)
