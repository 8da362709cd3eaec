"""Promises of attribution: what a holdout, a switchback and a factorial plan may be asked."""

import numpy as np
import pytest
from scipy import special

from keepwell.stats._skewness import bounds
from keepwell.stats.attribution import attribute_value
from keepwell.stats.factorial import factorial_effects
from keepwell.stats.intervals import clustered_mean_interval
from keepwell.stats.switchback import LEARN, switchback_effect, switchback_sequence


def test_the_gain_is_the_difference_of_means_with_welchs_error() -> None:
    rng = np.random.default_rng(0)
    held = rng.random(3000) < 0.2
    value = rng.normal(10, 2, size=3000) + ~held
    found = attribute_value(value, held)
    a, b = value[~held], value[held]
    assert found.per_decision.estimate == pytest.approx(a.mean() - b.mean())
    error = np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
    assert found.per_decision.standard_error == pytest.approx(error)
    assert found.total.upper == pytest.approx(found.per_decision.upper * a.size)
    assert (found.decisions, found.held_out, found.proven) == (a.size, b.size, True)
    assert found.share == pytest.approx(found.per_decision.estimate / b.mean())


def test_orders_of_one_customer_are_one_piece_of_evidence() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(400), 25)
    held = unit % 4 == 0
    value = rng.normal(size=400)[unit]
    grouped = attribute_value(value, held, units=unit).per_decision
    by_side = [clustered_mean_interval(value[s], unit[s]).standard_error for s in (held, ~held)]
    assert grouped.standard_error == pytest.approx(np.hypot(by_side[0], by_side[1]))
    assert grouped.clusters == 400
    assert grouped.standard_error > 4 * attribute_value(value, held).per_decision.standard_error


def test_a_customer_on_both_sides_of_a_holdout_is_refused() -> None:
    with pytest.raises(ValueError, match="one side each, received 1 both"):
        attribute_value([1.0, 2, 3, 4, 5], [0, 0, 0, 1, 1], units=[1, 2, 3, 3, 4])
    with pytest.raises(ValueError, match="5 outside the holdout and 0 inside"):
        attribute_value([1.0, 2, 3, 4, 5], [0] * 5)


def test_bounds_lean_with_the_skew_and_are_students_without() -> None:
    even = np.repeat([-1.0, 1.0], 50)
    assert bounds(even, 0.95) == pytest.approx((-19.59964, 19.59964))
    assert bounds(even, 0.95, freedom=9)[1] == pytest.approx(10 * special.stdtrit(9, 0.975))
    rare = np.r_[np.full(95, -0.05), np.full(5, 0.95)]
    below, above = bounds(rare, 0.95)
    assert above > -below > 0
    # Near the exact answer where one is known: a share of 5 in 100 (Clopper and Pearson).
    exact = special.betaincinv(6, 95, 0.975) - 0.05
    assert above / 100 == pytest.approx(exact, rel=0.15)
    assert bounds(np.zeros(9), 0.95) == (0.0, 0.0)


def test_a_burn_in_removes_what_the_last_block_left_behind() -> None:
    rng = np.random.default_rng(0)
    arm = rng.integers(2, size=400)
    block, since = np.repeat(np.arange(400), 10), np.tile(np.arange(10.0), 400)
    working = np.where(since < 5, np.roll(arm, 1)[block], arm[block])
    value = rng.normal(size=4000) + 3.0 * working
    assert switchback_effect(value, block, arm[block]).excludes(3.0)
    waited = switchback_effect(value, block, arm[block], since=since, burn_in=5)
    assert not waited.excludes(3.0)
    assert waited.rows == 2000


def test_strata_take_the_hour_out_of_the_comparison() -> None:
    rng = np.random.default_rng(2)
    block = np.repeat(np.arange(240), 5)
    hour = block % 12
    arm = rng.integers(2, size=240)[block]
    value = 10.0 * hour + rng.normal(size=block.size) + arm
    plain, by_hour = (switchback_effect(value, block, arm, strata=s) for s in (None, hour))
    assert by_hour.standard_error < 0.1 * plain.standard_error
    assert not by_hour.excludes(1.0)


