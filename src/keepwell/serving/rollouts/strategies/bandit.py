"""Bandit: traffic moves to the arms that earn more while it is learned which do; the log stays evaluable throughout."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.records.rollouts import Expected
from keepwell.core.records.traffic import BUCKETS, TrafficPlan
from keepwell.core.settings import Count, Limit, Share
from keepwell.serving.desk.policies import pack_policy, unpack_policy
from keepwell.serving.rollouts.evidence import Rewards, rewards
from keepwell.serving.rollouts.forecasts import spell_days
from keepwell.serving.rollouts.history import Known
from keepwell.serving.rollouts.observations import Floats, Ints, Observations
from keepwell.serving.rollouts.strategy import (
    CHAMPION,
    Answer,
    Rules,
    State,
    days_seen,
    promoted,
    returned,
    split,
)
from keepwell.stats.adaptive_effects import adaptive_effects
from keepwell.stats.arm_rewards import ArmRewards
from keepwell.stats.bandit_forecast import Shares, bandit_forecast, thompson_shares
from keepwell.stats.epsilon_greedy import epsilon_greedy
from keepwell.stats.exploration import buckets, with_floor
from keepwell.stats.linear_bandit import LinearPolicy, LinearState
from keepwell.stats.thompson import thompson_beta, thompson_gaussian
from keepwell.stats.upper_bounds import kl_ucb, ucb1

FEW_PLANS = 200
"""Up to so many plans effects are told at each look, to be seen; more are gone through at the end alone."""
LEAST = 50
"""Rewards of an arm below which no effect is estimated."""
POWER = 0.8
"""The forecast tells the least difference that is found with this chance; by Cohen 1988."""


class BanditRules(Rules, frozen=True, kw_only=True):
    """How arms are drawn, and when it ends."""

    algorithm: Literal["thompson", "ucb1", "kl-ucb", "epsilon-greedy", "linucb", "lints"] = (
        "thompson"
    )
    """The last two look at the numeric features of each request."""
    rewards: Literal["real", "binary"] = "real"
    """``binary``: gains are 0 or 1; ``real``: any numbers."""
    floor: Share = 0.1
    """Share of the traffic that is spread evenly over all arms, always."""
    forget: Share | Literal[1] = 1
    """Below 1, each reward makes all earlier ones weigh so much less: for a world that changes."""
    every_seconds: Limit = 60.0
    """The plan changes at most this often, by the clock."""
    least_move: Limit = 0.01
    """Changes of the shares smaller than this are not worth a plan."""
    warm_up: Count = 100
    """Rewards of all arms together before shares move."""
    width: Limit = 1.0
    """Of the exploration of ``ucb1`` (range of the rewards), ``linucb`` and ``lints`` (their spread)."""
    horizon_days: Limit = 28.0
    """It ends then, with a verdict; event time."""


class Bandit:
    """Draws arms by what they have earned, and judges them once, at its declared end.

    The share of each arm is what the algorithm says (``keepwell.stats.thompson``, ``upper_bounds``,
    ``epsilon_greedy``, ``linear_bandit``), from rewards whose labels have had time to come, mixed with the floor and
    rounded to whole buckets: so the propensity in the log is exact. At the end each challenger is compared with the
    champion by propensity-weighted estimates (``keepwell.stats.adaptive_effects``), because plain means of a bandit's
    log are biased; the chances of all arms on each row are computed again from the plan that drew it. Weak where
    rewards take longer than the world takes to change, and where units come back often: they stay with their arm
    while its buckets do.
    Implements ``keepwell.serving.rollouts.strategy.Strategy``.
    """

    rules = BanditRules
    features = True

    def problems(self, state: State) -> list[str]:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        rules: BanditRules = state.rules
        found = []
        if state.champion is None:
            found.append("Nothing answers there yet: there is nothing to choose from.")
        if rules.algorithm == "kl-ucb" and rules.rewards != "binary":
            found.append("kl-ucb needs rewards that are binary.")
        if rules.algorithm in {"linucb", "lints"} and not state.fields:
            found.append(f"{rules.algorithm} needs numeric features, and the model has none.")
        if rules.algorithm == "ucb1" and not rules.width > 0:
            found.append("width is the range of the rewards for ucb1: give it above 0.")
        if not found:
            found += self._scarce(state)
        return found

    @staticmethod
    def _scarce(state: State) -> list[str]:
        """Tell whether even arms that share evenly would have too few rewards for a verdict."""
        rules: BanditRules = state.rules
        known, arms = state.known, len(state.challengers) + 1
        if known is None or not known.sure:
            return []
        rows = known.per_day * _judged_days(state)
        if rows / arms >= LEAST:
            return []
        problem = (
            f"horizon_days: {rows:,.0f} decisions with their labels come in {rules.horizon_days:g} days,"
            f" {rows / arms:,.0f} an arm, and under {LEAST} nothing is judged. Give more days or fewer arms."
        )
        return [problem]

    def foresee(self, state: State, known: Known) -> list[Expected]:
        """See ``keepwell.serving.rollouts.forecasts.Foreseeing``."""
        rules: BanditRules = state.rules
        arms = len(state.challengers) + 1
        days, rows = rules.horizon_days, known.per_day * _judged_days(state)
        least = rows * rules.floor / arms
        lesser = rules.floor * (arms - 1) / arms
        said = (
            f"It ends after {spell_days(days)}, as declared: {rows:,.0f} decisions have their labels by then."
            f" The floor of {rules.floor:g} sends {100 * lesser:.3g}% of them to arms that earn less,"
            f" whatever is learned, and at least {least:,.0f} to each."
        )
        if least < LEAST:
            said += f" An arm that is left with no more is not judged (under {LEAST})."
        found = [Expected(of="horizon", rows=round(rows), what="decisions", days=days, said=said)]
        if not known.decision_spread or rows < LEAST * arms:
            return found
        linear = rules.algorithm in {"linucb", "lints"}
        told = bandit_forecast(
            arms=arms,
            rows=rows,
            spread=known.decision_spread,
            shares=_foreseen(rules),
            power=POWER,
            alpha=rules.alpha,
            mean=known.gain,
            bunching=known.bunching_within(_judged_days(state)),
            late=min(state.label_delay / DAY / days, 0.9),
        )
        said = (
            f"A challenger that earns {told.effect:.4g} more per decision (they spread by"
            f" {known.decision_spread:.4g} around {known.gain:.4g}) is promoted with a chance of {told.power:.0%};"
            f" the interval will be about"
            f" {told.half_width:.4g} to either side. Until then {told.lesser:.0%} of the decisions go to arms that earn"
            f" less, which costs {told.regret:.4g} in all."
        )
        if linear:
            said += (
                " That is with the other arms at the floor throughout:"
                " which rows a policy gives to whom is not known before."
            )
        found.append(
            Expected(
                of="verdict",
                rows=round(rows),
                what="decisions",
                days=days,
                effect=told.effect,
                power=told.power,
                median_days=days,
                said=said,
            )
        )
        return found

    def plan(self, state: State, seen: Observations, now: Time, rng: np.random.Generator) -> Answer:
        """See ``keepwell.serving.rollouts.strategy.Strategy``."""
        del rng
        if state.champion is None:
            return promoted(state.challenger, "there is nothing to choose from")
        rules: BanditRules = state.rules
        names = (CHAMPION, *(arm.name for arm in state.challengers))
        even = (buckets([1 / len(names)] * len(names), BUCKETS) / BUCKETS).tolist()
        shares: list[float] = list(state.memory.get("shares", even))
        known = rewards(
            seen, names, gain=state.gain, label_delay=state.label_delay, default=state.default
        )
        measured: dict[str, Any] = {
            "rewards": {name: int((known.arm == k).sum()) for k, name in enumerate(names)},
            "means": {
                name: float(known.reward[known.arm == k].mean()) if (known.arm == k).any() else None
                for k, name in enumerate(names)
            },
            "shares": dict(zip(names, shares, strict=True)),
        }
        if days_seen(seen) >= rules.horizon_days:
            return self._ended(state, names, known, measured)
        linear = rules.algorithm in {"linucb", "lints"}
        changed = int(state.memory.get("changed", 0))
        due = len(known.reward) >= rules.warm_up and (
            not changed or now >= changed + round(rules.every_seconds * 1_000_000)
        )
        policy = None
        learned = int(state.memory.get("learned", 0))
        if linear and due:
            learned = len(known.reward)
        if linear and learned:
            policy = pack_policy(
                self._policy(rules, names, known, learned, seed=learned),
                arms=names,
                fields=state.fields,
                intercept=True,
            )
        if due and not linear:
            wanted = self._shares(rules, names, known)
            if max(abs(a - b) for a, b in zip(wanted, shares, strict=True)) >= rules.least_move:
                shares = wanted
        moved = shares != state.memory.get("shares") or learned != state.memory.get("learned", 0)
        given = dict(zip(names, shares, strict=True))
        measured["shares"] = given
        if len(np.unique(known.plan)) <= FEW_PLANS:
            measured["effects"] = _effects(state, known, names, 1 - rules.alpha, measured) or {}
        return Answer(
            arms=split(state, given),
            policy=policy,
            reason=", ".join(f"{name} {share:.0%}" for name, share in given.items())
            if policy is None
            else f"{rules.algorithm} of {learned:,} rewards",
            next=f"it ends after {max(rules.horizon_days - days_seen(seen), 0):.3g} more days",
            measured=measured,
            memory={
                "shares": shares,
                "learned": learned,
                "changed": now if moved and due else changed,
            },
        )

    @staticmethod
    def _shares(rules: BanditRules, names: tuple[str, ...], known: Rewards) -> list[float]:
        state = ArmRewards.start(len(names), forget=rules.forget).update(known.arm, known.reward)
        if rules.algorithm == "thompson" and rules.rewards == "binary":
            wanted = thompson_beta(state.successes, state.failures, floor=rules.floor)
        elif rules.algorithm == "thompson":
            wanted = thompson_gaussian(state.counts, state.means, state.squares, floor=rules.floor)
        elif rules.algorithm == "ucb1":
            wanted = ucb1(state.counts, state.means, spread=rules.width, floor=rules.floor)
        elif rules.algorithm == "kl-ucb":
            wanted = kl_ucb(state.counts, state.means, floor=rules.floor)
        else:
            wanted = epsilon_greedy(state.counts, state.means, epsilon=rules.floor)
        return [count / BUCKETS for count in buckets(wanted, BUCKETS).tolist()]

    @staticmethod
    def _policy(
        rules: BanditRules, names: tuple[str, ...], known: Rewards, learned: int, *, seed: int
    ) -> LinearPolicy:
        """Learn from the first ``learned`` rewards, on scaled features, and give the policy for plain ones.

        A missing value counts as the mean of those that are there: few requests miss none of many.
        """
        x, arm, reward = known.features[:learned], known.arm[:learned], known.reward[:learned]
        there = ~np.isnan(x)
        centre = x.sum(axis=0, where=there) / np.maximum(there.sum(axis=0), 1)
        x = np.where(there, x, centre)
        scale = x.std(axis=0) if len(x) else np.ones(x.shape[1])
        scale = np.where(scale > 0, scale, 1.0)
        d = x.shape[1] + 1
        # With a 1 behind the features, (x - centre) / scale is a matrix.
        change = np.eye(d)
        change[:-1, :-1] = np.diag(1 / scale)
        change[:-1, -1] = -centre / scale
        rows = np.column_stack([x, np.ones(len(x))]) @ change.T
        spread = float(reward.std()) if len(reward) else 1.0
        state = LinearState.start(arms=len(names), features=d, forget=float(rules.forget))
        policy = state.update(rows, arm, reward).policy(
            "linucb" if rules.algorithm == "linucb" else "lints",
            alpha=rules.width * (spread or 1.0),
            floor=rules.floor,
            seed=seed,
        )
        return LinearPolicy(
            kind=policy.kind,
            theta=policy.theta @ change,
            factor=policy.factor @ change,
            alpha=policy.alpha,
            floor=policy.floor,
            seed=policy.seed,
            draws=policy.draws,
            missing=np.append(centre, 1.0),
        )

    def _ended(
        self,
        state: State,
        names: tuple[str, ...],
        known: Rewards,
        measured: dict[str, Any],
    ) -> Answer:
        rules: BanditRules = state.rules
        level = 1 - rules.alpha / (len(names) - 1)
        effects = _effects(state, known, names, level, measured)
        if effects is None:
            said = f"too few rewards of some arm to judge it: {measured['rewards']}"
            return returned(state, "refuse", said, measured)
        measured["effects"] = effects
        said = "; ".join(
            f"{name}: {e['mean']:+.4g} per decision ({e['low']:.4g} to {e['high']:.4g})"
            for name, e in effects.items()
        )
        better = [arm for arm in state.challengers if effects[arm.name]["low"] > 0]
        if not better:
            return returned(state, "refuse", f"none earns more than the champion: {said}", measured)
        best = max(better, key=lambda arm: effects[arm.name]["mean"])
        return promoted(best, said, measured)


def _judged_days(state: State) -> float:
    """Days of its decisions whose labels have come when it ends."""
    days: float = state.rules.horizon_days
    return max(days - state.label_delay / DAY, 0.0)


def _foreseen(rules: BanditRules) -> Shares:
    """Give the algorithm's shares for many bandits at once, of which one arm, the second, is better."""

    def shares(counts: Floats, means: Floats, squares: Floats) -> Floats:
        if rules.algorithm == "thompson":
            return thompson_shares(counts, means, squares, floor=rules.floor)
        if rules.algorithm == "ucb1":
            return ucb1(counts, means, spread=rules.width, floor=rules.floor)
        if rules.algorithm == "kl-ucb":
            return kl_ucb(counts, np.clip(means, 0.0, 1.0), floor=rules.floor)
        if rules.algorithm == "epsilon-greedy":
            return epsilon_greedy(counts, means, epsilon=rules.floor)
        return with_floor(np.tile(np.eye(counts.shape[1])[1], (len(counts), 1)), rules.floor)

    return shares


