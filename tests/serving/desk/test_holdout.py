"""The holdout: a random part of the units, the same ones for as long as it stands, whatever the arms do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.gateways import COLUMNS, arm, endpoint, hold, signature_of
from tests.serving.test_traffic import policy_state

from keepwell.core.records.traffic import BUCKETS, HOLDOUT, Arm, Cohort
from keepwell.serving.desk.assign import Assignment, Placed, Rows, assigned, bucket_of, held_out
from keepwell.serving.desk.loading import _answerers
from keepwell.serving.editions import EndpointEdition
from keepwell.serving.log.batches import Answerer, Batch

UNITS = [f"u{n}" for n in range(10_000)]
BLUE, GREEN = arm(1, "sha256:0", 7_000), arm(2, "sha256:1", 3_000)


def wanted(units: list[str], arms: Sequence[Arm], weight: int) -> Any:
    """Who answers each unit, as the reference page says it: who is held out, and of the others each by its bucket."""
    held = held_out(units, hold(weight), "s")
    return np.where(held, len(arms), assigned(units, arms, "s"))


def placed(edition: EndpointEdition, units: list[str], matrix: Any = None) -> Placed:
    n = len(units)
    rows = np.zeros((n, 3)) if matrix is None else matrix
    return Assignment(edition, signature_of(COLUMNS)).place(
        Rows(
            names=lambda: [f"id-{k}" for k in range(n)], units=units, times=(), matrix=rows, edges=[0, n], headers=(),
        )
    )  # fmt: skip


def test_a_larger_share_holds_out_the_same_units_and_more():
    before = held_out(UNITS, None, "s")
    assert not before.any()
    for weight in (1, 100, 500, 501, 2_000, 5_000):
        held = held_out(UNITS, hold(weight), "s")
        assert (held | before == held).all()
        # Within five standard errors of its share.
        spread = np.sqrt(len(UNITS) * weight / BUCKETS)
        assert abs(held.sum() - len(UNITS) * weight / BUCKETS) < 5 * spread
        before = held
    # The first few, for ever: another hash would end every comparison that is under way.
    assert np.flatnonzero(before[:12]).tolist() == [0, 2, 4, 11]
    other = held_out(UNITS, hold(5_000), "another salt")
    assert 0.45 < (other == before).mean() < 0.55


def test_who_is_held_out_says_nothing_of_the_bucket_that_decides_the_arm():
    held = held_out(UNITS, hold(1_000), "s")
    buckets = np.array([bucket_of(unit, "s") for unit in UNITS])
    inside = np.bincount(buckets[held] // 1_000, minlength=10)
    expected = held.sum() / 10
    chi_square = float(((inside - expected) ** 2 / expected).sum())
    assert chi_square < 33.7, "above this with a chance of 1 in 10,000 (9 degrees of freedom)"


@pytest.mark.parametrize(
    ("arms", "more"),
    [
        ((BLUE, GREEN), {}),
        ((arm(1, "sha256:0"),), {}),
        ((arm(1, "sha256:0", 0), arm(2, "sha256:1")), {"fallback": "v1"}),
        ((BLUE, GREEN), {"cohorts": (Cohort(arm="v2", field="user", values=("u3", "u4")),)}),
        ((arm(1, "sha256:0"),), {"cohorts": (Cohort(arm="v1", field="user", values=("u3",)),)}),
    ],
)
def test_all_others_have_the_arms_that_they_have_without_a_holdout_and_cohorts_come_first(
    arms, more
):
    edition = endpoint("e", arms=arms, holdout=hold(2_000), **more)
    units = UNITS[:500]
    found = placed(edition, units)
    places = wanted(units, arms, 2_000)
    explicit = {value for cohort in edition.cohorts for value in cohort.values}
    assert found.arms is not None
    assert found.logged is not None
    count = len(arms) + 1
    for k, unit in enumerate(units):
        if unit in explicit:
            assert found.logged[k] == count
            assert edition.arms[found.arms[k]].name == edition.cohorts[0].arm
        else:
            assert found.arms[k] == found.logged[k] == places[k]
    alone = [placed(edition, [unit]) for unit in units[:50]]
    assert [0 if one.arms is None else one.arms[0] for one in alone] == found.arms[:50].tolist()


def test_without_a_holdout_an_endpoint_with_one_arm_still_places_nobody():
    assert Assignment(endpoint("e", arms=[arm(1, "sha256:0")]), None).sole == 0
    held = Assignment(endpoint("e", arms=[arm(1, "sha256:0")], holdout=hold(1)), None)
    assert held.sole == -1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, BUCKETS), st.integers(1, BUCKETS // 2))
def test_propensities_add_up_to_one_and_are_written_as_they_are(weight, out):
    arms = [arm(1, "sha256:0", BUCKETS - weight), arm(2, "sha256:1", weight)]
    answerers = _answerers(endpoint("e", arms=arms, holdout=hold(out)))
    assert sum(each.weight for each in answerers) == answerers[0].out_of == BUCKETS**2
    batch = Batch(
        endpoint="e", plan=1, arms=("v1", "v2", HOLDOUT), answerers=tuple(answerers), arrived=0, mirror=False, rows=3,
        prefix="p-", first=1, chosen=np.arange(3, dtype="<u2").tobytes(), latencies=bytes(4),
        outputs=np.zeros(3).tobytes(),
    )  # fmt: skip
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)
    blue, green, held = (record.propensity for record in again.expand())
    assert held == out / BUCKETS
    assert blue + green + held == pytest.approx(1.0, abs=1e-15)
    assert green == weight * (BUCKETS - out) / BUCKETS**2


def test_an_arm_that_was_logged_before_there_were_holdouts_has_its_weight_of_all_buckets():
    old = msgspec.msgpack.encode(["v1", 1, "sha256:0", 5_000, ""])
    assert msgspec.msgpack.decode(old, type=Answerer).out_of == BUCKETS


def test_a_policy_draws_only_among_those_who_are_not_held_out():
    units = UNITS[:2_000]
    rng = np.random.default_rng(0)
    matrix = np.column_stack([rng.normal(size=2_000), np.ones(2_000), rng.normal(size=2_000)])
    plain = endpoint("e", arms=[BLUE, GREEN], policy=policy_state())
    holding = msgspec.structs.replace(plain, holdout=hold(1_500))
    alone, beside = placed(plain, units, matrix), placed(holding, units, matrix)
    held = held_out(units, hold(1_500), "s")
    assert 200 < held.sum() < 400
    assert alone.arms is not None
    assert beside.arms is not None
    assert alone.propensities is not None
    assert beside.propensities is not None
    assert (beside.arms[held] == 2).all()
    assert (beside.arms[~held] == alone.arms[~held]).all()
    assert (beside.propensities[held] == 0.15).all()
    assert (beside.propensities[~held] == alone.propensities[~held] * 0.85).all()
