"""Promises of off-policy estimates: right about a known truth, honest about a thin log."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats.adaptive_effects import adaptive_effects
from keepwell.stats.off_policy import EffectiveSampleTooSmall, doubly_robust, ips, snips
from keepwell.stats.outcome_model import crossfit_predictions


def _log(seed=0, rows=4000):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    chances = np.column_stack(
        [np.full(rows, 0.6), 0.3 - 0.1 * (x[:, 0] > 0), 0.1 + 0.1 * (x[:, 0] > 0)]
    )
    arm = (rng.random((rows, 1)) > chances.cumsum(axis=1)[:, :-1]).sum(axis=1)
    reward = 5 + x[:, 0] * (arm - 1) + arm + rng.normal(size=rows)
    return x, chances, arm, reward, rng


def test_the_estimates_are_their_textbook_formulas() -> None:
    _, chances, arm, reward, rng = _log()
    each = np.arange(arm.size)
    target = rng.dirichlet([1, 1, 1], size=arm.size)
    logged, chosen = chances[each, arm], target[each, arm]
    w = chosen / logged
    predicted = rng.normal(5, 1, size=target.shape)
    assert ips(reward, logged, chosen).value.estimate == pytest.approx(
        np.mean(w * reward), abs=1e-12
    )
    assert snips(reward, logged, chosen).value.estimate == pytest.approx(
        np.sum(w * reward) / np.sum(w), abs=1e-12
    )
    found = doubly_robust(reward, logged, arm, target, predicted)
    by_hand = np.mean((target * predicted).sum(1) + w * (reward - predicted[each, arm]))
    assert found.value.estimate == pytest.approx(by_hand, abs=1e-12)
    assert found.gain.estimate == pytest.approx(by_hand - reward.mean(), abs=1e-12)
    assert found.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert not found.weights.excludes(1.0)


def test_the_policy_that_was_logged_has_gained_nothing() -> None:
    _, chances, arm, reward, _ = _log()
    logged = chances[np.arange(arm.size), arm]
    found = ips(reward, logged, logged)
    assert (found.gain.estimate, found.gain.lower, found.gain.upper) == (0, 0, 0)
    assert found.effective == arm.size
    assert found.value.estimate == pytest.approx(found.logged)


def test_a_challenger_that_only_a_tenth_saw_is_valued_over_all_requests() -> None:
    x, chances, arm, reward, rng = _log(rows=20_000)
    logged = chances[np.arange(arm.size), arm]
    predicted = crossfit_predictions(x, arm, reward, rng, arms=3)
    always_2 = doubly_robust(reward, logged, arm, [0, 0, 1], predicted)
    assert not always_2.value.excludes(7.0)  # 5 + 2, the feature's mean being 0
    # Its plain mean is of the requests with x > 0 that it liked to get.
    assert reward[arm == 2].mean() > always_2.value.upper
    weighted = ips(reward, logged, (arm == 2).astype(float))
    assert always_2.value.standard_error < 0.4 * weighted.value.standard_error


def test_a_wrong_model_costs_width_not_truth() -> None:
    _, chances, arm, reward, _ = _log(rows=20_000)
    logged = chances[np.arange(arm.size), arm]
    wrong = np.tile([9.0, -3.0, 1.0], (arm.size, 1))
    found = doubly_robust(reward, logged, arm, [0, 0, 1], wrong)
    assert not found.value.excludes(7.0)


def test_a_log_that_hardly_took_the_policys_choices_is_refused() -> None:
    reward, logged = np.ones(1000), np.full(1000, 0.1)
    target = np.zeros(1000)
    target[:49] = 1.0
    for estimate in (ips, snips):
        with pytest.raises(
            EffectiveSampleTooSmall, match=r"at least 50, received 49\.0 from 1000 rows"
        ) as told:
            estimate(reward, logged, target)
        assert told.value.effective == pytest.approx(49)
        assert told.value.least == 50
        with pytest.raises(EffectiveSampleTooSmall, match="exploration floor"):
            estimate(reward, logged, np.zeros(1000))
    target[49] = 1.0
    assert snips(reward, logged, target).value.estimate == pytest.approx(1.0)


def test_rows_of_a_few_customers_are_few_rows() -> None:
    customer = np.repeat(np.arange(40), 100)
    with pytest.raises(EffectiveSampleTooSmall, match=r"received 40\.0 from 4000 rows"):
        ips(np.ones(4000), np.full(4000, 0.5), np.full(4000, 0.5), clusters=customer)
    rng = np.random.default_rng(0)
    customer = np.repeat(np.arange(200), 20)
    reward = rng.normal(size=200)[customer]
    both = [
        ips(reward, np.full(4000, 0.5), np.full(4000, 0.5), clusters=by).value.standard_error
        for by in (customer, None)
    ]
    assert both[0] == pytest.approx(both[1] * np.sqrt(20), rel=0.05)


def test_clipping_is_counted_and_bounds_the_weights() -> None:
    logged = np.r_[np.full(900, 0.9), np.full(100, 0.1)]
    found = ips(np.ones(1000), logged, np.full(1000, 0.5), clip=2.0)
    assert (found.clipped, found.largest_weight, found.clip) == (100, 2.0, 2.0)
    assert ips(np.ones(1000), logged, np.full(1000, 0.5)).clipped == 0


def test_propensities_that_are_not_the_logs_are_told_by_the_mean_weight() -> None:
    rng = np.random.default_rng(0)
    arm = rng.random(4000) < 0.3
    right = ips(arm, np.where(arm, 0.3, 0.7), arm)
    wrong = ips(arm, np.where(arm, 0.2, 0.8), arm)
    assert (right.weights.excludes(1), wrong.weights.excludes(1)) == (False, True)


@pytest.mark.parametrize("model", ["ridge", "logistic"])
def test_a_prediction_never_saw_its_own_row(model) -> None:
    rng = np.random.default_rng(0)
    x, arm = rng.normal(size=(60, 2)), rng.integers(2, size=60)
    reward = (rng.random(60) < 0.5).astype(float)
    changed = reward.copy()
    changed[7] = 1 - changed[7]
    first, second = (
        crossfit_predictions(x, arm, y, np.random.default_rng(1), arms=2, model=model)
        for y in (reward, changed)
    )
    assert (first[7] == second[7]).all()
    assert (first != second).any()


def test_the_logistic_model_is_the_one_that_made_the_rewards() -> None:
    rng = np.random.default_rng(0)
    x, arm = rng.normal(size=(40_000, 2)), rng.integers(2, size=40_000)
    truth = 1 / (1 + np.exp(-np.column_stack([x[:, 0] - 2, 0.5 - x[:, 1]])))
    reward = (rng.random(40_000) < truth[np.arange(40_000), arm]).astype(float)
    found = crossfit_predictions(x, arm, reward, rng, arms=2, model="logistic")
    assert np.abs(found - truth).max() < 0.04


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32),
    st.integers(12, 60),
    st.sampled_from(["ridge", "logistic"]),
    st.sampled_from([0.0, 1.0, None]),
)
def test_predictions_are_finite_whatever_the_rewards_and_arms(seed, rows, model, constant) -> None:
    # Separated classes, single-valued rewards, constant features, arms nobody took.
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=rows), np.ones(rows), np.arange(rows) > rows / 2])
    reward = x[:, 2] if constant is None else np.full(rows, constant)
    found = crossfit_predictions(x, rng.integers(2, size=rows), reward, rng, arms=3, model=model)
    assert np.isfinite(found).all()
    if model == "logistic":
        assert ((found >= 0) & (found <= 1)).all()


def test_units_stay_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(30), 20)
    x = np.eye(30)[unit]  # a model that knows a unit knows its rewards
    reward = rng.normal(size=30)[unit]
    zero = np.zeros(600, int)
    apart = crossfit_predictions(x, zero, reward, rng, arms=1, clusters=unit)[:, 0]
    leaked = crossfit_predictions(x, zero, reward, rng, arms=1)[:, 0]
    assert np.corrcoef(leaked, reward)[0, 1] > 0.9
    assert np.corrcoef(apart, reward)[0, 1] < 0.3


def test_effects_of_a_steered_log_are_their_formula() -> None:
    _, chances, arm, reward, _ = _log(rows=600)
    found = adaptive_effects(reward, arm, chances)
    seen: list[list[float]] = [[], [], []]
    scores, weights = np.zeros((600, 3)), np.sqrt(chances)
    for t in range(600):
        for k in range(3):
            model = np.mean(seen[k]) if seen[k] else 0.0
            scores[t, k] = model + (arm[t] == k) / chances[t, k] * (reward[t] - model)
        seen[arm[t]].append(reward[t])
    means = (weights * scores).sum(0) / weights.sum(0)
    for k in range(3):
        assert found.means[k].estimate == pytest.approx(means[k])
        error = (
            np.sqrt((weights[:, k] ** 2 * (scores[:, k] - means[k]) ** 2).sum())
            / weights[:, k].sum()
        )
        assert found.means[k].standard_error == pytest.approx(error)
    assert found.effects[0] is None
    assert found.effects[2] is not None
    assert found.effects[2].estimate == pytest.approx(means[2] - means[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ips([1.0, 1.0], [0.0, 1.0], [1.0, 1.0]), "propensity must be above 0"),
        (lambda: ips([1.0, 1.0], [0.5, 1.0], [1.0, 1.5]), "target must be probabilities"),
        (lambda: ips([1.0, 1.0], [0.5, 1.0], [1.0, 1.0], clip=0), "clip must be above 0"),
        (lambda: doubly_robust([1.0, 1.0], [0.5, 0.5], [0, 1], [0.5, 0.6], np.zeros((2, 2))), "sum to 1"),
        (lambda: doubly_robust([1.0, 1.0], [0.5, 0.5], [0, 1], [0.5, 0.5], np.zeros((2, 3))), "predicted must be"),
        (lambda: doubly_robust([1.0, 1.0], [0.5, 0.5], [0, 2], [0.5, 0.5], np.zeros((2, 2))), "arm must be within"),
        (lambda: adaptive_effects(np.ones(99), np.zeros(99, int), np.full((99, 2), 0.5)), "at least 50 rows"),
        (lambda: adaptive_effects(np.ones(2), [0, 1], [[1.0, 0.0], [0.5, 0.5]]), "above 0"),
        (lambda: crossfit_predictions([[1.0]], [0], [2.0], np.random.default_rng(0), arms=1), "at least 2"),
        (
            lambda: crossfit_predictions(np.ones((9, 1)), [0] * 9, [2.0] * 9, np.random.default_rng(0), arms=1, model="logistic"),
            r"reward must be within \[0, 1\]",
        ),
        (
            lambda: crossfit_predictions(np.ones((3, 1)), [0] * 3, [2.0] * 3, np.random.default_rng(0), arms=1),
            r"folds must be within \[2, 3\]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
