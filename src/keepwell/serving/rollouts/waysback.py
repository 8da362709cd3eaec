"""Ways back: who answers an endpoint when what has changed there is taken back."""

from __future__ import annotations

from keepwell.core.errors import NotFound, near_miss
from keepwell.core.ports.store import Reader
from keepwell.core.records.rollouts import OPEN, Rollout
from keepwell.core.records.traffic import Arm, Endpoint, TrafficPlan
from keepwell.serving.rollouts.controllers import champion_of
from keepwell.serving.rollouts.plans import latest_plan, may_answer
from keepwell.serving.rollouts.strategy import alone


def way_back(endpoint: str, *, store: Reader) -> tuple[tuple[Arm, ...], Rollout | None]:
    """Give who would answer after a rollback, and the rollout that it ends. Raises NotFound."""
    running = store.find(Rollout, {"endpoint": endpoint, "state": OPEN})
    plan = latest_plan(endpoint, store=store)
    if plan is None or not (plan.arms or running):
        known = [row.name for row in store.find(Endpoint)]
        raise NotFound(
            f"Nothing is deployed at {endpoint!r}.",
            todo=near_miss(endpoint, known) if endpoint not in known else "",
        )
    back = champion_of(running[0], store=store) if running else _before(plan, store)
    if back is None:
        raise NotFound(
            f"No version answered {endpoint!r} before the one that answers now.",
            todo="Release and activate another version instead.",
        )
    return alone(back), running[0] if running else None


def plan_before(store: Reader, rollout: Rollout, revision: int) -> TrafficPlan | None:
    """Give the newest plan, from a revision back, without the rollout's challengers whose arms may all still answer.

    None where there is none, or where nothing answered before it.
    """
    for plan in store.find(
        TrafficPlan,
        {"endpoint": rollout.endpoint, "revision <=": revision},
        order=["-revision"],
    ):
        if not plan.arms:
            return None
        if not names_any(plan, rollout) and all(may_answer(arm, store) for arm in plan.arms):
            return plan
    return None


def names_any(plan: TrafficPlan, rollout: Rollout) -> bool:
    """Tell whether a challenger of the rollout answers or mirrors under a plan."""
    return any(
        arm.model == rollout.model and arm.version in rollout.challengers
        for arm in (*plan.arms, *plan.mirrors)
    )


def _before(plan: TrafficPlan, store: Reader) -> Arm | None:
    earlier = store.find(
        TrafficPlan,
        {"endpoint": plan.endpoint, "revision <": plan.revision},
        order=["-revision"],
    )
    for other in earlier:
        if (
            other.arms
            and other.arms[0].artefact != plan.arms[0].artefact
            and may_answer(other.arms[0], store)
        ):
            return other.arms[0]
    return None
