"""Rollouts: a strategy looks at the evidence; what it says becomes the next traffic plan and a signed verdict."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from keepwell.core.champion import CHAMPION, make_champion
from keepwell.core.clock import Clock, Time
from keepwell.core.digest import short
from keepwell.core.errors import Conflict, NotFound, near_miss
from keepwell.core.plans import check_plan
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.predictionlog import PredictionLog
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.signing import Signer
from keepwell.core.ports.store import Reader, Store, Transaction
from keepwell.core.records.evidence import Verdict
from keepwell.core.records.models import Alias, ModelVersion
from keepwell.core.records.traffic import (
    BUCKETS,
    Arm,
    Cohort,
    Endpoint,
    Gap,
    LinearPolicyState,
    Rollout,
    RolloutState,
    TrafficPlan,
)
from keepwell.core.records.watching import Watermark
from keepwell.core.statements import VERDICT, sign_evidence
from keepwell.serving.comparison import Gathering
from keepwell.serving.strategies import STRATEGIES, Answer, Strategy

_STATES: dict[str, RolloutState] = {
    "promote": "promoted",
    "refuse": "refused",
    "roll back": "rolled back",
}


BEFORE = "plan before"
"""What a rollout remembers: the revision of the plan that it found in force, 0 if there was none."""


def latest_plan(endpoint: str, *, store: Reader) -> TrafficPlan | None:
    """Give the traffic plan in force."""
    found = store.find(TrafficPlan, {"endpoint": endpoint}, order=["-revision"], limit=1)
    return found[0] if found else None


def write_plan(
    transaction: Transaction,
    endpoint: str,
    *,
    arms: tuple[Arm, ...],
    mirrors: tuple[Arm, ...],
    reason: str,
    actor: str,
    now: Time,
    cohorts: tuple[Cohort, ...] = (),
    policy: LinearPolicyState | None = None,
    fallback: str | None = None,
    gap: Gap = "refuse",
    gap_seconds: float = 0.0,
) -> TrafficPlan:
    """Add the next revision of an endpoint's plan, unless the plan in force says the same.

    A plan without arms takes the endpoint out of use: what is called there is answered by nobody, or waits
    for ``gap_seconds``. Without a ``fallback`` the first of several arms is it; an empty one says that there is none.
    Raises Conflict if another writer was first, Refused for what ``plan_problems`` finds.
    """
    before = latest_plan(endpoint, store=transaction)
    plan = _next_plan(
        before,
        endpoint,
        arms=arms,
        mirrors=mirrors,
        reason=reason,
        actor=actor,
        now=now,
        cohorts=cohorts,
        policy=policy,
        fallback=fallback,
        gap=gap,
        gap_seconds=gap_seconds,
    )
    version = transaction.get(ModelVersion, arms[0].model, arms[0].version) if arms else None
    check_plan(
        plan,
        endpoint=transaction.get(Endpoint, endpoint),
        signature=version.signature if version else None,
    )
    if plan is not before:
        transaction.add(plan, reason=reason)
    return plan


def _next_plan(
    before: TrafficPlan | None,
    endpoint: str,
    *,
    arms: tuple[Arm, ...],
    mirrors: tuple[Arm, ...],
    reason: str,
    actor: str,
    now: Time,
    cohorts: tuple[Cohort, ...] = (),
    policy: LinearPolicyState | None = None,
    fallback: str | None = None,
    gap: Gap = "refuse",
    gap_seconds: float = 0.0,
) -> TrafficPlan:
    """Make the plan that follows; the one before, if it says the same."""
    if fallback is None:
        fallback = arms[0].name if len(arms) > 1 else ""
    plan = TrafficPlan(
        endpoint=endpoint,
        revision=before.revision + 1 if before else 1,
        arms=arms,
        mirrors=mirrors,
        cohorts=cohorts,
        policy=policy,
        fallback=fallback,
        gap=gap,
        gap_seconds=gap_seconds,
        # The salt stays, so that nobody changes arms who need not.
        salt=before.salt if before else secrets.token_hex(8),
        reason=reason,
        by=actor,
        created=now,
    )
    if before is not None and plan == msgspec.structs.replace(
        before, revision=plan.revision, reason=reason, by=actor, created=now
    ):
        return before
    return plan


class RolloutDriver:
    """Drives all rollouts of a project. One process at a time looks (the worker); anyone may start or roll back."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        signer: Signer,
        log: PredictionLog,
        clock: Clock,
        gain_of: Callable[[str], Gain],
        settings: Mapping[str, Any],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._signer = signer
        self._log = log
        self._clock = clock
        self._gain_of = gain_of
        self._settings = dict(settings)
        self._gatherings: dict[str, Gathering] = {}

    def start(
        self, *, id: str, endpoint: str, version: ModelVersion, strategy: str, actor: str
    ) -> Rollout:
        """Begin a rollout, or give the one of this id. Raises NotFound, Conflict if another one is running."""
        found = self._store.get(Rollout, id)
        if found is not None:
            return found
        controller: Strategy = STRATEGIES.load(strategy)()
        now = self._clock.now()
        watermark = self._store.get(Watermark, endpoint)
        cursor = self._end_of_log(watermark)
        with self._store.transaction(actor=actor) as transaction:
            self._refuse_a_second(endpoint, store=transaction)
            plan = latest_plan(endpoint, store=transaction)
            champion = plan.arms[0] if plan and plan.arms else None
            challenger = arm_of(version)
            rollout = Rollout(
                id=id,
                endpoint=endpoint,
                model=version.model,
                strategy=strategy,
                champion=champion.version if champion else None,
                challenger=version.version,
                state="running",
                settings=self._settings,
                memory={
                    "cursor": msgspec.json.encode(cursor).decode(),
                    BEFORE: plan.revision if plan else 0,
                },
                since=watermark.event_time if watermark else 0,
                started=now,
            )
            answer = controller.begin(rollout, champion, challenger)
            transaction.add(rollout)
            written = write_plan(
                transaction,
                endpoint,
                arms=answer.arms,
                mirrors=answer.mirrors,
                reason=f"{strategy}: {version.label()}",
                actor=actor,
                now=now,
            )
        if answer.verdict != "go on":
            return self._end(rollout, answer, plan=written, actor=actor)
        return rollout

    def check(self, strategy: str) -> None:
        """Raise NotFound, with the nearest name, unless there is such a strategy."""
        STRATEGIES.load(strategy)

    def preview(self, *, endpoint: str, version: ModelVersion, strategy: str) -> TrafficPlan:
        """Give the plan that a rollout would begin with, without beginning it. Raises NotFound, Conflict."""
        controller: Strategy = STRATEGIES.load(strategy)()
        self._refuse_a_second(endpoint, store=self._store)
        plan = latest_plan(endpoint, store=self._store)
        champion = plan.arms[0] if plan and plan.arms else None
        now = self._clock.now()
        trial = Rollout(
            id="",
            endpoint=endpoint,
            model=version.model,
            strategy=strategy,
            challenger=version.version,
            state="running",
            settings=self._settings,
            since=now,
            started=now,
        )
        answer = controller.begin(trial, champion, arm_of(version))
        return _next_plan(
            plan,
            endpoint,
            arms=answer.arms,
            mirrors=answer.mirrors,
            reason=f"{strategy}: {version.label()}",
            actor="",
            now=now,
        )

    def _refuse_a_second(self, endpoint: str, *, store: Reader) -> None:
        running = store.find(Rollout, {"endpoint": endpoint, "state": ["running", "paused"]})
        if running:
            raise Conflict(
                f"The rollout {running[0].id} is {running[0].state} on {endpoint!r}.",
                todo="Wait for its verdict, or end it with 'keepwell rollback'.",
            )

    def _end_of_log(self, watermark: Watermark | None) -> dict[str, int]:
        return dict(watermark.cursor) if watermark else {}

    def look(self) -> int:
        """Let every running rollout's strategy look once; gives how many ended."""
        ended = 0
        for rollout in self._store.find(Rollout, {"state": "running"}):
            ended += self._look(rollout)
        return ended

    def _look(self, rollout: Rollout) -> bool:
        gathering = self._gatherings.get(rollout.id)
        if gathering is None:
            endpoint = self._store.get(Endpoint, rollout.endpoint)
            if endpoint is None:
                raise NotFound(f"There is no endpoint {rollout.endpoint!r}.")
            gathering = Gathering(
                rollout,
                cursor=msgspec.json.decode(str(rollout.memory["cursor"]), type=dict[str, int]),
                label_delay=endpoint.label_delay,
                gain=self._gain_of(rollout.model),
            )
            self._gatherings[rollout.id] = gathering
        while gathering.read(self._log):
            pass
        champion, challenger = self._arms(rollout)
        controller: Strategy = STRATEGIES.load(rollout.strategy)()
        answer = controller.look(rollout, champion, challenger, gathering.evidence())
        if answer.verdict == "go on":
            return False
        with self._store.transaction(actor="worker") as transaction:
            plan = write_plan(
                transaction,
                rollout.endpoint,
                arms=answer.arms,
                mirrors=answer.mirrors,
                reason=f"{answer.verdict}: {answer.reason}",
                actor="worker",
                now=self._clock.now(),
            )
        self._end(rollout, answer, plan=plan, actor="worker")
        self._gatherings.pop(rollout.id, None)
        return True

    def _arms(self, rollout: Rollout) -> tuple[Arm | None, Arm]:
        version = self._store.get(ModelVersion, rollout.model, rollout.challenger)
        if version is None:
            raise NotFound(f"There is no version {rollout.model}/{rollout.challenger}.")
        champion = None
        if rollout.champion is not None:
            held = self._store.get(ModelVersion, rollout.model, rollout.champion)
            champion = arm_of(held, name="champion") if held is not None else None
        return champion, arm_of(version)

    def _end(self, rollout: Rollout, answer: Answer, *, plan: TrafficPlan, actor: str) -> Rollout:
        """Write the signed verdict. The plan is written before: traffic is safe first, then the books."""
        with self._store.transaction(actor=actor) as transaction:
            return self._conclude(transaction, rollout, answer, plan=plan)

    def _conclude(
        self, transaction: Transaction, rollout: Rollout, answer: Answer, *, plan: TrafficPlan
    ) -> Rollout:
        current = transaction.get(Rollout, rollout.id)
        if current is None or current.state not in {"running", "paused"}:
            return current or rollout
        now = self._clock.now()
        version = transaction.get(ModelVersion, rollout.model, rollout.challenger)
        if version is None:
            raise NotFound(f"There is no version {rollout.model}/{rollout.challenger}.")
        verdict: Verdict = "pass" if answer.verdict == "promote" else "fail"
        evidence = sign_evidence(
            signer=self._signer,
            blobs=self._blobs,
            subject=version.label(),
            subject_digest=version.artefact,
            predicate=VERDICT,
            body={
                "rollout": rollout.id,
                "strategy": rollout.strategy,
                "answer": answer.verdict,
                "reason": answer.reason,
                "measured": answer.measured,
                "settings": rollout.settings,
                "plan": plan.revision,
            },
            verdict=verdict,
            now=now,
            procedure=rollout.id,
            step="verdict",
        )
        ended = msgspec.structs.replace(
            current,
            state=_STATES[answer.verdict],
            reason=answer.reason,
            evidence=evidence.envelope,
            ended=now,
            revision=current.revision + 1,
        )
        transaction.add(evidence)
        transaction.replace(ended, reason=answer.reason)
        return ended

    def roll_back(self, endpoint: str, *, actor: str, reason: str) -> TrafficPlan:
        """Give all traffic back: end a running rollout, or else return to the version that answered before.

        Raises NotFound if nothing answered before.
        """
        arms, running = self._way_back(endpoint)
        now = self._clock.now()
        with self._store.transaction(actor=actor) as transaction:
            written = write_plan(
                transaction, endpoint, arms=arms, mirrors=(), reason=reason, actor=actor, now=now
            )
            if running is not None:
                answer = Answer(arms=arms, verdict="roll back", reason=reason)
                self._conclude(transaction, running, answer, plan=written)
            back = arms[0]
            alias = transaction.get(Alias, back.model, CHAMPION)
            if alias is not None and alias.version != back.version:
                # The alias promises to name the version which answers.
                make_champion(transaction, back.model, back.version, now=now, reason=reason)
        return written

    def preview_roll_back(self, endpoint: str, *, reason: str) -> TrafficPlan:
        """Give the plan that ``roll_back`` would write, without writing it. Raises NotFound."""
        arms, _ = self._way_back(endpoint)
        return _next_plan(
            latest_plan(endpoint, store=self._store),
            endpoint,
            arms=arms,
            mirrors=(),
            reason=reason,
            actor="",
            now=self._clock.now(),
        )

    def _way_back(self, endpoint: str) -> tuple[tuple[Arm, ...], Rollout | None]:
        """Give who would answer after a rollback, and the rollout that it ends."""
        plan = latest_plan(endpoint, store=self._store)
        if plan is None or not plan.arms:
            known = [row.name for row in self._store.find(Endpoint)]
            raise NotFound(
                f"Nothing is deployed at {endpoint!r}.",
                todo=near_miss(endpoint, known) if endpoint not in known else "",
            )
        running = self._store.find(Rollout, {"endpoint": endpoint, "state": ["running", "paused"]})
        back = self._arms(running[0])[0] if running else self._before(plan)
        if back is None:
            raise NotFound(
                f"No version answered {endpoint!r} before the one that answers now.",
                todo="Release and activate another version instead.",
            )
        arms = (msgspec.structs.replace(back, name="champion", weight=BUCKETS),)
        return arms, running[0] if running else None

    def call_off(self, transaction: Transaction, *, id: str, actor: str, reason: str) -> bool:
        """Take back what the rollout of this id has changed: its endpoint returns to the plan before it.

        Where that plan named a version that may not answer any more, an earlier one is taken; where there is
        none, a plan without arms. A rollout that runs on the endpoint ends with it. Does nothing, and gives
        False, if the plan in force does not name the version (somebody gave the traffic back already).
        """
        rollout = transaction.get(Rollout, id)
        if rollout is None:
            return False
        plan = latest_plan(rollout.endpoint, store=transaction)
        found = int(rollout.memory.get(BEFORE) or 0)
        if plan is None or plan.revision <= found or not _names(plan, rollout):
            return False
        before = _plan_before(transaction, rollout, found)
        arms = before.arms if before else ()
        written = write_plan(
            transaction,
            rollout.endpoint,
            arms=arms,
            mirrors=(),
            cohorts=before.cohorts if before else (),
            policy=before.policy if before else None,
            fallback=before.fallback if before else None,
            reason=reason,
            actor=actor,
            now=self._clock.now(),
        )
        for running in transaction.find(
            Rollout, {"endpoint": rollout.endpoint, "state": ["running", "paused"]}
        ):
            answer = Answer(arms=arms, verdict="roll back", reason=reason)
            self._conclude(transaction, running, answer, plan=written)
            self._gatherings.pop(running.id, None)
        return True

    def _before(self, plan: TrafficPlan) -> Arm | None:
        earlier = self._store.find(
            TrafficPlan,
            {"endpoint": plan.endpoint, "revision <": plan.revision},
            order=["-revision"],
        )
        for other in earlier:
            if (
                other.arms
                and other.arms[0].artefact != plan.arms[0].artefact
                and _may_answer(other.arms[0], self._store)
            ):
                return other.arms[0]
        return None