def test_a_switchback_that_cannot_be_judged_is_refused() -> None:
    block = np.repeat(np.arange(4), 2)
    value = np.arange(8.0)
    with pytest.raises(ValueError, match="treated must be one for a block"):
        switchback_effect(value, block, [0, 1, 0, 0, 1, 1, 1, 1])
    with pytest.raises(
        ValueError, match="two blocks of each arm after the burn-in, received 1 with treated=1"
    ):
        switchback_effect(value, block, [0, 0, 0, 0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="since must be given"):
        switchback_effect(value, block, [0, 0, 0, 0, 1, 1, 1, 1], burn_in=1.0)
    with pytest.raises(ValueError, match="received 0"):
        switchback_effect(value, block, [0, 0, 0, 0, 1, 1, 1, 1], since=[0.0] * 8, burn_in=1.0)


def test_a_switchback_may_be_looked_at_after_every_block_whatever_hours_and_days_do() -> None:
    missed, found = 0, 0
    hour = np.arange(24 * 10)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        world = 5 * np.sin(hour / 24 * 6.28) + rng.normal(size=hour.size).cumsum() / 4
        arm = rng.integers(2, size=hour.size)
        for n in range(38, hour.size, 20):
            seen = slice(0, n)
            found_then = switchback_sequence(
                world[seen] + 3.0 * arm[seen], hour[seen], arm[seen], season=hour[seen] % 24
            )
            assert found_then.blocks == n - LEARN
            if found_then.excludes(3.0):
                missed += 1
                break
        found += found_then.excludes(0.0)
    assert missed <= 4
    assert found >= 30


def test_the_order_of_blocks_in_a_log_changes_nothing_and_groups_are_expected_each_by_itself() -> (
    None
):
    rng = np.random.default_rng(4)
    start = np.repeat(np.arange(100), 3)
    group = np.tile(["far", "near", "mid"], 100)
    arm = rng.random(300) < 0.3
    value = 20.0 * (group == "far") + arm + rng.normal(size=300)
    rows = rng.integers(1, 9, size=300)
    mixed = rng.permutation(300)
    one, other = (
        switchback_sequence(value[k], start[k], arm[k], share=0.3, rows=rows[k], group=group[k])
        for k in (np.arange(300), mixed)
    )
    assert one == other
    blind = switchback_sequence(value, start, arm, share=0.3, rows=rows)
    assert one.upper - one.lower < 0.5 * (blind.upper - blind.lower)
    assert not one.excludes(1.0)


def test_before_enough_blocks_a_switchback_says_nothing_and_wrong_blocks_are_refused() -> None:
    assert switchback_sequence([], [], []).upper == np.inf
    few = switchback_sequence([1.0] * 20, range(20), [0, 1] * 10)
    assert (few.blocks, few.lower) == (12, -np.inf)
    with pytest.raises(ValueError, match="rows must be positive"):
        switchback_sequence([1.0], [0], [1], rows=[0])
    with pytest.raises(ValueError, match="share"):
        switchback_sequence([1.0], [0], [1], share=1.0)


def _varied(seed=3, rows=6000, shares=(0.7, 0.2, 0.1)):
    rng = np.random.default_rng(seed)
    model = rng.choice(["a", "b", "c"], p=shares, size=rows)
    threshold, wide = rng.integers(2, size=(2, rows))
    mean = 1.0 * (model == "b") + 0.5 * threshold - 0.8 * (model == "b") * threshold
    return mean + rng.normal(size=rows), {"model": model, "threshold": threshold, "wide": wide}


def test_effects_are_contrasts_of_even_cell_means_whatever_the_traffic() -> None:
    value, factors = _varied()
    report = factorial_effects(value, factors)
    means = {
        (m, t, w): value[
            (factors["model"] == m) & (factors["threshold"] == t) & (factors["wide"] == w)
        ].mean()
        for m in "abc"
        for t in (0, 1)
        for w in (0, 1)
    }
    main = np.mean([means["b", t, w] - means["a", t, w] for t in (0, 1) for w in (0, 1)])
    assert report.effect(model="b").interval.estimate == pytest.approx(main)
    pair = np.mean(
        [means["b", 1, w] - means["a", 1, w] - means["b", 0, w] + means["a", 0, w] for w in (0, 1)]
    )
    assert report.effect(model="b", threshold=1).interval.estimate == pytest.approx(pair)
    assert report.base == ("a", 0, 0)
    assert dict(report.cells)["c", 1, 0].estimate == pytest.approx(means["c", 1, 0])
    assert len(report.effects) == 4 + 5
    assert not report.effect(model="b").interval.excludes(0.6)
    assert report.effect(model="b", threshold=1).p_value < 1e-6
    assert report.effect(wide=1).p_value > 0.05


def test_another_base_turns_the_sign() -> None:
    value, factors = _varied()
    there = factorial_effects(value, factors, order=1).effect(model="b").interval
    back = (
        factorial_effects(value, factors, order=1, base={"model": "b"}).effect(model="a").interval
    )
    assert back.estimate == pytest.approx(-there.estimate)
    assert back.lower == pytest.approx(-there.upper)


def test_factors_that_do_nothing_are_rarely_found() -> None:
    found = missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        factors = dict(zip("abc", rng.integers(2, size=(3, 400)), strict=True))
        report = factorial_effects(rng.exponential(size=400), factors)
        found += min(each.p_value for each in report.effects) < 0.05
        missed += sum(each.interval.excludes(0.0) for each in report.effects)
    assert found / 200 <= 0.09  # 5% and three standard errors
    assert 0.03 <= missed / 1200 <= 0.07


def test_units_that_saw_several_cells_are_counted_once() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(300), 10)
    factor = rng.integers(2, size=3000)
    value = 5 * rng.normal(size=300)[unit] + rng.normal(size=3000)
    own, alone = (
        factorial_effects(value, {"f": factor}, order=1, units=u)
        .effect(f=1)
        .interval.standard_error
        for u in (unit, None)
    )
    # The unit's level is in both cells: taking rows as unrelated gives about the right error here,
    # taking the units as unrelated between cells would give three times as much.
    assert own == pytest.approx(alone, rel=0.15)


def test_a_factorial_plan_that_cannot_be_judged_is_refused() -> None:
    value, factors = _varied(rows=40, shares=(0.97, 0.02, 0.01))
    value, factors = np.ones(8), {"m": [0, 0, 0, 0, 1, 1, 1, 1], "t": [0, 0, 1, 1, 0, 0, 0, 1]}
    with pytest.raises(ValueError, match="two units, received 1 of m=1, t=1"):
        factorial_effects(value, factors)
    with pytest.raises(ValueError, match="at least two levels"):
        factorial_effects(value, {"m": [0] * 8})
    with pytest.raises(ValueError, match=r"order must be within \[1, 2\]"):
        factorial_effects(value, factors, order=3)
    with pytest.raises(ValueError, match="base of 'm' must be one of"):
        factorial_effects(value, factors, base={"m": 2})
    with pytest.raises(ValueError, match="base must name factors"):
        factorial_effects(value, factors, base={"n": 2})
    with pytest.raises(ValueError, match="must be one of the report's"):
        factorial_effects(np.ones(8), {"m": factors["m"]}, order=1).effect(m=0)
