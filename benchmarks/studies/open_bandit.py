"""Off-policy estimates on the Open Bandit data, beside those of `obp` on the same rows."""

from __future__ import annotations

import numpy as np

from benchmarks.open_bandit import CAMPAIGNS, Log, estimators, read_log, read_prior
from benchmarks.rows import Row, at_least, at_most
from keepwell.stats.off_policy import EffectiveSampleTooSmall, doubly_robust, ips, snips
from keepwell.stats.outcome_model import crossfit_predictions
from keepwell.stats.thompson import thompson_beta

SEED = 36


def _theirs(log: Log, target: np.ndarray, predicted: np.ndarray) -> list[float]:
    """The package's IPS, SNIPS and DR of a policy that is the same on every row."""
    package = estimators()
    given = np.broadcast_to(target[None, :, None], (log.arm.size, target.size, 1))
    asked = {
        "reward": log.reward,
        "action": log.arm,
        "pscore": log.propensity,
        "action_dist": np.ascontiguousarray(given),
    }
    return [
        float(package.InverseProbabilityWeighting().estimate_policy_value(**asked)),
        float(package.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**asked)),
        float(
            package.DoublyRobust().estimate_policy_value(
                **asked, estimated_rewards_by_reg_model=predicted[:, :, None]
            )
        ),
    ]


def _ours(log: Log, target: np.ndarray, predicted: np.ndarray, *, least: float) -> list[float]:
    chosen = target[log.arm]
    found = (
        ips(log.reward, log.propensity, chosen, least=least),
        snips(log.reward, log.propensity, chosen, least=least),
        doubly_robust(log.reward, log.propensity, log.arm, target, predicted, least=least),
    )
    return [each.value.estimate for each in found]


def study(quick: bool) -> list[Row]:
    """Value the shop's Thompson policy by the random log, and the random policy by Thompson's log."""
    rng = np.random.default_rng(SEED)
    rows = []
    for campaign in CAMPAIGNS[2:] if quick else CAMPAIGNS:
        alpha, beta = read_prior(campaign)
        even = np.full(alpha.size, 1 / alpha.size)
        for logged, other, tested, target in (
            ("random", "bts", "Thompson", thompson_beta(alpha - 1, beta - 1)),
            ("bts", "random", "even", even),
        ):
            log = read_log(logged, campaign)
            # Any predictions serve to compare formulas; those of a model are what users pass.
            predicted = (
                rng.uniform(0, 0.01, size=(log.arm.size, log.arms))
                if quick
                else crossfit_predictions(log.user, log.arm, log.reward, rng, arms=log.arms)
            )
            weights = target[log.arm] / log.propensity
            effective = weights.sum() ** 2 / (weights**2).sum()
            # Formulas are compared also where the estimate would be refused: obp gives one there.
            ours = _ours(log, target, predicted, least=0)
            theirs = _theirs(log, target, predicted)
            about = f"{tested} by the {logged} log of {campaign}"
            rows.append(
                at_most(
                    f"Open Bandit: farthest from obp, {about}",
                    float(np.abs(np.subtract(ours, theirs)).max()),
                    1e-12,
                    runs=1,
                    seed=SEED,
                )
            )
            if effective < 50:
                rows.append(_refused(log, target, about))
            else:
                rows.append(_beside_its_own(log, target, read_log(other, campaign), about))
    log = read_log("random", "all")
    first = Log(
        **{
            name: getattr(log, name)[log.position == 1]
            for name in ("arm", "reward", "propensity", "position", "user")
        },
        arms=log.arms,
    )
    always = np.eye(log.arms)[first.arm[0]]
    return [
        *rows,
        _refused(first, always, "one item always, first place, by the random log of all"),
    ]


def _beside_its_own(log: Log, target: np.ndarray, own: Log, about: str) -> Row:
    """Compare with the clicks of the log that the tested policy itself wrote in those days."""
    found = snips(log.reward, log.propensity, target[log.arm]).value
    error = np.hypot(found.standard_error, own.reward.std() / np.sqrt(own.reward.size))
    away = abs(found.estimate - own.reward.mean()) / error
    return at_most(
        f"Open Bandit: standard errors from the policy's own log, {about}",
        float(away),
        3,
        runs=1,
        seed=SEED,
    )


def _refused(log: Log, target: np.ndarray, about: str) -> Row:
    """Give 1 if each of the three refuses."""
    refused = 0
    predicted = np.zeros((log.arm.size, target.size))
    chosen = target[log.arm]
    effective = 0.0
    for estimate in (
        lambda: ips(log.reward, log.propensity, chosen),
        lambda: snips(log.reward, log.propensity, chosen),
        lambda: doubly_robust(log.reward, log.propensity, log.arm, target, predicted),
    ):
        try:
            estimate()
        except EffectiveSampleTooSmall as refusal:
            refused += 1
            effective = refusal.effective
    return at_least(
        f"Open Bandit: estimators that refuse {log.arm.size:,} rows worth {effective:.1f}, {about}",
        refused,
        3,
        runs=1,
        seed=SEED,
    )
