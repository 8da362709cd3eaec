"""What a version would have earned: right where the truth is known, refused where the log cannot tell."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from tests.serving.log.test_compaction import outcome, prediction

from keepwell.core.clock import DAY, HOUR
from keepwell.core.errors import InvalidInput
from keepwell.core.records.data import Column
from keepwell.core.records.models import ModelVersion, Signature
from keepwell.core.records.traffic import Arm, TrafficPlan
from keepwell.serving.log.decisions import read_decisions
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.rollouts.appraisal import appraise
from keepwell.stats.off_policy import EffectiveSampleTooSmall

DAYS = 20
ROWS = 4000


def signature(*names: str) -> Signature:
    return Signature(
        inputs=tuple(Column(name=name, dtype="float64") for name in names), task="regression"
    )


def version(number: int, *names: str) -> ModelVersion:
    return ModelVersion(
        model="m", version=number, artefact=f"sha256:{number}", signature=signature(*(names or ("x", "z"))),
        author="me", created=0, updated=0,
    )  # fmt: skip


def plan(*arms: tuple[str, int, int], revision: int = 1) -> TrafficPlan:
    return TrafficPlan(
        endpoint="e", revision=revision, salt="s", reason="", by="me", created=0,
        arms=tuple(
            Arm(name=name, model="m", version=number, artefact=f"sha256:{number}", weight=weight)
            for name, number, weight in arms
        ),
    )  # fmt: skip


class FirstInput:
    """Answers with its first input."""

    def predict(self, rows: Any) -> Any:
        return np.asarray(rows[:, 0], dtype=np.float64)


def gain(predictions: Any, outcomes: Any) -> Any:
    """What the outcome is worth, less what it cost to answer so high."""
    return outcomes - 0.1 * predictions


def live(folder, *, share=0.25):
    """A log on which chance drew the arm, and v2's answers bring 1 more; each row's features are x and z."""
    rng = np.random.default_rng(0)
    writer = SegmentWriter(folder, name="w")
    predictions, outcomes = [], []
    for n in range(ROWS):
        second = bool(rng.random() < share)
        x, z = float(rng.normal()), float(rng.normal())
        at = int(n * DAYS * DAY / ROWS)
        predictions.append(
            prediction(
                f"d{n}", time=at, arrived=at, unit=f"d{n}", arms=("v1", "v2") if share else ("v1",),
                arm="v2" if second else "v1", version=2 if second else 1,
                propensity=share if second else 1 - share, features=(x, z),
                output=z if second else x,
            )
        )  # fmt: skip
        value = 3 + 2 * x + second + float(rng.normal())
        outcomes.append(outcome(f"d{n}", time=at + HOUR, arrived=at + HOUR, value=value))
    writer.append(predictions, outcomes)
    writer.close()
    return read_decisions(folder, "e", 0, DAYS * DAY)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A log in which v2 has a quarter."""
    return live(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A log in which v1 answers alone."""
    return live(tmp_path_factory.mktemp("alone"), share=0.0)


def told(table: pl.DataFrame, number: int = 2, *names: str, **given: Any):
    asked: dict[str, Any] = {
        "endpoint": "e", "span": (0, DAYS * DAY), "predictor": FirstInput, "gain": gain, "unit": "USD",
        "signatures": {1: signature("x", "z"), 2: signature("x", "z")},
        "plans": [plan(("v1", 1, 7500), ("v2", 2, 2500))],
    } | given  # fmt: skip
    return appraise(table, version(number, *names), **asked)


def test_what_an_arm_with_a_quarter_would_have_earned_alone_is_found(drawn):
    # In truth v2 earns 4 a decision, and the log, with a quarter of it, 3.25 (its answers cost 0 on average).
    found = told(drawn)
    assert found.way == "propensity"
    assert found.value.low < 4.0 < found.value.high
    assert found.gain.low < 0.75 < found.gain.high
    assert found.gain.low > 0.6
    assert found.effective == pytest.approx(ROWS / 4, rel=0.1)
    assert found.snips is not None
    # The model of the outcome knows x, which is most of what the outcome varies by.
    assert found.snips.high - found.snips.low > 1.5 * (found.value.high - found.value.low)
    assert found.total.estimate == pytest.approx(found.gain.estimate * found.rows)


def test_a_replay_of_outcomes_that_depend_on_the_answer_misses_the_truth(drawn):
    found = told(drawn, way="replay")
    assert found.value.high < 4.0
    assert "wrong where the answer changes it" in found.notes[0]


def test_a_log_that_took_too_few_of_its_choices_is_refused(tmp_path):
    table = live(tmp_path, share=0.005)
    with pytest.raises(
        EffectiveSampleTooSmall, match="effective sample must be at least 50, received"
    ):
        told(table)


def test_plans_in_which_it_could_not_answer_say_nothing_of_it(drawn):
    table = drawn
    apart = table.with_columns(
        plan=pl.when(pl.col("time") < DAYS * DAY // 2).then(1).otherwise(2).cast(pl.Int64)
    )
    found = told(apart, plans=[plan(("v1", 1, 7500), ("v2", 2, 2500)), plan(("v1", 1, 10_000), revision=2)])  # fmt: skip
    assert found.rows == ROWS // 2
    with pytest.raises(EffectiveSampleTooSmall):
        told(apart, plans=[plan(("v1", 1, 10_000))], way="propensity")


def test_decisions_that_a_cohort_placed_are_not_those_of_chance(drawn):
    table = drawn.with_columns(
        cohort=pl.when(pl.col("outcome") > 3).then(pl.lit("x-tester=ann")).otherwise(pl.lit(""))
    )
    assert told(table).rows == table.filter(pl.col("outcome") <= 3).height


def test_an_answer_of_the_fallback_counts_for_the_arm_that_chance_chose(drawn):
    table = drawn
    failed = pl.col("arm") == "v2"
    fell = table.with_columns(
        chosen=pl.when(failed).then(pl.lit("v2")).otherwise(pl.lit("")),
        arm=pl.lit("v1"),
        status=pl.when(failed).then(pl.lit("fallback")).otherwise(pl.lit("ok")),
    )
    assert told(fell).effective == told(table).effective


def test_propensities_that_chance_did_not_have_are_told(drawn):
    table = drawn.with_columns(propensity=pl.col("propensity") * 0.5)
    assert any("not those that chance had" in note for note in told(table).notes)


def test_a_replay_pairs_its_own_answers_with_those_that_were_sent_by_day(alone):
    table = alone
    found = told(table, 3, "z")
    assert (found.way, found.clusters, found.rows) == ("replay", DAYS, ROWS)
    difference = 0.1 * (table["f0"] - table["f1"]).to_numpy()
    assert found.gain.estimate == pytest.approx(difference.mean())
    by_day = np.bincount(table["time"].to_numpy() // DAY, weights=difference - difference.mean())
    error = np.sqrt((by_day**2).sum() * DAYS / (DAYS - 1)) / ROWS
    assert found.gain.high - found.gain.low == pytest.approx(2 * 2.0930 * error, rel=1e-4)
    assert found.total.estimate == pytest.approx(difference.sum())


def test_a_version_that_answered_alone_gains_nothing_on_its_own_log(alone):
    found = told(alone, 1, plans=[plan(("v1", 1, 10_000))])
    assert found.way == "replay"
    assert (found.gain.estimate, found.gain.low, found.gain.high) == (0.0, 0.0, 0.0)


def test_decisions_of_its_training_time_are_left_out(alone):
    table = alone
    found = told(table, 3, trained_until=DAYS * DAY // 2)
    assert (found.trained_on, found.rows) == (ROWS // 2, ROWS // 2)
    with pytest.raises(InvalidInput, match="4,000 of them in its training time"):
        told(table, 3, trained_until=DAYS * DAY)


def test_decisions_without_an_outcome_are_counted_and_left_out(alone):
    table = alone
    table = table.with_columns(outcome=pl.when(pl.col("f0") > 0).then("outcome"))
    found = told(table, 3)
    assert found.unknown == table["outcome"].null_count() > 0
    assert found.rows + found.unknown == ROWS


@pytest.mark.parametrize(
    ("names", "says"), [(("x", "other"), "It needs 'other', which decisions of version 1")]
)
def test_a_feature_that_was_not_logged_is_named(alone, names, says):
    with pytest.raises(InvalidInput, match=says):
        told(alone, 3, *names)


def test_days_too_few_to_tell_chance_from_gain_are_refused_or_told(alone):
    table = alone
    with pytest.raises(InvalidInput, match="are of one day"):
        told(table.filter(pl.col("time") < DAY), 3)
    with pytest.raises(EffectiveSampleTooSmall, match="received 40"):
        told(table.head(40), 3)
    few = told(table.filter(pl.col("time") < 5 * DAY), 3)
    assert any("by 5 days" in note for note in few.notes)


def test_an_appraisal_is_json_and_back(drawn):
    found = told(drawn)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_a_version_is_compared_with_the_units_that_are_held_out(drawn, alone):
    fifth = pl.int_range(pl.len()) % 5 == 0
    found = told(drawn.with_columns(held=fifth & (pl.col("arm") == "v1")))
    # In truth v2 earns 4 a decision, and those held out, whom v1 answers, 3.
    assert found.over_holdout is not None
    assert 0.5 < found.over_holdout.low < 1.0 < found.over_holdout.high
    assert told(drawn).over_holdout is None
    found = told(alone.with_columns(held=fifth), 3, "z")
    held = alone.filter(fifth)
    assert found.over_holdout is not None
    assert found.over_holdout.estimate == pytest.approx(
        0.1 * (held["f0"] - held["f1"]).to_numpy().mean()
    )
