"""An endpoint with simulated callers: the plan in force decides as a gateway does, the log and the store are real."""

import msgspec
import numpy as np
from tests.lifecycle.parts import START, context, released

from keepwell.core.clock import DAY
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.rollouts import Look
from keepwell.core.records.traffic import Arm, Endpoint
from keepwell.serving.desk.assign import assigned, draw_of, held_out, in_turns
from keepwell.serving.desk.policies import unpack_policy
from keepwell.serving.log.segments import SegmentLog, SegmentWriter
from keepwell.serving.rollouts.driver import RolloutDriver
from keepwell.serving.rollouts.plans import arm_of, latest_plan, next_plan


def gain(predictions, outcomes):
    """Minus the squared error."""
    return -((np.asarray(predictions) - np.asarray(outcomes)) ** 2)


def drawn(plan, at, identity, unit, features):
    """Give the arm that a gateway chooses, and the chance that it had."""
    if plan.holdout is not None:
        share = plan.holdout.weight / 10_000
        if held_out([unit], plan.holdout, plan.salt)[0]:
            return plan.holdout, share
        arm, chance = drawn(
            msgspec.structs.replace(plan, holdout=None), at, identity, unit, features
        )
        return arm, chance * (1 - share)
    if plan.policy is not None:
        chances = unpack_policy(plan.policy).probabilities(
            np.array([[*features, 1.0]], dtype=np.float64)
        )[0]
        place = 0 if draw_of(identity, plan.salt) < chances[0] else 1
        name = plan.policy.arms[place]
        return next(arm for arm in plan.arms if arm.name == name), float(chances[place])
    if plan.period is not None:
        groups = [str(int(features[0]))] if plan.period.field else []
        place = in_turns([at], groups, plan.arms, plan.salt, plan.period)[0]
    else:
        place = assigned([unit], plan.arms, plan.salt)[0]
    return plan.arms[place], plan.arms[place].weight / 10_000


class Live:
    """Versions with an error rate and a bias; requests come once a minute of event time, labels after an hour."""

    def __init__(self, folder, *, versions=2, settings=None, strategies=None, unit="user"):
        self.shop = context(folder)
        self.clock = self.shop.clock
        self.store = self.shop.store
        self.writer = SegmentWriter(folder / "log", name="w")
        self.log = SegmentLog(folder / "log")
        self.settings = {"alpha": 0.05, "min_rows": 200, "max_days": 28.0} | (settings or {})
        self.strategies = strategies or {}
        self.versions = [released(self.shop, n) for n in range(1, versions + 1)]
        self.errors = dict.fromkeys(range(1, versions + 1), 0.0)
        self.bias = dict.fromkeys(range(1, versions + 1), 0.0)
        self.rng = np.random.default_rng(7)
        self.number = 0
        self.units = 5000
        self.gaps = 0
        """Of each ten requests so many miss their feature."""
        self.driver = self.made_driver()
        with self.store.transaction(actor="ana") as transaction:
            transaction.add(
                Endpoint(name="buys", model="buys", unit=unit, label_delay=DAY // 24, created=START)
            )
            first = next_plan(
                None, "buys", arms=(msgspec.structs.replace(arm_of(self.versions[0]), name="champion", weight=10_000),),
                reason="first", actor="ana", now=START,
            )  # fmt: skip
            # A salt of its own, that all plans after it keep: chance draws the same units in every run.
            transaction.add(msgspec.structs.replace(first, salt="the same in every run"))

    def made_driver(self):
        return RolloutDriver(
            store=self.store, blobs=self.shop.blobs, signer=self.shop.signer, log=self.log, clock=self.clock,
            gain_of=lambda _: gain, settings=self.settings, strategies=self.strategies,
        )  # fmt: skip

    def start(self, strategy, *, rules=None, others=()):
        return self.driver.start(
            id="r", endpoint="buys", version=self.versions[1], others=[self.versions[n - 1] for n in others],
            strategy=strategy, rules=rules, actor="ana", makes_champion=True,
        )  # fmt: skip

    @property
    def rollout(self):
        return self.driver.named("r")

    @property
    def plan(self):
        return latest_plan("buys", store=self.store)

    @property
    def last_look(self):
        return self.store.find(Look, {"rollout": "r"}, order=["-number"], limit=1)[0]

    def serving(self):
        return {arm.version: arm.weight for arm in self.plan.arms}

    def send(self, requests, *, seconds=60.0, header=None):
        """Answer requests as a gateway would under the plan in force, and label them."""
        plan = self.plan
        predictions, outcomes = [], []
        for _ in range(requests):
            self.number += 1
            self.clock.at += round(seconds * 1_000_000)
            at, identity, unit = self.clock.at, f"d{self.number}", f"u{self.number % self.units}"
            if not plan.arms:
                continue
            truth = float(self.rng.random() < 0.3)
            noise = self.rng.normal(0, 0.1)
            features = (None if self.number % 10 < self.gaps else float(self.number % 7),)
            chosen, chance = drawn(plan, at, identity, unit, features)
            cohort = next((c for c in plan.cohorts if header and header in c.values), None)
            if cohort is not None:
                chosen = next(arm for arm in plan.arms if arm.name == cohort.arm)
            shown: list[tuple[Arm, bool]] = [(chosen, False), *((m, True) for m in plan.mirrors)]
            for arm, mirror in shown:
                failed = self.rng.random() < self.errors[arm.version]
                predictions.append(
                    Prediction(
                        id=identity, time=at, arrived=at, endpoint="buys", unit=unit,
                        arms=tuple(a.name for a in plan.answering), arm=arm.name,
                        propensity=0.0 if mirror else chance, mirror=mirror, plan=plan.revision,
                        version=arm.version, artefact=arm.artefact, features=features,
                        output=None if failed else 0.3 + noise + self.bias[arm.version], latency=100,
                        status="error" if failed else "ok", cohort=cohort.label if cohort else "",
                    )
                )  # fmt: skip
            outcomes.append(
                Outcome(id=identity, time=at + 1, endpoint="buys", value=truth, arrived=at + 1)
            )
        self.writer.append(predictions=predictions)
        self.writer.append(outcomes=outcomes)

    def run(self, *, rounds=200, requests=50, seconds=60.0):
        """Send and look until it ends; gives the requests that it took."""
        sent = 0
        for _ in range(rounds):
            self.send(requests, seconds=seconds)
            sent += requests
            self.driver._resting.clear()
            self.driver.look()
            if self.rollout.state != "running":
                break
        return sent
