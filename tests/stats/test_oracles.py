"""Our numbers are those that other packages compute, live, for the same questions."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keepwell.stats.arm_rewards import ArmRewards
from keepwell.stats.cuped import cuped_difference
from keepwell.stats.difference_sequence import DifferenceSequence
from keepwell.stats.forecast import fixed_forecast
from keepwell.stats.group_sequential import boundaries
from keepwell.stats.linear_bandit import LinearState
from keepwell.stats.sample_ratio import SampleRatioTest
from keepwell.stats.upper_bounds import ucb1

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("KEEPWELL_ORACLES_PYTHON", ROOT / ".venv-oracles/bin/python"))

RNG = np.random.default_rng(7)
BEFORE = RNG.exponential(size=4000)
VALUE = 0.6 * BEFORE + RNG.exponential(size=4000)
VALUE[:2000] += 0.1
ARMS: dict[str, Any] = {
    "treatment": VALUE[:2000],
    "control": VALUE[2000:],
    "treatment_covariate": BEFORE[:2000],
    "control_covariate": BEFORE[2000:],
}
# With no difference between the arms' covariates, one slope over all units is the slope within arms.
LEVEL: dict[str, Any] = {
    **ARMS,
    "treatment_covariate": BEFORE[:2000] - BEFORE[:2000].mean(),
    "control_covariate": BEFORE[2000:] - BEFORE[2000:].mean(),
}
BATCHES = [[52, 31, 17], [480, 320, 200], [5200, 3000, 1800]]
CONTEXT = RNG.normal(size=(600, 5))
TAKEN = RNG.integers(3, size=400)
EARNED = CONTEXT[:400, 0] * TAKEN + RNG.normal(size=400)
LOOKS = [0.13, 0.4, 0.55, 0.8, 1.0]


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    assert PYTHON.exists(), f"{PYTHON} is missing; run `make setup-oracles`"
    level = {name: values.tolist() for name, values in LEVEL.items()}
    questions = {
        "savvi_sample_ratio": {
            "shares": [0.5, 0.3, 0.2],
            "concentration": 200,
            "batches": BATCHES,
        },
        "gbstats_sequential": {
            "treatment": level["treatment"],
            "control": level["control"],
            "alpha": 0.05,
            "tuned_for": 4000,
        },
        "gbstats_cuped": level,
        "tea_tasting_cuped": {name: values.tolist() for name, values in ARMS.items()},
        "tea_tasting_units": {"effect": 0.02, "variance": 0.09, "power": 0.9},
        "mabwiser_linucb": {
            "x": CONTEXT[:400].tolist(),
            "arm": TAKEN.tolist(),
            "reward": EARNED.tolist(),
            "asked": CONTEXT[400:].tolist(),
            "alpha": 0.7,
        },
        "mabwiser_ucb1": {"arm": TAKEN.tolist(), "reward": EARNED.tolist()},
        "spotify_bounds": {"information": LOOKS, "alpha": 0.05, "power": 2.0},
    }
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("oracle_session.py")],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_sample_ratio_evidence_is_savvis(said) -> None:
    test = SampleRatioTest(shares=(0.5, 0.3, 0.2), alpha=0.05, concentration=200)
    for batch, odds in zip(BATCHES, said["savvi_sample_ratio"], strict=True):
        test = test.update(batch)
        assert test.log_evidence == pytest.approx(odds, abs=1e-9)


def test_an_adjusted_difference_is_that_of_gbstats(said) -> None:
    ours, theirs = cuped_difference(**LEVEL), said["gbstats_cuped"]
    assert ours.estimate == pytest.approx(theirs["estimate"], rel=1e-9)
    assert ours.lower == pytest.approx(theirs["lower"], rel=1e-9)
    assert ours.upper == pytest.approx(theirs["upper"], rel=1e-9)


def test_an_adjusted_difference_is_nearly_that_of_tea_tasting(said) -> None:
    # Its slope is over all units, ours within arms: they part by the difference of the arms.
    ours, theirs = cuped_difference(**ARMS), said["tea_tasting_cuped"]
    width = ours.upper - ours.lower
    assert ours.estimate == pytest.approx(theirs["estimate"], abs=0.01 * width)
    assert width == pytest.approx(theirs["upper"] - theirs["lower"], rel=1e-4)


def test_a_sequential_interval_is_nearly_that_of_gbstats(said) -> None:
    # It uses the large-sample form and an approximation of the best width; ours is the t form.
    ours = DifferenceSequence(alpha=0.05, tuned_for=4000).update(
        treatment=ARMS["treatment"], control=ARMS["control"]
    )
    lower, upper = said["gbstats_sequential"]
    assert ours.estimate == pytest.approx((lower + upper) / 2, rel=1e-9)
    assert 2 * ours.radius == pytest.approx(upper - lower, rel=0.005)


def test_units_of_a_fixed_sample_are_those_of_tea_tasting(said) -> None:
    ours = fixed_forecast(effect=0.02, control_variance=0.09, treatment_variance=0.09, power=0.9)
    assert 2 * ours.units == pytest.approx(said["tea_tasting_units"], abs=2)


def test_boundaries_are_nearly_those_of_spotify_confidence(said) -> None:
    # It adds up densities by trapezoids, ours by Gauss-Legendre.
    ours = boundaries(LOOKS, alpha=0.05, spending="kim_demets", side="greater")
    assert ours.critical == pytest.approx(said["spotify_bounds"], abs=2e-4)


def test_linear_upper_bounds_are_mabwisers(said) -> None:
    state = LinearState.start(arms=3, features=5).update(CONTEXT[:400], TAKEN, EARNED)
    policy = state.policy("linucb", alpha=0.7, floor=0.0)
    spread = np.einsum("kij,nj->nki", policy.factor, CONTEXT[400:])
    bounds = CONTEXT[400:] @ policy.theta.T + 0.7 * np.sqrt((spread**2).sum(axis=2))
    theirs = np.array(said["mabwiser_linucb"])
    np.testing.assert_allclose(bounds, theirs, atol=1e-9)
    chosen = policy.probabilities(CONTEXT[400:]).argmax(axis=1)
    assert (chosen == theirs.argmax(axis=1)).all()


def test_the_arm_of_ucb1_is_mabwisers(said) -> None:
    rewards = ArmRewards.start(3).update(TAKEN, EARNED)
    assert ucb1(rewards.counts, rewards.means).argmax() == np.argmax(said["mabwiser_ucb1"])
