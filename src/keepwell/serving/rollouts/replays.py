"""Replaying a rollout: every look and every assignment of it computed again, from the log alone."""

from __future__ import annotations

import msgspec

from keepwell.core.errors import NotFound
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.store import Reader
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.predictions import Prediction
from keepwell.core.records.rollouts import Look, Rollout
from keepwell.core.records.traffic import HOLDOUT, TrafficPlan
from keepwell.serving.desk.assign import assigned, drawn_by, held_out, in_turns
from keepwell.serving.desk.codec import text_of
from keepwell.serving.log.batches import Places
from keepwell.serving.log.columns import AnswerLog
from keepwell.serving.rollouts.controllers import (
    Labels,
    answer_digest,
    ask,
    begin,
    gathering_of,
    history_of,
    kept_of,
    state_of,
)
from keepwell.serving.rollouts.observations import Gathering

SHOWN = 20
"""Differences that are told one by one."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What computing a rollout again has shown."""

    rollout: str
    looks: int
    verdict: str
    """What the last look says, computed again."""
    assignments: int
    """Logged answers whose arm was computed again."""
    differences: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Tell whether everything came out as it did then."""
        return not self.differences


def replay(
    rollout: Rollout,
    *,
    store: Reader,
    log: AnswerLog,
    gain: Gain,
    labels: Labels,
    money: Gain | None = None,
) -> Replayed:
    """Compute every kept look of a rollout again, and the arm of every answer that chance assigned."""
    looks = store.find(Look, {"rollout": rollout.id}, order=["number"])
    differences: list[str] = []
    gathering: Gathering | None = None
    stage = -1
    verdict = ""
    begun_with = kept_of(rollout.memory)
    earlier = history_of(rollout, store=store, log=log, gain=gain, labels=labels)
    for look in looks:
        before = msgspec.structs.replace(
            rollout,
            stage=look.stage,
            strategy=rollout.stages[look.stage],
            looks=look.number - 1,
            memory={**look.memory, **begun_with},
        )
        state = state_of(before, store=store, gain=gain, labels=labels, money=money, before=earlier)
        state = msgspec.structs.replace(state, plan=look.plan)
        if look.stage != stage:
            stage = look.stage
            begun = msgspec.structs.replace(
                before, since_plan=look.written, memory={"cursor": look.cursor}
            )
            gathering = gathering_of(begun, store=store)
            answer = begin(before, state, look.at)
        else:
            assert gathering is not None
            while gathering.read(log, until=look.cursor):
                pass
            answer = ask(before, state, gathering.observations(), look.at)
        verdict = answer.verdict
        if answer_digest(answer) != look.answer:
            differences.append(
                f"look {look.number}: it said {look.verdict!r} ({look.reason}); "
                f"computed again it says {answer.verdict!r} ({answer.reason})"
            )
    assigned, wrong = _assignments(rollout, looks, store=store, log=log)
    differences += wrong
    return Replayed(
        rollout=rollout.id,
        looks=len(looks),
        verdict=verdict,
        assignments=assigned,
        differences=tuple(differences[:SHOWN]),
    )


def _assignments(
    rollout: Rollout, looks: list[Look], *, store: Reader, log: AnswerLog
) -> tuple[int, list[str]]:
    """Put every unit in its bucket again, and hold the arm against the one that was logged."""
    if not looks:
        return 0, []
    plans: dict[int, TrafficPlan] = {
        plan.revision: plan for plan in store.find(TrafficPlan, {"endpoint": rollout.endpoint})
    }
    cursor: dict[str, int] = dict(looks[0].cursor)
    until: dict[str, int] = looks[-1].cursor
    checked = 0
    wrong: list[str] = []
    while True:
        batch = log.read(cursor, until=until)
        cursor = batch.cursor
        if not batch.predictions and not batch.outcomes:
            return checked, wrong
        by_plan: dict[int, list[Prediction]] = {}
        for prediction in batch.predictions:
            plan = plans.get(prediction.plan)
            if prediction.endpoint == rollout.endpoint and plan and _by_chance(prediction, plan):
                by_plan.setdefault(plan.revision, []).append(prediction)
        for revision, predictions in by_plan.items():
            plan = plans[revision]
            checked += len(predictions)
            arms = _arms_of(plan, predictions, store)
            for prediction, arm in zip(predictions, arms, strict=True):
                logged = prediction.chosen or prediction.arm
                if arm != logged:
                    wrong.append(
                        f"decision {prediction.id}: it was assigned to {logged!r};"
                        f" computed again it goes to {arm!r} (plan {revision})"
                    )


def _arms_of(plan: TrafficPlan, predictions: list[Prediction], store: Reader) -> list[str]:
    """Name the arms again."""
    held = held_out([p.unit for p in predictions], plan.holdout, plan.salt).tolist()
    names = [arm.name for arm in plan.arms] if plan.policy is None else list(plan.policy.arms)
    places = _places(plan, predictions, store).tolist()
    return [HOLDOUT if out else names[k] for out, k in zip(held, places, strict=True)]


def _places(plan: TrafficPlan, predictions: list[Prediction], store: Reader) -> Places:
    """Give the places of the arms, among those of the plan, or of its policy where it has one."""
    times = [p.time for p in predictions]
    if plan.policy is None and plan.period is None:
        return assigned([p.unit for p in predictions], plan.arms, plan.salt)
    if plan.period is not None and not plan.period.field:
        return in_turns(times, [], plan.arms, plan.salt, plan.period)
    first = plan.arms[0]
    version = store.get(ModelVersion, first.model, first.version)
    signature = version.signature if version is not None else None
    if signature is None:
        raise NotFound(
            f"Version {first.version} of {first.model!r} has no signature, so its features have no names."
        )
    if plan.policy is not None:
        features = [p.features for p in predictions]
        return drawn_by(plan.policy, [p.id for p in predictions], features, signature, plan.salt)
    assert plan.period is not None
    place = signature.names.index(plan.period.field)
    dtype = signature.inputs[place].dtype
    groups = [text_of(p.features[place], dtype) for p in predictions]
    return in_turns(times, groups, plan.arms, plan.salt, plan.period)


def _by_chance(prediction: Prediction, plan: TrafficPlan) -> bool:
    return not prediction.mirror and not prediction.cohort and bool(plan.arms)
