"""What versions have earned over the units that are held out: who is on which side, and what the log is worth."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from keepwell.core.ports.rollouts import Gain
from keepwell.core.records.traffic import BUCKETS, HOLDOUT, TrafficPlan
from keepwell.serving.desk.assign import held_out, in_turns
from keepwell.serving.rollouts.appraisal import outputs_of
from keepwell.serving.rollouts.holdouts import standing_since
from keepwell.stats.attribution import AttributedValue, attribute_value

Floats = npt.NDArray[np.float64]


class Sides(msgspec.Struct, frozen=True):
    """An endpoint's decisions since its holdout stands as it does, those outside and those inside."""

    table: pl.DataFrame
    """Of ``read_decisions``, with the columns ``held`` and ``assigned`` (the version that chance or a policy chose)."""
    astray: int
    """Decisions of units that are held out which another arm answered."""

    def count(self, *, held: bool) -> tuple[int, int]:
        """Give the units and the decisions of one side."""
        own = self.table.filter(pl.col("held") == held)
        return own["unit"].n_unique(), own.height

    def decisions(self, version: int) -> int:
        """Count a version's decisions outside."""
        return self.table.filter(~pl.col("held") & (pl.col("assigned") == version)).height


def with_held(table: pl.DataFrame, plans: Sequence[TrafficPlan]) -> pl.DataFrame:
    """Add to decisions of ``read_decisions`` the column ``held``: whether the unit is held out.

    It is null for decisions before the holdout stood as it does, and for those that a cohort placed, because cohorts
    come first. The hash says who is held out, not who answered: a unit whose version could not answer for a while stays
    where chance put it, and what it earned meanwhile makes the gain smaller, never larger.
    """
    since = standing_since(plans)
    if since is None:
        return table.with_columns(held=pl.lit(None, dtype=pl.Boolean))
    units = table["unit"].unique()
    inside = pl.DataFrame(
        {"unit": units, "held": held_out(units.to_list(), since.holdout, since.salt)},
        schema_overrides={"unit": table.schema["unit"]},
    )
    by_chance = (pl.col("plan") >= since.revision) & (pl.col("cohort") == "")
    return table.join(inside, on="unit", how="left", maintain_order="left").with_columns(
        held=pl.when(by_chance).then("held")
    )


def sides(table: pl.DataFrame, plans: Sequence[TrafficPlan]) -> Sides | None:
    """Part the decisions of ``read_decisions`` into both sides; None where nobody is held out."""
    if standing_since(plans) is None:
        return None
    versions = pl.DataFrame(
        [
            {"plan": plan.revision, "chance": arm.name, "assigned": arm.version}
            for plan in plans
            for arm in plan.answering
        ],
        schema={"plan": pl.Int64, "chance": pl.String, "assigned": pl.Int64},
    )
    counted = (
        with_held(table, plans)
        .filter(pl.col("held").is_not_null())
        .with_columns(chance=pl.when(pl.col("chosen") == "").then("arm").otherwise("chosen"))
        .join(versions, on=["plan", "chance"], how="left", maintain_order="left")
    )
    astray = counted.filter(pl.col("held") & (pl.col("chance") != HOLDOUT)).height
    return Sides(counted, astray)


class Worth(msgspec.Struct, frozen=True):
    """What labelled decisions were worth; columns of shape (n,)."""

    table: pl.DataFrame
    """The same rows."""
    value: Floats

    def of(self, rows: npt.NDArray[np.bool_], weights: Floats) -> AttributedValue | None:
        """Compare some rows with those inside; None while a side has fewer than two units."""
        held = self.table["held"].to_numpy()
        rows = rows & (weights > 0)
        # Numbers in place of names: they are sorted several times.
        units = self.table["unit"].cast(pl.Categorical).to_physical().to_numpy()
        if any(len(np.unique(units[rows & (held == side)])) < 2 for side in (True, False)):
            return None
        return attribute_value(
            self.value[rows], held[rows], units=units[rows], weights=weights[rows]
        )


def worth_of(found: Sides, gain: Gain) -> Worth:
    """Price the decisions whose answer and outcome are known."""
    known = found.table.filter(
        pl.col("outcome").is_not_null()
        & pl.col("output").is_not_null()
        & pl.col("status").is_in(["ok", "fallback"])
    )
    if not known.height:
        return Worth(known, np.zeros(0))
    value = gain(outputs_of(known["output"]), known["outcome"].to_numpy())
    return Worth(known, np.asarray(value, dtype=np.float64))


def earned_over_holdout(worth: Worth) -> AttributedValue | None:
    """Compare all decisions outside the holdout with those inside: what the whole of the rollouts has brought."""
    n = worth.table.height
    return worth.of(np.ones(n, dtype=np.bool_), np.ones(n)) if n else None


def earned_by_version(
    worth: Worth, plans: Sequence[TrafficPlan]
) -> dict[int, AttributedValue | None]:
    """Compare each version's decisions with those inside the holdout; None where they are too few.

    A version had different shares under different plans. A decision inside counts by the chance that the version would
    have had of it, had it been outside, so that both sides speak of the same time.
    """
    table = worth.table
    if not table.height:
        return {}
    held = table["held"].to_numpy()
    outside = ~held & (table["chance"] != HOLDOUT).to_numpy()
    assigned = table["assigned"].fill_null(0).to_numpy()
    found: dict[int, AttributedValue | None] = {}
    for version in np.unique(assigned[outside & (assigned > 0)]).tolist():
        own = outside & (assigned == version)
        weights = np.ones(table.height)
        weights[held] = _chances(version, table, plans, own=own, outside=outside)[held]
        found[version] = worth.of(own | held, weights)
    return found


def _chances(
    version: int,
    table: pl.DataFrame,
    plans: Sequence[TrafficPlan],
    *,
    own: npt.NDArray[np.bool_],
    outside: npt.NDArray[np.bool_],
) -> Floats:
    """Give the chance of a version on each row of what is not held out, shape (n,).

    It is as declared; whose turn it was, where arms take turns; as counted, where a policy or a group decides.
    """
    revision = table["plan"].to_numpy()
    times = table["time"].to_numpy()
    chances = np.zeros(len(revision))
    for plan in plans:
        under = revision == plan.revision
        its = np.array([arm.version == version for arm in plan.arms], dtype=np.bool_)
        if not under.any() or not its.any():
            continue
        if plan.policy is not None or (plan.period is not None and plan.period.field):
            chances[under] = (own & under).sum() / max((outside & under).sum(), 1)
        elif plan.period is not None:
            chances[under] = its[in_turns(times[under], (), plan.arms, plan.salt, plan.period)]
        else:
            chances[under] = (
                sum(arm.weight for arm in plan.arms if arm.version == version) / BUCKETS
            )
    return chances
