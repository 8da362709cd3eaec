"""What versions earned over a holdout: right where the truth is known, whatever shares and seasons were."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from keepwell.core.clock import HOUR
from keepwell.core.records.traffic import BUCKETS, HOLDOUT, Arm, Period, TrafficPlan
from keepwell.serving.desk.assign import assigned, held_out, in_turns
from keepwell.serving.rollouts.attribution import (
    Sides,
    earned_by_version,
    earned_over_holdout,
    sides,
    worth_of,
)
from keepwell.serving.rollouts.holdouts import standing_since

UPLIFT = {1: 0.0, 2: 0.5}
"""What a version's decisions bring more than those of version 1, which answers who is held out."""
SEASON = {1: 5.0, 2: 1.0, 3: 10.0, 4: 2.0}
"""What decisions bring under each plan: the third falls into a season in which everything sells."""


def arm(name: str, version: int, weight: int) -> Arm:
    return Arm(name=name, model="m", version=version, artefact=f"sha256:{version}", weight=weight)


def plan(revision: int, share: float, holdout: Arm | None, **fields: Any) -> TrafficPlan:
    weight = round(share * BUCKETS)
    arms = (arm("champion", 1, BUCKETS - weight), arm("challenger", 2, weight))
    given: dict[str, Any] = {"salt": "s", "reason": "", "by": "me", "created": revision, **fields}
    return TrafficPlan(endpoint="e", revision=revision, arms=arms, holdout=holdout, **given)


HELD = arm(HOLDOUT, 1, 1_500)
PLANS = [plan(1, 0.5, None), plan(2, 0.05, HELD), plan(3, 0.5, HELD), plan(4, 0.2, HELD)]


def gain(predictions: Any, outcomes: Any) -> Any:
    return outcomes + 0 * predictions


def table(*, units: int = 1500, each: int = 2, seed: int = 0) -> pl.DataFrame:
    """Decisions of units that come back under every plan, as ``read_decisions`` gives them."""
    rng = np.random.default_rng(seed)
    names = [f"u{seed}-{n}" for n in range(units)]
    taste = rng.normal(size=units)
    frames = []
    for one in PLANS:
        held = held_out(names, one.holdout, one.salt)
        places = np.where(held, len(one.arms), assigned(names, one.arms, one.salt))
        versions = np.array([each.version for each in one.answering])[places]
        for _ in range(each):
            value = SEASON[one.revision] + taste + rng.normal(size=units)
            value += np.array([UPLIFT[version] for version in versions])
            frames.append(
                pl.DataFrame(
                    {
                        "unit": names,
                        "plan": np.full(units, one.revision),
                        "arm": [one.answering[place].name for place in places],
                        "outcome": value,
                        "time": np.full(units, one.revision * HOUR),
                        "version": versions,
                    }
                )
            )
    return pl.concat(frames).with_columns(
        chosen=pl.lit(""),
        cohort=pl.lit(""),
        status=pl.lit("ok"),
        output=pl.lit(0.5),
        share=pl.lit(1.0),
    )


def parted(rows: pl.DataFrame, plans: list[TrafficPlan] | None = None) -> Sides:
    found = sides(rows, PLANS if plans is None else plans)
    assert found is not None
    return found


def test_a_version_that_had_more_traffic_in_a_good_season_is_not_given_the_season():
    worth = worth_of(parted(table()), gain)
    found = earned_by_version(worth, PLANS)
    assert sorted(found) == [1, 2]
    first, second = found[1], found[2]
    assert first is not None
    assert second is not None
    assert second.per_decision.lower < UPLIFT[2] < second.per_decision.upper
    assert second.total.estimate == pytest.approx(second.per_decision.estimate * second.decisions)
    assert first.per_decision.lower < 0 < first.per_decision.upper
    # Counted without the shares the season would be taken for the model.
    rows = (worth.table["held"] | (worth.table["assigned"] == 2)).to_numpy()
    plain = worth.of(rows, np.ones(len(rows)))
    assert plain is not None
    assert plain.per_decision.lower > 2


def test_the_known_uplift_of_every_version_is_covered_as_often_as_the_interval_says():
    runs = 40
    covered = {1: 0, 2: 0}
    for seed in range(runs):
        worth = worth_of(parted(table(units=300, each=1, seed=seed)), gain)
        for version, each in earned_by_version(worth, PLANS).items():
            assert each is not None
            covered[version] += not each.per_decision.excludes(UPLIFT[version])
    # 95% of 40 are 38, give or take three standard errors of 1.4.
    assert all(33 <= count <= 40 for count in covered.values()), covered


