"""Rollouts: a strategy looks at the evidence; what it says becomes the next traffic plan and a signed verdict."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from keepwell.core.clock import Clock, Time
from keepwell.core.digest import short
from keepwell.core.errors import Conflict, NotFound, Refused
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.predictionlog import PredictionLog
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.signing import Signer
from keepwell.core.ports.store import Reader, Store, Transaction
from keepwell.core.records.evidence import Verdict
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import BUCKETS, Arm, Endpoint, Rollout, RolloutState, TrafficPlan
from keepwell.core.records.watching import Watermark
from keepwell.core.statements import VERDICT, sign_evidence
from keepwell.serving.comparison import Gathering
from keepwell.serving.strategies import STRATEGIES, Answer, Strategy

_STATES: dict[str, RolloutState] = {
    "promote": "promoted",
    "refuse": "refused",
    "roll back": "rolled back",
}


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
) -> TrafficPlan:
    """Add the next revision of an endpoint's plan, unless the plan in force says the same.

    Raises Conflict if another writer was first, Refused if the weights do not add up.
    """
    if sum(arm.weight for arm in arms) != BUCKETS:
        raise Refused(
            f"The weights add up to {sum(arm.weight for arm in arms):,}, not {BUCKETS:,}.",
            where=f"endpoint {endpoint!r}",
        )
    before = latest_plan(endpoint, store=transaction)
    if before is not None and (before.arms, before.mirrors) == (arms, mirrors):
        return before
    plan = TrafficPlan(
        endpoint=endpoint,
        revision=before.revision + 1 if before else 1,
        arms=arms,
        mirrors=mirrors,
        fallback=arms[0].name if len(arms) > 1 else "",
        # The salt stays, so that nobody changes arms who need not.
        salt=before.salt if before else secrets.token_hex(8),
        reason=reason,
        by=actor,
        created=now,
    )
    transaction.add(plan, reason=reason)
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
            running = transaction.find(
                Rollout, {"endpoint": endpoint, "state": ["running", "paused"]}
            )
            if running:
                raise Conflict(
                    f"The rollout {running[0].id} is {running[0].state} on {endpoint!r}.",
                    todo="Wait for its verdict, or end it with 'keepwell rollback'.",
                )
            plan = latest_plan(endpoint, store=transaction)
            champion = plan.arms[0] if plan else None
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
                memory={"cursor": msgspec.json.encode(cursor).decode()},
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
        now = self._clock.now()
        version = self._store.get(ModelVersion, rollout.model, rollout.challenger)
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
        with self._store.transaction(actor=actor) as transaction:
            current = transaction.get(Rollout, rollout.id)
            if current is None or current.state not in {"running", "paused"}:
                return current or rollout
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
        plan = latest_plan(endpoint, store=self._store)
        if plan is None:
            raise NotFound(f"Nothing is deployed at {endpoint!r}.")
        running = self._store.find(Rollout, {"endpoint": endpoint, "state": ["running", "paused"]})
        if running:
            champion, _ = self._arms(running[0])
            back = champion
        else:
            back = self._before(plan)
        if back is None:
            raise NotFound(
                f"No version answered {endpoint!r} before the one that answers now.",
                todo="Release and activate another version instead.",
            )
        arms = (msgspec.structs.replace(back, name="champion", weight=BUCKETS),)
        now = self._clock.now()
        with self._store.transaction(actor=actor) as transaction:
            written = write_plan(
                transaction, endpoint, arms=arms, mirrors=(), reason=reason, actor=actor, now=now
            )
        if running:
            answer = Answer(arms=arms, verdict="roll back", reason=reason)
            self._end(running[0], answer, plan=written, actor=actor)
        return written

    def _before(self, plan: TrafficPlan) -> Arm | None:
        earlier = self._store.find(
            TrafficPlan,
            {"endpoint": plan.endpoint, "revision <": plan.revision},
            order=["-revision"],
        )
        for other in earlier:
            if other.arms[0].artefact != plan.arms[0].artefact:
                return other.arms[0]
        return None


def arm_of(version: ModelVersion, *, name: str = "challenger") -> Arm:
    """Make an arm of a version."""
    return Arm(name=name, model=version.model, version=version.version, artefact=version.artefact)


def describe_plan(plan: TrafficPlan) -> str:
    """Say in a line who answers: ``v3 100% (4f2a...), mirrors v4``."""
    arms = ", ".join(f"v{a.version} {a.weight / 100:g}% ({short(a.artefact)})" for a in plan.arms)
    mirrors = ", ".join(f"v{a.version}" for a in plan.mirrors)
    return arms + (f", mirrors {mirrors}" if mirrors else "")
