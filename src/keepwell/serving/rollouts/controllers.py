"""A rollout's strategy as it is asked: its rules, its state, what it looks at, and the name of what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from keepwell.core.clock import Time
from keepwell.core.digest import Digest, digest_bytes, digest_of
from keepwell.core.errors import InvalidInput, NotFound, near_miss
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.store import Reader
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import Rollout
from keepwell.core.records.traffic import Arm, Endpoint, TrafficPlan
from keepwell.serving.rollouts.observations import Gathering, Observations
from keepwell.serving.rollouts.plans import arm_of, latest_plan
from keepwell.serving.rollouts.strategies import STRATEGIES
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, Rules, State, Strategy

_NUMBERS = frozenset({"float64", "int64", "bool"})


class Labels(msgspec.Struct, frozen=True):
    """When an endpoint's decisions are labelled, where that is declared otherwise than by its record."""

    expires: Time | None = None
    default: float | None = None


def rules_of(
    strategy: str,
    shared: Mapping[str, Any],
    own: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a strategy's rules together, complete with defaults: shared ones, its own, those given for one rollout.

    Raises NotFound for a strategy, InvalidInput for a rule that it does not know or a wrong value.
    """
    kind: type[Rules] = STRATEGIES.load(strategy).rules
    names = kind.__struct_fields__
    wanted = {name: value for name, value in shared.items() if name in names}
    wanted |= dict(own or {}) | dict(given or {})
    for name in wanted:
        if name not in names:
            raise InvalidInput(
                f"The strategy {strategy!r} has no rule {name!r}.", todo=near_miss(name, names)
            )
    try:
        found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(wanted, kind))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"A rule of {strategy!r}: {error}.") from error
    return found


def rules_by_stage(
    stages: Sequence[str],
    shared: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Put the rules of all stages together; each takes, of those given, what it knows. Raises as ``rules_of``."""
    known = {name: STRATEGIES.load(name).rules.__struct_fields__ for name in stages}
    wanted = dict(given or {})
    names = sorted({name for each in known.values() for name in each})
    for name in wanted:
        if name not in names:
            raise InvalidInput(
                f"{' and '.join(map(repr, stages))} have no rule {name!r}."
                if len(stages) > 1
                else f"The strategy {stages[0]!r} has no rule {name!r}.",
                todo=near_miss(name, names),
            )
    return {
        stage: rules_of(
            stage,
            shared,
            own.get(stage),
            {name: value for name, value in wanted.items() if name in known[stage]},
        )
        for stage in stages
    }


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
        since_plan=int(memory.get("plan before") or 0) + 1,
    )


def state_of(rollout: Rollout, *, store: Reader, gain: Gain, labels: Labels) -> State:
    """Give what a rollout's strategy knows beside the observations. Raises NotFound."""
    versions = [_version(rollout.model, number, store) for number in rollout.challengers]
    champion: Arm | None = None
    if rollout.champion is not None:
        held = store.get(ModelVersion, rollout.model, rollout.champion)
        champion = arm_of(held, name=CHAMPION) if held is not None else None
    endpoint = store.get(Endpoint, rollout.endpoint)
    plan = latest_plan(rollout.endpoint, store=store)
    kind: type[Rules] = STRATEGIES.load(rollout.strategy).rules
    delay = endpoint.label_delay if endpoint else 0
    if labels.default is not None and labels.expires is not None:
        delay = labels.expires
    return State(
        champion=champion,
        challengers=tuple(
            arm_of(version, name="challenger" if place == 1 else f"challenger-{place}")
            for place, version in enumerate(versions, 1)
        ),
        rules=msgspec.convert(carried_over(rollout).settings[rollout.strategy], kind),
        memory=rollout.memory,
        plan=plan.revision if plan else 0,
        unit=endpoint.unit if endpoint else "",
        fields=tuple(name for _, name in _looked_at(rollout, versions[0])),
        label_delay=delay,
        default=labels.default,
        gain=gain,
        plan_of=lambda revision: store.get(TrafficPlan, rollout.endpoint, revision),
    )


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
    if not STRATEGIES.load(rollout.strategy).features:
        return []
    columns = version.signature.inputs if version.signature else ()
    return [(place, c.name) for place, c in enumerate(columns) if c.dtype in _NUMBERS]
