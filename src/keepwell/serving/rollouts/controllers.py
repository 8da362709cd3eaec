"""A rollout's strategy as it is asked: its rules, its state, what it looks at, and the name of what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import Time
from keepwell.core.digest import Digest, digest_bytes, digest_of
from keepwell.core.errors import InvalidInput, KeepwellError, NotFound, near_miss
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.store import Reader
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import Rollout
from keepwell.core.records.traffic import Arm, Endpoint, TrafficPlan
from keepwell.serving.log.columns import AnswerLog
from keepwell.serving.rollouts.history import (
    LOOKED_BACK,
    Before,
    Known,
    before_of,
    reach_of,
    read_again,
)
from keepwell.serving.rollouts.observations import Gathering, Observations
from keepwell.serving.rollouts.plans import arm_of, latest_plan
from keepwell.serving.rollouts.strategies import STRATEGIES
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, Rules, State, Strategy

_NUMBERS = frozenset({"float64", "int64", "bool"})

BEFORE = "plan before"
"""What a rollout remembers: the revision of the plan that it found in force, 0 if there was none."""
KEPT = ("known", LOOKED_BACK, "forecast")
"""What a rollout remembers from before it began, through all its stages; looks do not repeat it."""


def kept_of(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a rollout remembers from before it began."""
    return {name: memory[name] for name in KEPT if name in memory}


class Labels(msgspec.Struct, frozen=True):
    """When an endpoint's decisions are labelled, where that is declared otherwise than by its record."""

    expires: Time | None = None
    default: float | None = None


class Valuation(msgspec.Struct, frozen=True, kw_only=True):
    """What a project says of its models' decisions: their worth, in its metric and in money, and when it is known."""

    gain_of: Callable[[str], Gain]
    """By the model's name."""
    money_of: Callable[[str], Gain | None]
    """By the model's name; None where it declares no KPI."""
    labels_of: Callable[[str], Labels]
    """By the endpoint's name."""

    def state(self, rollout: Rollout, *, store: Reader) -> State:
        """Give what a rollout's strategy knows beside the observations. Raises NotFound."""
        return state_of(
            rollout,
            store=store,
            gain=self.gain_of(rollout.model),
            labels=self.labels_of(rollout.endpoint),
            money=self.money_of(rollout.model),
        )