def _effects(
    state: State,
    known: Rewards,
    names: tuple[str, ...],
    level: float,
    measured: dict[str, Any],
) -> dict[str, dict[str, float]] | None:
    chances, predicted = _drawn_by(state, known, names)
    # A row that its plan does not explain was drawn otherwise: an arm was refused for its evidence, say.
    told = ~np.isnan(chances[:, 0])
    measured["left out"] = int((~told).sum())
    arm: Ints = known.arm[told]
    if min(np.bincount(arm, minlength=len(names)).tolist(), default=0) < LEAST:
        return None
    found = adaptive_effects(
        known.reward[told],
        arm,
        chances[told],
        predicted=predicted[told],
        context=state.rules.algorithm in {"linucb", "lints"},
        clusters=known.unit[told],
        level=level,
    )
    return {
        name: {"mean": each.estimate, "low": each.lower, "high": each.upper}
        for name, each in zip(names, found.effects, strict=True)
        if each is not None
    }


def _drawn_by(state: State, known: Rewards, names: tuple[str, ...]) -> tuple[Floats, Floats]:
    """Give what each row's plan gave the arms, shape (n, K), and what its policy took them to be worth.

    Chances are NaN where the logged one is not the plan's, predictions where there is no policy.
    """
    chances = np.full((len(known.arm), len(names)), np.nan)
    predicted = np.full_like(chances, np.nan)
    for revision in np.unique(known.plan).tolist():
        rows = np.flatnonzero(known.plan == revision)
        plan = state.plan_of(revision)
        if plan is None:
            continue
        given, predicted[rows] = _said_by(plan, names, state.fields, known.features[rows])
        own = given[np.arange(len(rows)), known.arm[rows]]
        # Units that took no part in the draw leave the same part of the chance to all who did.
        share = np.divide(
            known.propensity[rows], own, out=np.full(len(rows), np.inf), where=own > 0
        )
        same = (np.abs(share - share.min()) < 1e-6) & (share < 1 + 1e-6) & (given > 0).all(axis=1)
        chances[rows[same]] = given[same]
    return chances, predicted


def _said_by(
    plan: TrafficPlan, names: tuple[str, ...], fields: tuple[str, ...], features: Floats
) -> tuple[Floats, Floats]:
    n, k = len(features), len(names)
    if plan.policy is None:
        weights = {arm.name: arm.weight / BUCKETS for arm in plan.arms}
        return np.tile([weights.get(name, 0.0) for name in names], (n, 1)), np.full((n, k), np.nan)
    policy = unpack_policy(plan.policy)
    seen = features[:, [fields.index(name) for name in plan.policy.fields]]
    if plan.policy.intercept:
        seen = np.column_stack([seen, np.ones(n)])
    order = [plan.policy.arms.index(name) for name in names]
    return policy.probabilities(seen)[:, order], (policy.filled(seen) @ policy.theta.T)[:, order]