def test_only_what_came_since_the_holdout_stands_as_it_is_counts():
    rows = table(units=300)
    assert set(parted(rows).table["plan"]) == {2, 3, 4}
    grown = [*PLANS[:3], plan(4, 0.2, arm(HOLDOUT, 1, 2_000))]
    assert set(parted(rows, grown).table["plan"]) == {4}
    since = standing_since(PLANS[::-1])
    assert since is not None
    assert since.revision == 2
    ended = [*PLANS, plan(5, 0.2, None)]
    assert standing_since(ended) is None
    assert sides(rows, ended) is None
    again = [*ended, plan(6, 0.2, HELD)]
    since = standing_since(again)
    assert since is not None
    assert since.revision == 6


def test_who_is_held_out_is_decided_by_chance_and_not_by_who_answered():
    rows = table(units=400).with_columns(
        # For a while the version of those held out could not answer, and the champion did.
        arm=pl.when((pl.col("plan") == 3) & (pl.col("arm") == HOLDOUT))
        .then(pl.lit("champion"))
        .otherwise("arm")
    )
    found = parted(rows)
    units = found.table.unique("unit")
    assert units["held"].to_list() == held_out(units["unit"].to_list(), HELD, "s").tolist()
    assert found.astray == found.table.filter((pl.col("plan") == 3) & pl.col("held")).height > 0
    earned = earned_over_holdout(worth_of(found, gain))
    assert earned is not None
    assert earned.held_out == found.count(held=True)[1]
    # An answer of the fallback counts for the arm that chance chose.
    fell = table(units=400).with_columns(
        chosen=pl.when(pl.col("arm") == HOLDOUT).then(pl.lit(HOLDOUT)).otherwise(pl.lit("")),
        arm=pl.when(pl.col("arm") == HOLDOUT).then(pl.lit("champion")).otherwise("arm"),
    )
    assert parted(fell).astray == 0
    assert parted(fell).decisions(1) == parted(table(units=400)).decisions(1)


def test_what_a_cohort_placed_is_on_neither_side():
    rows = table(units=300)
    testers = rows.with_columns(
        cohort=pl.when(pl.col("unit").str.ends_with("7")).then(pl.lit("user=u7")).otherwise(pl.lit(""))
    )  # fmt: skip
    assert not parted(testers).table["unit"].str.ends_with("7").any()


def test_a_side_with_too_few_units_says_nothing():
    rows = table(units=300).filter(pl.col("arm") != HOLDOUT)
    worth = worth_of(parted(rows), gain)
    assert earned_over_holdout(worth) is None
    assert earned_by_version(worth, PLANS) == {1: None, 2: None}
    unlabelled = worth_of(parted(rows.with_columns(outcome=pl.lit(None, dtype=pl.Float64))), gain)
    assert (earned_over_holdout(unlabelled), earned_by_version(unlabelled, PLANS)) == (None, {})


def test_a_policy_counts_by_the_share_that_it_gave():
    drawn = [PLANS[0], *(plan(n, 0.0, HELD, policy=object()) for n in (2, 3, 4))]
    worth = worth_of(parted(table()), gain)
    found = earned_by_version(worth, drawn)[2]
    assert found is not None
    assert found.per_decision.lower < UPLIFT[2] < found.per_decision.upper


def test_where_arms_take_turns_those_held_out_count_in_the_turns_of_the_version():
    period = Period(seconds=3600)
    turning = [PLANS[0], *(plan(n, 0.5, HELD, period=period) for n in range(2, 14))]
    rng = np.random.default_rng(0)
    names = [f"u{n}" for n in range(600)]
    held = held_out(names, HELD, "s")
    frames = []
    turns = {}
    for one in turning[1:]:
        (place,) = in_turns([one.revision * HOUR], (), one.arms, one.salt, period)
        turns[one.revision] = int(place)
        # The second version's turns are good hours, whoever answers.
        value = 8.0 * place + rng.normal(size=600) + UPLIFT[2] * place * ~held
        frames.append(
            pl.DataFrame(
                {
                    "unit": names,
                    "plan": np.full(600, one.revision),
                    "arm": [HOLDOUT if out else one.arms[place].name for out in held],
                    "outcome": value,
                    "time": np.full(600, one.revision * HOUR),
                }
            )
        )
    assert 2 < sum(turns.values()) < 10
    rows = pl.concat(frames).with_columns(
        chosen=pl.lit(""), cohort=pl.lit(""), status=pl.lit("ok"), output=pl.lit(0.5)
    )
    found = earned_by_version(worth_of(parted(rows, turning), gain), turning)
    first, second = found[1], found[2]
    assert first is not None
    assert second is not None
    assert second.per_decision.lower < UPLIFT[2] < second.per_decision.upper
    assert second.per_decision.lower > 0
    assert first.per_decision.lower < 0 < first.per_decision.upper