def rules_of(
    strategy: str,
    shared: Mapping[str, Any],
    own: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a strategy's rules together, complete with defaults: shared ones, its own, those given for one rollout.

    Raises NotFound for a strategy, InvalidInput for rules that it does not know or wrong values: all of them at once.
    """
    kind: type[Rules] = STRATEGIES.load(strategy).rules
    names = kind.__struct_fields__
    wanted = {name: value for name, value in shared.items() if name in names}
    wanted |= dict(own or {}) | dict(given or {})
    problems = [
        f"The strategy {strategy!r} has no rule {name!r}. {near_miss(name, names)}"
        for name in wanted
        if name not in names
    ]
    for name in names:
        if name in wanted:
            try:
                msgspec.convert({name: wanted[name]}, kind)
            except msgspec.ValidationError as error:
                problems.append(f"A rule of {strategy!r}: {error}.")
    if problems:
        raise InvalidInput(" ".join(problems))
    found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(wanted, kind))
    return found


def rules_by_stage(
    stages: Sequence[str],
    shared: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[KeepwellError]]:
    """Put the rules of all stages together, and list what is wrong; each takes, of those given, what it knows.

    Stages with something wrong are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    wrong: list[KeepwellError] = []
    known: dict[str, tuple[str, ...]] = {}
    for stage in stages:
        try:
            known[stage] = STRATEGIES.load(stage).rules.__struct_fields__
        except NotFound as error:
            wrong.append(error)
    wanted = dict(given or {})
    names = sorted({name for each in known.values() for name in each})
    if len(known) == len(set(stages)):
        told = (
            f"{' and '.join(map(repr, stages))} have"
            if len(stages) > 1
            else f"The strategy {stages[0]!r} has"
        )
        wrong += [
            InvalidInput(f"{told} no rule {name!r}.", todo=near_miss(name, names))
            for name in wanted
            if name not in names
        ]
    for stage, theirs in known.items():
        mine = {name: value for name, value in wanted.items() if name in theirs}
        try:
            found[stage] = rules_of(stage, shared, own.get(stage), mine)
        except InvalidInput as error:
            wrong.append(error)
    return found, wrong


def carried_over(rollout: Rollout) -> Rollout:
    """Give a rollout that an earlier version began in the form of today: one stage, its rules by its name."""
    if rollout.stages:
        return rollout
    names = STRATEGIES.load(rollout.strategy).rules.__struct_fields__
    old = {name: value for name, value in rollout.settings.items() if name in names}
    memory = dict(rollout.memory)
    if isinstance(memory.get("cursor"), str):
        memory["cursor"] = msgspec.json.decode(memory["cursor"], type=dict[str, int])
    return msgspec.structs.replace(
        rollout,
        stages=(rollout.strategy,),
        settings={rollout.strategy: rules_of(rollout.strategy, old)},
        memory=memory,
        since_plan=int(memory.get(BEFORE) or 0) + 1,
    )


def state_of(
    rollout: Rollout,
    *,
    store: Reader,
    gain: Gain,
    labels: Labels,
    money: Gain | None = None,
    before: Before | None = None,
) -> State:
    """Give what a rollout's strategy knows beside the observations. Raises NotFound."""
    versions = [_version(rollout.model, number, store) for number in rollout.challengers]
    endpoint = store.get(Endpoint, rollout.endpoint)
    plan = latest_plan(rollout.endpoint, store=store)
    kind: type[Rules] = STRATEGIES.load(rollout.strategy).rules
    signature = versions[0].signature
    known = rollout.memory.get("known")
    return State(
        champion=champion_of(rollout, store=store),
        challengers=tuple(
            arm_of(version, name="challenger" if place == 1 else f"challenger-{place}")
            for place, version in enumerate(versions, 1)
        ),
        rules=msgspec.convert(carried_over(rollout).settings[rollout.strategy], kind),
        memory=rollout.memory,
        plan=plan.revision if plan else 0,
        unit=endpoint.unit if endpoint else "",
        fields=tuple(name for _, name in _looked_at(rollout, versions[0])),
        numeric=tuple(name for _, name in _numeric(versions[0])),
        task=signature.task if signature else "",
        label_delay=label_delay_of(endpoint, labels),
        default=labels.default,
        gain=gain,
        plan_of=lambda revision: store.get(TrafficPlan, rollout.endpoint, revision),
        money=money,
        known=None if known is None else msgspec.convert(known, Known),
        before=before,
    )


def champion_of(rollout: Rollout, *, store: Reader) -> Arm | None:
    """Give the arm that answered before a rollout, and answers again when it is given up; None where there was none."""
    if rollout.champion is None:
        return None
    held = store.get(ModelVersion, rollout.model, rollout.champion)
    return arm_of(held, name=CHAMPION) if held is not None else None


def gathering_of(rollout: Rollout, *, store: Reader) -> Gathering:
    """Begin to gather what the rollout's stage looks at. Raises NotFound."""
    version = _version(rollout.model, rollout.challenger, store)
    return Gathering(
        rollout.endpoint,
        cursor=rollout.memory["cursor"],
        since_plan=rollout.since_plan,
        fields=[place for place, _ in _looked_at(rollout, version)],
        group=_grouped_by(rollout, version),
    )


def history_of(
    rollout: Rollout, *, store: Reader, log: AnswerLog, gain: Gain, labels: Labels
) -> Before | None:
    """Read again what units were worth before a rollout, as it was read then; None where no rule asks."""
    reach = reach_of(rollout.memory)
    if reach is None:
        return None
    endpoint = store.get(Endpoint, rollout.endpoint)
    return before_of(
        read_again(log, rollout.endpoint, reach),
        gain=gain,
        label_delay=label_delay_of(endpoint, labels),
        default=labels.default,
    )


def label_delay_of(endpoint: Endpoint | None, labels: Labels) -> Time:
    """Tell how long after a decision its outcome has come, or stands as its default."""
    if labels.default is not None and labels.expires is not None:
        return labels.expires
    return endpoint.label_delay if endpoint else 0


def begin(rollout: Rollout, state: State, now: Time) -> Answer:
    """Ask a strategy how it begins, before anything is seen."""
    nothing = Gathering(rollout.endpoint, cursor={}, since_plan=0, fields=range(len(state.fields)))
    return ask(rollout, state, nothing.observations(), now)


def ask(rollout: Rollout, state: State, seen: Observations, now: Time) -> Answer:
    """Let the rollout's strategy look. The random numbers are those of the rollout's next look."""
    controller: Strategy = STRATEGIES.load(rollout.strategy)()
    seed = int(digest_bytes(f"{rollout.id}/{rollout.looks}".encode()).removeprefix("sha256:"), 16)
    return controller.plan(state, seen, now, np.random.default_rng(seed))


def answer_digest(answer: Answer) -> Digest:
    """Name everything that an answer says."""
    return digest_of(answer)


def _version(model: str, number: int, store: Reader) -> ModelVersion:
    version = store.get(ModelVersion, model, number)
    if version is None:
        raise NotFound(f"There is no version {model}/{number}.")
    return version


def _grouped_by(rollout: Rollout, version: ModelVersion) -> tuple[int, str] | None:
    """Give place and type of the feature that the rule ``group`` names, where the strategy has one."""
    named = rollout.settings.get(rollout.strategy, {}).get("group")
    columns = version.signature.inputs if version.signature else ()
    return next(((k, c.dtype) for k, c in enumerate(columns) if c.name == named), None)


def _looked_at(rollout: Rollout, version: ModelVersion) -> list[tuple[int, str]]:
    """List places and names of the features that the rollout's strategy looks at."""
    strategy = STRATEGIES.load(rollout.strategy)
    if strategy.features:
        return _numeric(version)
    rules: Rules = msgspec.convert(carried_over(rollout).settings[rollout.strategy], strategy.rules)
    return [each for each in _numeric(version) if each[1] in rules.looked_at()]


def _numeric(version: ModelVersion) -> list[tuple[int, str]]:
    columns = version.signature.inputs if version.signature else ()
    return [(place, c.name) for place, c in enumerate(columns) if c.dtype in _NUMBERS]
