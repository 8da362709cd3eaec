"""Promises of bandits without context: exact propensities, kept floors, rewards in any batches."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from keepwell.stats.arm_rewards import ArmRewards, RecentRewards
from keepwell.stats.bandit_forecast import bandit_forecast, thompson_shares
from keepwell.stats.epsilon_greedy import epsilon_greedy
from keepwell.stats.exploration import buckets, choose, with_floor
from keepwell.stats.thompson import (
    thompson_beta,
    thompson_beta_choice,
    thompson_gaussian,
    thompson_gaussian_choice,
)
from keepwell.stats.upper_bounds import kl_ucb, ucb1


def _by_adaptive_quadrature(a: np.ndarray, b: np.ndarray) -> list[float]:
    """P(best) of Beta arms, the plain way."""
    edges = np.unique(
        special.betaincinv(a[:, None], b[:, None], [1e-11, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-11])
    )

    def rate(x: float, k: int) -> float:
        log = (
            special.xlogy(a[k] - 1, x) + special.xlog1py(b[k] - 1, -x) - special.betaln(a[k], b[k])
        )
        return math.exp(log) * float(np.prod(np.delete(special.betainc(a, b, x), k)))

    return [
        sum(
            integrate.quad(rate, low, high, args=(k,), epsabs=1e-13)[0]
            for low, high in zip([0, *edges], [*edges, 1], strict=True)
        )
        for k in range(a.size)
    ]


@pytest.mark.parametrize(
    ("won", "lost"),
    [
        ([0, 0], [0, 0]),
        ([10, 15], [90, 85]),
        ([1, 20, 300], [1, 20, 310]),
        ([0, 5_000, 3], [9, 95_000, 50]),
        ([50_500, 50_000, 49_900, 1], [949_500, 950_000, 950_100, 10]),
        ([0.3, 7.9], [0.2, 160.4]),
    ],
)
def test_thompsons_chances_are_those_of_adaptive_quadrature(won, lost) -> None:
    found = thompson_beta(won, lost)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(
        found, _by_adaptive_quadrature(np.add(won, 1.0), np.add(lost, 1.0)), atol=2e-9
    )


def test_thompsons_chances_are_those_of_its_draws() -> None:
    rng = np.random.default_rng(0)
    shape = (200_000, 1)
    won, lost = [30, 35, 20], [70, 70, 60]
    drawn = thompson_beta_choice(np.tile(won, shape), np.tile(lost, shape), rng)
    np.testing.assert_allclose(
        np.bincount(drawn, minlength=3) / shape[0], thompson_beta(won, lost), atol=0.004
    )
    known = np.array([[40, 9, 12], [3.0, 3.3, 2.0], [40.0, 8.0, 11.0]])
    drawn = thompson_gaussian_choice(
        np.tile(known[0], shape), np.tile(known[1], shape), np.tile(known[2], shape), rng
    )
    np.testing.assert_allclose(
        np.bincount(drawn, minlength=3) / shape[0], thompson_gaussian(*known), atol=0.004
    )


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
)
def test_chances_follow_the_arms_whatever_their_order(counts, random) -> None:
    won, lost = np.array(counts, dtype=float).T
    found = thompson_beta(won, lost, floor=0.1)
    assert found.min() >= 0.1 / len(counts) - 1e-15
    order = list(range(len(counts)))
    random.shuffle(order)
    np.testing.assert_allclose(
        thompson_beta(won[order], lost[order], floor=0.1), found[order], atol=1e-9
    )


def test_gaussian_thompson_has_the_scale_of_its_rewards() -> None:
    counts, means, squares = np.array([30, 40]), np.array([5.0, 5.4]), np.array([40.0, 50.0])
    found = thompson_gaussian(counts, means, squares)
    moved = thompson_gaussian(counts, 1000 * means - 7e5, 1e6 * squares)
    np.testing.assert_allclose(moved, found, atol=1e-9)


def test_gaussian_thompson_tries_the_unknown_and_settles_on_the_best() -> None:
    assert thompson_gaussian([0, 0], [0, 0], [0, 0]).tolist() == [0.5, 0.5]
    assert thompson_gaussian([9, 9, 0], [5, 6, 0], [8, 8, 0])[2] > 0.2
    assert thompson_gaussian([3, 2], [1, 1], [0, 0]).tolist() == [0.5, 0.5]
    assert thompson_gaussian([400, 400], [5, 6], [400, 400])[1] > 0.999999


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sampled_from([1.0, 0.9]),
)
def test_how_rewards_are_cut_into_batches_changes_nothing(seed, sizes, forget) -> None:
    rng = np.random.default_rng(seed)
    arm, reward = rng.integers(3, size=sum(sizes)), rng.normal(1e6, 1, size=sum(sizes))
    batched, begin = ArmRewards.start(3, forget=forget), 0
    recent = RecentRewards(arms=3, window=10)
    for size in sizes:
        cut = slice(begin, begin + size)
        batched, begin = batched.update(arm[cut], reward[cut]), begin + size
        recent = recent.update(arm[cut], reward[cut])
    whole = ArmRewards.start(3, forget=forget).update(arm, reward)
    for field in ("counts", "means", "squares"):
        np.testing.assert_allclose(getattr(batched, field), getattr(whole, field), atol=1e-5)
    weight = forget ** np.arange(arm.size - 1, -1, -1)
    for k in range(3):
        assert whole.counts[k] == pytest.approx(weight[arm == k].sum())
        if (arm == k).any():
            mean = np.average(reward[arm == k], weights=weight[arm == k])
            assert whole.means[k] == pytest.approx(mean, abs=1e-6)
            spread = (weight * (reward - mean) ** 2)[arm == k].sum()
            assert whole.squares[k] == pytest.approx(spread, abs=1e-4)
    assert recent.rewards == ArmRewards.start(3).update(arm[-10:], reward[-10:])


def test_kl_ucb_is_the_root_of_its_equation_and_ucb1_its_formula() -> None:
    n, m = np.array([200.0, 200.0, 40.0]), np.array([0.30, 0.25, 0.02])
    t = math.log(440)
    by_formula = m + np.sqrt(2 * t / n)
    assert ucb1(n, m)[by_formula.argmax()] == 1.0
    grid = np.linspace(0, 1, 100_001)[1:-1]
    upper = []
    for k in range(3):
        divergence = m[k] * np.log(m[k] / grid) + (1 - m[k]) * np.log((1 - m[k]) / (1 - grid))
        upper.append(grid[n[k] * divergence <= t].max())
    assert kl_ucb(n, m)[int(np.argmax(upper))] == 1.0
    # The one is wide where events are rare, the other not: they disagree here.
    assert ucb1(n, m).argmax() != kl_ucb(n, m).argmax()


@pytest.mark.parametrize("index", [ucb1, kl_ucb, epsilon_greedy])
def test_arms_without_a_reward_come_first_and_ties_share(index) -> None:
    floor = {"epsilon": 0.0} if index is epsilon_greedy else {}
    assert index([5, 0, 0], [0.9, 0, 0], **floor).tolist() == [0, 0.5, 0.5]
    assert index([5, 5], [0.5, 0.5], **floor).tolist() == [0.5, 0.5]
    assert index([[5, 0], [0, 5]], [[0.1, 0], [0, 0.1]], **floor).tolist() == [[0, 1], [1, 0]]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([0.0, 1e-9, 1e-4, 0.1, 0.33, 1.0, 7.0]), min_size=2, max_size=30))
def test_buckets_sum_to_their_total_and_starve_nobody(weights) -> None:
    if sum(weights) == 0:
        return
    p = np.array(weights) / sum(weights)
    found = buckets(p)
    assert found.sum() == 10_000
    assert ((found > 0) == (p > 0)).all()
    assert np.abs(found - 10_000 * p).max() <= len(weights)


def test_choices_come_as_often_as_their_probabilities_say_and_repeat_by_seed() -> None:
    p = np.tile([0.2, 0.0, 0.5, 0.3], (100_000, 1))
    drawn = choose(p, np.random.default_rng(3))
    np.testing.assert_allclose(np.bincount(drawn) / 100_000, p[0], atol=0.006)
    assert (drawn == choose(p, np.random.default_rng(3))).all()
    assert with_floor(p, 0.2)[0].tolist() == pytest.approx([0.21, 0.05, 0.45, 0.29])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: thompson_beta([1], [1]), "must have one shape"),
        (lambda: thompson_beta([1, -1], [1, 1]), "sums of 0 or more"),
        (lambda: thompson_beta([1, 1], [1, 1], prior=(0.1, 1)), "prior must be 0.5 or more"),
        (lambda: thompson_beta([1, 1], [1, 1], floor=2), "floor must be within"),
        (lambda: thompson_gaussian([1, 1], [1, math.nan], [0, 0]), "means finite"),
        (lambda: kl_ucb([1, 1], [2, 1]), r"means must be within \[0, 1\]"),
        (lambda: ucb1([1, 1], [2, 1, 1]), "must have one shape"),
        (lambda: epsilon_greedy([1, -1], [2, 1]), "0 or more"),
        (lambda: with_floor([0.5, 0.6], 0.1), "sum to 1"),
        (lambda: buckets([[0.5, 0.5]]), r"shape \(K,\)"),
        (lambda: ArmRewards.start(2, forget=0), "forget must be"),
        (lambda: ArmRewards.start(2).update([2], [1.0]), "arm must be within"),
        (lambda: ArmRewards.start(2).update([0], [1.0, 2.0]), "arm must be whole numbers"),
        (lambda: RecentRewards(arms=2, window=0), "window must be"),
    ],
)
def test_what_cannot_be_is_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_a_bandits_forecast_scales_with_the_spread_and_the_root_of_the_rows() -> None:
    shares = partial(thompson_shares, floor=0.1)
    told = bandit_forecast(arms=2, rows=10_000, spread=1.0, shares=shares)
    assert told.power == pytest.approx(0.8, abs=0.01)
    wide = bandit_forecast(arms=2, rows=40_000, spread=3.0, shares=shares, mean=5.0)
    assert wide.effect == pytest.approx(1.5 * told.effect)
    assert wide.half_width == pytest.approx(1.5 * told.half_width)
    assert wide.lesser == pytest.approx(told.lesser)
    assert wide.regret == pytest.approx(wide.lesser * wide.effect * 40_000)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"arms": 1}, "arms"),
        ({"rows": 1}, "rows"),
        ({"spread": 0.0}, "spread"),
        ({"power": 1.0}, "power"),
        ({"bunching": 0.5}, "bunching"),
        ({"late": 1.0}, "late"),
    ],
)
def test_a_bandits_forecast_refuses_what_cannot_be(wrong: dict[str, Any], says: str) -> None:
    shares = partial(thompson_shares, floor=0.1)
    right: dict[str, Any] = {"arms": 2, "rows": 1000, "spread": 1.0, "shares": shares}
    with pytest.raises(ValueError, match=says):
        bandit_forecast(**right | wrong)


@pytest.mark.parametrize("arms", [2, 3])
def test_the_shares_of_a_forecast_are_about_those_of_thompson(arms: int) -> None:
    counts = np.tile(np.linspace(80.0, 160.0, arms), (400, 1))
    means, squares = np.tile(np.linspace(0.0, 0.2, arms), (400, 1)), counts.copy()
    own = thompson_gaussian(counts[0], means[0], squares[0], floor=0.1)
    assert thompson_shares(counts, means, squares, floor=0.1).mean(axis=0) == pytest.approx(own, abs=0.02)  # fmt: skip