def _plan_before(store: Reader, rollout: Rollout, revision: int) -> TrafficPlan | None:
    for plan in store.find(
        TrafficPlan,
        {"endpoint": rollout.endpoint, "revision <=": revision},
        order=["-revision"],
    ):
        if not plan.arms:
            return None
        if not _names(plan, rollout) and all(_may_answer(arm, store) for arm in plan.arms):
            return plan
    return None


def _may_answer(arm: Arm, store: Reader) -> bool:
    version = store.get(ModelVersion, arm.model, arm.version)
    return version is not None and version.state not in {"refused", "retired"}


def _names(plan: TrafficPlan, rollout: Rollout) -> bool:
    return any(
        (arm.model, arm.version) == (rollout.model, rollout.challenger)
        for arm in (*plan.arms, *plan.mirrors)
    )


def arm_of(version: ModelVersion, *, name: str = "challenger") -> Arm:
    """Make an arm of a version."""
    return Arm(name=name, model=version.model, version=version.version, artefact=version.artefact)


def describe_plan(plan: TrafficPlan) -> str:
    """Say in a line who answers: ``v3 100% (4f2a...), mirrors v4``."""
    arms = ", ".join(f"v{a.version} {a.weight / 100:g}% ({short(a.artefact)})" for a in plan.arms)
    cohorts = "".join(f", {cohort.label} to {cohort.arm}" for cohort in plan.cohorts)
    drawn = f", drawn by {plan.policy.kind}" if plan.policy else ""
    mirrors = ", ".join(
        f"v{a.version}" + (f" {a.weight / 100:g}%" if 0 < a.weight < BUCKETS else "")
        for a in plan.mirrors
    )
    held = f" (requests wait {plan.gap_seconds:g} s)" if plan.gap == "hold" and not arms else ""
    return (arms or "nobody") + held + cohorts + drawn + (f", mirrors {mirrors}" if mirrors else "")
