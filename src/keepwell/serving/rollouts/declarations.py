"""A rollout as it is declared: checked whole, and foretold, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from keepwell.core.clock import DAY, Clock
from keepwell.core.errors import Conflict, InvalidInput
from keepwell.core.ports.store import Reader
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import OPEN, Rollout
from keepwell.core.records.traffic import Endpoint
from keepwell.core.records.watching import Watermark
from keepwell.serving.log.columns import AnswerLog
from keepwell.serving.rollouts.controllers import (
    BEFORE,
    Valuation,
    begin,
    label_delay_of,
    rules_by_stage,
)
from keepwell.serving.rollouts.forecasts import Foreseeing, forecast
from keepwell.serving.rollouts.history import LOOKED_BACK, Reach, known_of, reach_back
from keepwell.serving.rollouts.holdouts import misfits
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.plans import latest_plan
from keepwell.serving.rollouts.strategies import STRATEGIES
from keepwell.serving.rollouts.strategy import Answer


class Declarations:
    """Checks what rollouts are declared with, by the project's rules and the endpoint's recent traffic."""

    def __init__(
        self,
        *,
        store: Reader,
        log: AnswerLog,
        clock: Clock,
        valuation: Valuation,
        settings: Mapping[str, Any],
        strategies: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """``settings`` are the rules for every strategy, ``strategies`` those for one, by its name."""
        self._store = store
        self._log = log
        self._clock = clock
        self._valuation = valuation
        self._settings = dict(settings)
        self._strategies = dict(strategies)

    def looked_back(self, endpoint: str, strategy: str) -> tuple[Reach, Observations] | None:
        """Read the last days of the endpoint's log, where a stage can tell something from it."""
        if not any(
            name in STRATEGIES.names() and isinstance(STRATEGIES.load(name)(), Foreseeing)
            for name in stages_of(strategy)
        ):
            return None
        watermark = self._store.get(Watermark, endpoint)
        newest = watermark.event_time if watermark else 0
        return reach_back(self._log, endpoint, newest=newest)

    def first(
        self,
        id: str,
        endpoint: str,
        version: ModelVersion,
        strategy: str,
        *,
        others: Sequence[ModelVersion],
        rules: Mapping[str, Any] | None,
        store: Reader,
        seen: tuple[Reach, Observations] | None,
    ) -> tuple[Rollout, Answer]:
        """Check a declaration whole, and say how it begins."""
        stages = stages_of(strategy)
        settings, wrong = rules_by_stage(stages, self._settings, self._strategies, rules)
        if len(wrong) == 1 and not settings:
            raise wrong[0]
        _refuse_a_second(endpoint, store=store)
        plan = latest_plan(endpoint, store=store)
        champion = plan.arms[0] if plan and plan.arms else None
        watermark = store.get(Watermark, endpoint)
        now = self._clock.now()
        rollout = Rollout(
            id=id,
            endpoint=endpoint,
            model=version.model,
            strategy=next(iter(settings), stages[0]),
            champion=champion.version if champion else None,
            challenger=version.version,
            others=tuple(other.version for other in others),
            stages=stages,
            state="running",
            settings=settings,
            memory={
                "cursor": dict(watermark.cursor) if watermark else {},
                BEFORE: plan.revision if plan else 0,
            },
            since=watermark.event_time if watermark else 0,
            started=now,
        )
        if seen is not None:
            rollout.memory.update(self._remembered(rollout, *seen, store=store))
        problems = [str(error) for error in wrong]
        problems += misfits(plan, (version, *others), store=store)
        numbers = rollout.challengers
        problems += [
            f"Version {number} is named twice."
            for k, number in enumerate(numbers)
            if number in numbers[:k]
        ]
        problems += [
            f"{name}: the new version would answer everything at once, and {stages[place + 1]!r} would never begin:"
            " put it last."
            for place, name in enumerate(stages[:-1])
            if name == "basic"
        ]
        forecasts = []
        for place, name in enumerate(stages):
            if name not in settings:
                continue
            staged = msgspec.structs.replace(rollout, stage=place, strategy=name)
            state = self._valuation.state(staged, store=store)
            controller = STRATEGIES.load(name)()
            found = controller.problems(state)
            problems += [f"{name}: {problem}" for problem in found]
            if not found:
                forecasts.append(forecast(controller, name, state))
        if problems:
            raise InvalidInput(
                " ".join(problems),
                where=f"rollout at endpoint {endpoint!r}",
                todo="Nothing was changed. The rules of each strategy are in the reference, under 'serving'.",
            )
        rollout.memory["forecast"] = msgspec.to_builtins(forecasts)
        return rollout, begin(rollout, self._valuation.state(rollout, store=store), now)

    def _remembered(
        self, rollout: Rollout, reach: Reach, seen: Observations, *, store: Reader
    ) -> dict[str, Any]:
        """Give what a rollout keeps of the days before it."""
        labels = self._valuation.labels_of(rollout.endpoint)
        days = [each.get("attribution_days", 0.0) for each in rollout.settings.values()]
        known = known_of(
            seen,
            gain=self._valuation.gain_of(rollout.model),
            label_delay=label_delay_of(store.get(Endpoint, rollout.endpoint), labels),
            default=labels.default,
            attribution=round(max(days, default=0.0) * DAY),
        )
        kept: dict[str, Any] = {} if known is None else {"known": msgspec.to_builtins(known)}
        if any(each.get("cuped") is True for each in rollout.settings.values()):
            kept[LOOKED_BACK] = msgspec.to_builtins(reach)
        return kept


def stages_of(strategy: str) -> tuple[str, ...]:
    """Part a declared strategy into its stages.

    >>> stages_of("shadow, canary")
    ('shadow', 'canary')
    """
    return tuple(name.strip() for name in strategy.split(","))


def _refuse_a_second(endpoint: str, *, store: Reader) -> None:
    running = store.find(Rollout, {"endpoint": endpoint, "state": OPEN})
    if running:
        raise Conflict(
            f"The rollout {running[0].id} is {running[0].state} on {endpoint!r}.",
            todo="Wait for its verdict, or end it with 'keepwell rollback'.",
        )
