# mypy: ignore-errors
"""What other packages say to the same questions; run by .venv-oracles, JSON in and out."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import site
import sys
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")


def savvi_sample_ratio(shares, concentration, batches):
    """Posterior odds after each batch, by savvi 0.3.1."""
    from savvi.multinomial import Multinomial

    test = Multinomial(alpha=0.05, theta_0=np.array(shares), k=concentration)
    odds = []
    for batch in batches:
        test.update(np.array(batch))
        odds.append(float(np.log(test.odds)))
    return odds


def gbstats_sequential(treatment, control, alpha, tuned_for):
    """Sequential interval of a difference of means, by gbstats 0.8.0."""
    from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest

    config = SequentialConfig(
        alpha=alpha, sequential_tuning_parameter=tuned_for, difference_type="absolute"
    )
    test = SequentialTwoSidedTTest(_gb_mean(control), _gb_mean(treatment), config)
    return [float(bound) for bound in test.confidence_interval]


def gbstats_cuped(treatment, control, treatment_covariate, control_covariate):
    """Interval of a difference adjusted by a covariate, and its slope, by gbstats 0.8.0."""
    from gbstats.frequentist.tests import FrequentistConfig, TwoSidedTTest

    arms = [
        _gb_adjusted(control, control_covariate),
        _gb_adjusted(treatment, treatment_covariate),
    ]
    test = TwoSidedTTest(*arms, FrequentistConfig(alpha=0.05, difference_type="absolute"))
    lower, upper = test.confidence_interval
    return {
        "estimate": float(test.point_estimate),
        "lower": float(lower),
        "upper": float(upper),
        "theta": float(test.stat_a.theta),
    }


def tea_tasting_cuped(treatment, control, treatment_covariate, control_covariate):
    """The same by tea-tasting."""
    import tea_tasting
    from tea_tasting.aggr import Aggregates

    def sums(y, x):
        together = np.cov(y, x)
        return Aggregates(
            count_=len(y),
            mean_={"y": float(np.mean(y)), "x": float(np.mean(x))},
            var_={"y": float(together[0, 0]), "x": float(together[1, 1])},
            cov_={("x", "y"): float(together[0, 1])},
        )

    metric = tea_tasting.Mean("y", covariate="x", confidence_level=0.95, equal_var=False)
    found = metric.analyze_aggregates(
        sums(control, control_covariate), sums(treatment, treatment_covariate)
    )
    return {
        "estimate": float(found.effect_size),
        "lower": float(found.effect_size_ci_lower),
        "upper": float(found.effect_size_ci_upper),
    }


def tea_tasting_units(effect, variance, power):
    """Units of both arms for a fixed sample, by tea-tasting."""
    import tea_tasting
    from tea_tasting.aggr import Aggregates

    metric = tea_tasting.Mean("y", alpha=0.05, power=power, effect_size=effect, use_t=False)
    found = metric.solve_power_from_aggregates(
        Aggregates(count_=1000, mean_={"y": 1.0}, var_={"y": variance}, cov_={}), "n_obs"
    )
    return float(found[0].n_obs)


def spotify_bounds(information, alpha, power):
    """One-sided critical values where alpha t^power is spent, by spotify-confidence 4.1.0."""
    # Alone, without the package's charts: this file needs numpy, scipy and pandas.
    path = (
        Path(site.getsitepackages()[0])
        / "spotify_confidence/analysis/frequentist/sequential_bound_solver.py"
    )
    spec = importlib.util.spec_from_file_location("sequential_bound_solver", path)
    solver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(solver)
    return solver.bounds(np.array(information), alpha, power, 8.0, 1).bounds.tolist()


def mabwiser_linucb(x, arm, reward, asked, alpha):
    """Upper bounds by arm of rows asked about, by mabwiser 2.7.4."""
    from mabwiser.mab import MAB, LearningPolicy

    arms = sorted(set(arm))
    bandit = MAB(arms=arms, learning_policy=LearningPolicy.LinUCB(alpha=alpha, l2_lambda=1.0))
    bandit.fit(arm, reward, x)
    return [[float(row[k]) for k in arms] for row in bandit.predict_expectations(asked)]


def mabwiser_ucb1(arm, reward):
    """Upper bounds by arm, by mabwiser."""
    from mabwiser.mab import MAB, LearningPolicy

    arms = sorted(set(arm))
    bandit = MAB(arms=arms, learning_policy=LearningPolicy.UCB1(alpha=1.0))
    bandit.fit(arm, reward)
    found = bandit.predict_expectations()
    return [float(found[k]) for k in arms]


def _gb_mean(values):
    from gbstats.models.statistics import SampleMeanStatistic

    y = np.asarray(values)
    return SampleMeanStatistic(n=y.size, sum=float(y.sum()), sum_squares=float((y**2).sum()))


def _gb_adjusted(values, covariate):
    from gbstats.models.statistics import RegressionAdjustedStatistic

    return RegressionAdjustedStatistic(
        n=len(values),
        post_statistic=_gb_mean(values),
        pre_statistic=_gb_mean(covariate),
        post_pre_sum_of_products=float(np.dot(values, covariate)),
        theta=0.0,
    )


if __name__ == "__main__":
    questions = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answers = {name: globals()[name](**asked) for name, asked in questions.items()}
    json.dump(answers, sys.stdout)
