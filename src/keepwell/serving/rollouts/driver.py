"""Rollouts: a strategy looks at the evidence; what it says becomes the next traffic plan and a signed verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from keepwell.core.champion import make_champion
from keepwell.core.clock import Clock, Time
from keepwell.core.errors import Conflict, InvalidInput, NotFound, as_error, near_miss
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.signing import Signer
from keepwell.core.ports.store import Reader, Store, Transaction
from keepwell.core.records.evidence import Verdict
from keepwell.core.records.models import Alias, ModelVersion
from keepwell.core.records.rollouts import OPEN, Look, Preview, Rollout, RolloutState
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.statements import VERDICT, sign_evidence
from keepwell.serving.log.columns import AnswerLog
from keepwell.serving.rollouts.controllers import (
    BEFORE,
    KEPT,
    Labels,
    Valuation,
    answer_digest,
    ask,
    begin,
    carried_over,
    gathering_of,
    history_of,
    kept_of,
)
from keepwell.serving.rollouts.declarations import Declarations, stages_of
from keepwell.serving.rollouts.history import Before
from keepwell.serving.rollouts.observations import Gathering, Observations
from keepwell.serving.rollouts.plans import (
    Content,
    arm_of,
    content_of,
    latest_plan,
    next_plan,
    write_plan,
)
from keepwell.serving.rollouts.replays import Replayed, replay
from keepwell.serving.rollouts.strategies import STRATEGIES
from keepwell.serving.rollouts.strategy import CHAMPION, Answer, Conclusion, alone
from keepwell.serving.rollouts.waysback import names_any, plan_before, way_back

_STATES: dict[str, RolloutState] = {
    "promote": "promoted",
    "refuse": "refused",
    "roll back": "rolled back",
}

GROWTH = 1.1
"""Where nothing changes, a look is kept once there are this many times the rows of the one kept before."""
PATIENCE = 4.0
"""A look that computed long is followed by so many times as long without one: several rollouts share one process."""
LONGEST_REST = 60.0
TROUBLE_REST = 5.0
"""Seconds until a look that failed is tried again."""


class RolloutDriver:
    """Drives all rollouts of a project. One process at a time looks (the worker); anyone may start or end one."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        signer: Signer,
        log: AnswerLog,
        clock: Clock,
        gain_of: Callable[[str], Gain],
        settings: Mapping[str, Any],
        strategies: Mapping[str, Mapping[str, Any]] | None = None,
        labels_of: Callable[[str], Labels] | None = None,
        money_of: Callable[[str], Gain | None] | None = None,
    ) -> None:
        """``settings`` are the rules for every strategy, ``strategies`` those for one, by its name.

        ``money_of`` gives a model's KPI, where it has one; it is the metric ``value``.
        """
        self._store = store
        self._blobs = blobs
        self._signer = signer
        self._log = log
        self._clock = clock
        self._valuation = Valuation(
            gain_of=gain_of,
            money_of=money_of or (lambda _: None),
            labels_of=labels_of or (lambda _: Labels()),
        )
        self._declarations = Declarations(
            store=store,
            log=log,
            clock=clock,
            valuation=self._valuation,
            settings=settings,
            strategies=strategies or {},
        )
        self._gatherings: dict[tuple[str, int], Gathering] = {}
        self._resting: dict[str, float] = {}
        self._earlier: dict[str, Before | None] = {}

    def start(
        self,
        *,
        id: str,
        endpoint: str,
        version: ModelVersion,
        strategy: str,
        actor: str,
        others: Sequence[ModelVersion] = (),
        rules: Mapping[str, Any] | None = None,
        makes_champion: bool = False,
    ) -> Rollout:
        """Begin a rollout, or give the one of this id. ``strategy`` may name several, ``"shadow, canary"``.

        Raises NotFound for a strategy, InvalidInput for whatever else is wrong with its declaration, the traffic that
        it would need among it, Conflict if another one is running. Nothing is changed then.
        """
        found = self._store.get(Rollout, id)
        if found is not None:
            return found
        if self._store.get(Endpoint, endpoint) is None:
            known = [row.name for row in self._store.find(Endpoint)]
            raise NotFound(f"There is no endpoint {endpoint!r}.", todo=near_miss(endpoint, known))
        # The log is read before the transaction, which keeps other writers waiting.
        seen = self._declarations.looked_back(endpoint, strategy)
        with self._store.transaction(actor=actor) as transaction:
            rollout, answer = self._declarations.first(
                id,
                endpoint,
                version,
                strategy,
                others=others,
                rules=rules,
                store=transaction,
                seen=seen,
            )
            written = write_plan(
                transaction,
                endpoint,
                reason=f"{rollout.strategy}: {_labels(version, others)}",
                actor=actor,
                now=rollout.started,
                **content_said(answer),
            )
            rollout = msgspec.structs.replace(
                rollout,
                since_plan=written.revision,
                looks=1,
                memory=rollout.memory | answer.memory,
                makes_champion=makes_champion,
            )
            transaction.add(rollout)
            self._keep_look(
                transaction,
                rollout,
                answer,
                None,
                before=int(rollout.memory[BEFORE]),
                written=written,
            )
        if answer.verdict != "go on":
            return self._end(rollout, answer, plan=written, actor=actor)
        return rollout

    def check(self, strategy: str) -> None:
        """Raise NotFound, with the nearest name, unless there is such a strategy (or such several)."""
        for name in stages_of(strategy):
            STRATEGIES.load(name)

    def preview(
        self,
        *,
        endpoint: str,
        version: ModelVersion,
        strategy: str,
        others: Sequence[ModelVersion] = (),
        rules: Mapping[str, Any] | None = None,
    ) -> Preview:
        """Give the plan that a rollout would begin with, and what it will need. Raises as ``start`` does."""
        rollout, answer = self._declarations.first(
            "",
            endpoint,
            version,
            strategy,
            others=others,
            rules=rules,
            store=self._store,
            seen=self._declarations.looked_back(endpoint, strategy),
        )
        before = latest_plan(endpoint, store=self._store)
        after = next_plan(
            before,
            endpoint,
            reason=f"{rollout.strategy}: {_labels(version, others)}",
            actor="",
            now=rollout.started,
            **content_said(answer),
        )
        return Preview(before=before, after=after, forecast=rollout.forecast)

    def _before_of(self, rollout: Rollout) -> Before | None:
        """Give what units were worth before the rollout. It is read once, and only to look: a rollback is quick."""
        if rollout.id not in self._earlier:
            self._earlier[rollout.id] = history_of(
                rollout,
                store=self._store,
                log=self._log,
                gain=self._valuation.gain_of(rollout.model),
                labels=self._valuation.labels_of(rollout.endpoint),
            )
        return self._earlier[rollout.id]

    def look(self) -> int:
        """Let every running rollout's strategy look once; gives how many ended."""
        ended = 0
        for rollout in self._store.find(Rollout, {"state": "running"}):
            if time.monotonic() < self._resting.get(rollout.id, 0.0):
                continue
            # Time of this thread: on a busy machine waiting for others would be taken for work, and rested off.
            began = time.thread_time()
            try:
                ended += self._look(carried_over(rollout))
            except Exception as error:  # noqa: BLE001 - a strategy may be anybody's code, and others wait for their look
                self._tell(rollout, f"it cannot look: {as_error(error)}")
                rest = TROUBLE_REST
            else:
                rest = min(PATIENCE * (time.thread_time() - began), LONGEST_REST)
            self._resting[rollout.id] = time.monotonic() + rest
        return ended

    def _tell(self, rollout: Rollout, trouble: str) -> None:
        """Say why a rollout does not go on where people look: in its own record, once."""
        logging.getLogger("keepwell").error("rollout %s: %s", rollout.id, trouble)
        with self._store.transaction(actor="worker") as transaction:
            found = transaction.get(Rollout, rollout.id)
            if found is None or found.state != "running" or found.reason == trouble[:500]:
                return
            told = msgspec.structs.replace(found, reason=trouble[:500], revision=found.revision + 1)
            transaction.replace(told, reason=told.reason)

    def _look(self, rollout: Rollout) -> bool:
        if self._sign_what_stands(rollout):
            return True
        key = (rollout.id, rollout.stage)
        gathering = self._gatherings.get(key)
        if gathering is None:
            gathering = self._gatherings[key] = gathering_of(rollout, store=self._store)
        while gathering.read(self._log):
            pass
        seen = gathering.observations()
        now = self._clock.now()
        state = self._valuation.state(rollout, store=self._store)
        state = msgspec.structs.replace(state, before=self._before_of(rollout))
        answer = ask(rollout, state, seen, now)
        if answer.verdict == "promote" and rollout.stage + 1 < len(rollout.stages):
            return self._advance(rollout, answer, gathering)
        with self._store.transaction(actor="worker") as transaction:
            current = transaction.get(Rollout, rollout.id)
            if current is None or current.revision != rollout.revision:
                return False  # somebody paused or ended it meanwhile
            before = latest_plan(rollout.endpoint, store=transaction)
            written = write_plan(
                transaction,
                rollout.endpoint,
                reason=f"{rollout.strategy}: {answer.verdict}: {answer.reason}"[:500],
                actor="worker",
                now=now,
                **content_said(answer),
            )
            moved = before is None or before.revision != written.revision
            carried = rollout.memory | answer.memory
            if (
                moved
                or answer.verdict != "go on"
                or carried != rollout.memory
                or rollout.reason
                or self._grew(rollout, seen)
            ):
                kept = msgspec.structs.replace(
                    rollout,
                    reason="",
                    memory=carried,
                    looks=rollout.looks + 1,
                    revision=rollout.revision + 1,
                )
                transaction.replace(kept, reason=answer.reason[:500])
                self._keep_look(
                    transaction,
                    kept,
                    answer,
                    gathering,
                    before=before.revision if before else 0,
                    written=written,
                    carried=rollout.memory,
                    at=now,
                )
                rollout = kept
        if answer.verdict == "go on":
            return False
        self._end(rollout, answer, plan=written, actor="worker")
        self._gatherings.pop(key, None)
        self._earlier.pop(rollout.id, None)
        return True

    def _sign_what_stands(self, rollout: Rollout) -> bool:
        """End a rollout whose verdict is kept and moved the traffic, but whose process ended before it was signed.

        To look again would be wrong: what the winner has answered since bears the champion's name.
        """
        last = self._store.get(Look, rollout.id, rollout.looks)
        if last is None or last.verdict == "go on" or last.stage != rollout.stage:
            return False
        plan = self._store.get(TrafficPlan, rollout.endpoint, last.written)
        if plan is None:
            raise NotFound(f"There is no plan {last.written} of {rollout.endpoint!r}.")
        answer = Answer(
            arms=last.arms,
            verdict=cast("Conclusion", last.verdict),
            winner=last.arms[0].version if last.verdict == "promote" else 0,
            reason=last.reason,
            measured=last.measured,
        )
        self._end(rollout, answer, plan=plan, actor="worker")
        return True

    def _grew(self, rollout: Rollout, seen: Observations) -> bool:
        kept = self._store.get(Look, rollout.id, rollout.looks)
        return kept is None or len(seen) > max(GROWTH * kept.rows, kept.rows + 20)

    def _advance(self, rollout: Rollout, passed: Answer, gathering: Gathering) -> bool:
        """A stage was passed: let the next one begin, from the plan that it wants."""
        now = self._clock.now()
        place = rollout.stage + 1
        following = msgspec.structs.replace(
            rollout,
            stage=place,
            strategy=rollout.stages[place],
            looks=rollout.looks + 1,
            memory={"cursor": gathering.cursor, BEFORE: rollout.memory.get(BEFORE, 0)}
            | kept_of(rollout.memory),
            reason="",
        )
        answer = begin(following, self._valuation.state(following, store=self._store), now)
        with self._store.transaction(actor="worker") as transaction:
            current = transaction.get(Rollout, rollout.id)
            if current is None or current.revision != rollout.revision:
                return False
            before = latest_plan(rollout.endpoint, store=transaction)
            written = write_plan(
                transaction,
                rollout.endpoint,
                reason=f"{rollout.strategy} passed: {passed.reason}; now {following.strategy}"[
                    :500
                ],
                actor="worker",
                now=now,
                **content_said(answer),
            )
            following = msgspec.structs.replace(
                following,
                since_plan=written.revision,
                memory=following.memory | answer.memory,
                looks=following.looks + 1,
                revision=rollout.revision + 1,
            )
            transaction.replace(
                following, reason=f"{rollout.strategy} passed: {passed.reason}"[:500]
            )
            self._keep_look(
                transaction,
                msgspec.structs.replace(rollout, looks=rollout.looks + 1),
                passed,
                gathering,
                before=before.revision if before else 0,
                written=written,
                carried=rollout.memory,
                at=now,
            )
            self._keep_look(transaction, following, answer, None, before=0, written=written, at=now)
        self._gatherings.pop((rollout.id, rollout.stage), None)
        if answer.verdict != "go on":
            self._end(following, answer, plan=written, actor="worker")
            return True
        return False

    def _keep_look(
        self,
        transaction: Transaction,
        rollout: Rollout,
        answer: Answer,
        gathering: Gathering | None,
        *,
        before: int,
        written: TrafficPlan,
        carried: Mapping[str, Any] | None = None,
        at: Time | None = None,
    ) -> None:
        seen = gathering.observations() if gathering else None
        transaction.add(
            Look(
                rollout=rollout.id,
                number=rollout.looks,
                stage=rollout.stage,
                at=rollout.started if at is None else at,
                event_time=seen.watermark if seen else rollout.since,
                rows=len(seen) if seen else 0,
                cursor=dict(gathering.cursor) if gathering else dict(rollout.memory["cursor"]),
                memory={name: value for name, value in (carried or {}).items() if name not in KEPT},
                plan=before,
                written=written.revision,
                arms=answer.arms,
                verdict=answer.verdict,
                reason=answer.reason,
                next=answer.next,
                measured=answer.measured,
                answer=answer_digest(answer),
            )
        )

    def _end(self, rollout: Rollout, answer: Answer, *, plan: TrafficPlan, actor: str) -> Rollout:
        """Write the signed verdict. The plan is written before: traffic is safe first, then the books."""
        with self._store.transaction(actor=actor) as transaction:
            return self._conclude(transaction, rollout, answer, plan=plan)

    def _conclude(
        self, transaction: Transaction, rollout: Rollout, answer: Answer, *, plan: TrafficPlan
    ) -> Rollout:
        current = transaction.get(Rollout, rollout.id)
        if current is None or current.state not in OPEN:
            return current or rollout
        now = self._clock.now()
        judged = answer.winner or rollout.challenger
        version = transaction.get(ModelVersion, rollout.model, judged)
        if version is None:
            raise NotFound(f"There is no version {rollout.model}/{judged}.")
        verdict: Verdict = "pass" if answer.verdict == "promote" else "fail"
        look = transaction.get(Look, rollout.id, rollout.looks)
        evidence = sign_evidence(
            signer=self._signer,
            blobs=self._blobs,
            subject=version.label(),
            subject_digest=version.artefact,
            predicate=VERDICT,
            body={
                "rollout": rollout.id,
                "strategy": rollout.strategy,
                "stages": rollout.stages,
                "answer": answer.verdict,
                "reason": answer.reason,
                "measured": answer.measured,
                "settings": rollout.settings,
                "plan": plan.revision,
                "look": rollout.looks,
                "cursor": look.cursor if look else {},
            },
            verdict=verdict,
            now=now,
            procedure=rollout.id,
            step="verdict",
        )
        ended = msgspec.structs.replace(
            current,
            state=_STATES[answer.verdict],
            winner=answer.winner or None,
            reason=answer.reason,
            evidence=evidence.envelope,
            ended=now,
            revision=current.revision + 1,
        )
        transaction.add(evidence)
        transaction.replace(ended, reason=answer.reason)
        if ended.winner is not None and ended.makes_champion:
            make_champion(transaction, ended.model, ended.winner, now=now, reason=answer.reason)
        return ended

    def pause(self, id: str, *, actor: str, reason: str) -> Rollout:
        """Leave traffic as it is and look no more, until ``resume``. Raises NotFound, Conflict."""
        return self._switch(id, "running", "paused", actor=actor, reason=reason)

    def resume(self, id: str, *, actor: str, reason: str) -> Rollout:
        """Go on looking; what came meanwhile counts. Raises NotFound, Conflict."""
        return self._switch(id, "paused", "running", actor=actor, reason=reason)

    def _switch(
        self, id: str, before: RolloutState, after: RolloutState, *, actor: str, reason: str
    ) -> Rollout:
        with self._store.transaction(actor=actor) as transaction:
            found = self._open(id, store=transaction)
            if found.state != before:
                raise Conflict(f"The rollout {id} is {found.state}, not {before}.")
            switched = msgspec.structs.replace(found, state=after, revision=found.revision + 1)
            transaction.replace(switched, reason=reason)
        return switched

    def promote(self, id: str, *, actor: str, reason: str, version: int | None = None) -> Rollout:
        """End a rollout on a person's word: a challenger answers everything. Raises NotFound, InvalidInput."""
        found = self._open(id, store=self._store)
        chosen = version or found.challenger
        if chosen not in found.challengers:
            raise InvalidInput(
                f"Version {chosen} takes no part in the rollout {id}.",
                todo=f"Its challengers are {', '.join(map(str, found.challengers))}.",
            )
        held = self._store.get(ModelVersion, found.model, chosen)
        if held is None:
            raise NotFound(f"There is no version {found.model}/{chosen}.")
        answer = Answer(
            arms=alone(arm_of(held)),
            verdict="promote",
            winner=chosen,
            reason=f"promoted by {actor}: {reason}",
        )
        with self._store.transaction(actor=actor) as transaction:
            written = write_plan(
                transaction,
                found.endpoint,
                reason=answer.reason,
                actor=actor,
                now=self._clock.now(),
                **content_said(answer),
            )
            return self._conclude(transaction, found, answer, plan=written)

    def replay(self, id: str) -> Replayed:
        """Compute a rollout again from the log: its looks, its verdict, its assignments. Raises NotFound."""
        found = self.named(id)
        return replay(
            found,
            store=self._store,
            log=self._log,
            gain=self._valuation.gain_of(found.model),
            labels=self._valuation.labels_of(found.endpoint),
            money=self._valuation.money_of(found.model),
        )

    def named(self, id: str, *, store: Reader | None = None) -> Rollout:
        """Give the rollout of this id. Raises NotFound, with the nearest."""
        store = store or self._store
        found = store.get(Rollout, id)
        if found is None:
            known = [rollout.id for rollout in store.find(Rollout)]
            raise NotFound(f"There is no rollout {id!r}.", todo=near_miss(id, known))
        return found

    def _open(self, id: str, *, store: Reader) -> Rollout:
        found = self.named(id, store=store)
        if found.state not in OPEN:
            raise Conflict(f"The rollout {id} has ended: {found.state}.")
        return found

    def roll_back(self, endpoint: str, *, actor: str, reason: str) -> TrafficPlan:
        """Give all traffic back: end a running rollout, or else return to the version that answered before.

        Raises NotFound if nothing answered before.
        """
        arms, running = way_back(endpoint, store=self._store)
        now = self._clock.now()
        with self._store.transaction(actor=actor) as transaction:
            written = write_plan(
                transaction, endpoint, arms=arms, reason=reason, actor=actor, now=now
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
        arms, _ = way_back(endpoint, store=self._store)
        return next_plan(
            latest_plan(endpoint, store=self._store),
            endpoint,
            arms=arms,
            reason=reason,
            actor="",
            now=self._clock.now(),
        )

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
        if plan is None or plan.revision <= found or not names_any(plan, rollout):
            return False
        before = plan_before(transaction, rollout, found)
        content = content_of(before) if before else Content(arms=())
        written = write_plan(
            transaction,
            rollout.endpoint,
            reason=reason,
            actor=actor,
            now=self._clock.now(),
            **content | {"mirrors": ()},
        )
        for running in transaction.find(Rollout, {"endpoint": rollout.endpoint, "state": OPEN}):
            answer = Answer(arms=written.arms, verdict="roll back", reason=reason)
            self._conclude(transaction, running, answer, plan=written)
        return True


def _labels(version: ModelVersion, others: Sequence[ModelVersion]) -> str:
    return ", ".join(each.label() for each in (version, *others))


def content_said(answer: Answer) -> Content:
    """Give what a strategy's answer says to the next plan."""
    return Content(
        arms=answer.arms,
        mirrors=answer.mirrors,
        cohorts=answer.cohorts,
        policy=answer.policy,
        period=answer.period,
        gap=answer.gap,
        gap_seconds=answer.gap_seconds,
    )
