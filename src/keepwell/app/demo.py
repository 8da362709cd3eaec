"""The demo: a project's whole way as a list of small steps, each of which sees by itself whether it is done.

Nothing of the story lives in this process. Each step reads the store, asks for what is missing, and waits for
the worker; run again after any crash, it goes on where the rows say that it stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from keepwell.app.replay import loop_is_busy, start_replay
from keepwell.app.summary import summarise
from keepwell.app.up import Supervisor
from keepwell.app.wiring import State
from keepwell.core.clock import iso, moment
from keepwell.core.errors import InvalidInput
from keepwell.core.records.lifecycle import Activation, Approval, Release
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import Rollout
from keepwell.core.records.watching import Alert, Decision
from keepwell.core.records.work import Replay, Work
from keepwell.core.settings import DemoSettings
from keepwell.lifecycle.activation import enqueue_activation
from keepwell.lifecycle.approvals import approve
from keepwell.lifecycle.training import start_training, training_work
from keepwell.lifecycle.validation import read_validation

REPLAY = "demo"
SCOPES: tuple[Literal["version", "renewals"], ...] = ("version", "renewals")
STEP_SECONDS = 1200.0


class Demo:
    """Tells the story of one project."""

    def __init__(
        self,
        state: State,
        supervisor: Supervisor,
        *,
        say: Callable[[str], None],
        until: str | None = None,
    ) -> None:
        if state.settings.demo is None:
            raise InvalidInput(
                "The project has no [demo] table, so there is no story to tell.",
                where=str(state.folder / "keepwell.toml"),
                todo="Add [demo] with train_since, train_until, replay_until, author and approvers.",
            )
        self._state = state
        self._supervisor = supervisor
        self._say = say
        self._told: set[str] = set()
        self._demo: DemoSettings = state.settings.demo
        self._until = until or self._demo.replay_until
        self._model = state.project.model(next(iter(state.project.models)))
        self._endpoint = next(
            name
            for name, given in state.settings.endpoints.items()
            if given.model == self._model.name
        )

    def run(self) -> dict[str, Any]:
        """Tell the whole story and give its summary. Raises KeepwellError if a step fails."""
        began = time.monotonic()
        for title, step in (
            ("train the candidates", self._train),
            ("release them", self._release),
            ("activate the best", self._activate),
            ("replay live traffic", self._replay),
            ("let the loop come to rest", self._rest),
        ):
            self._say(f"== {title}")
            self._wait(step)
        return summarise(
            self._state,
            endpoint=self._endpoint,
            model=self._model.name,
            seconds=time.monotonic() - began,
        )

    def _wait(self, step: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STEP_SECONDS
        while not step():
            self._supervisor.tend()
            self._progress()
            if time.monotonic() > deadline:
                raise InvalidInput(f"A step of the demo did not end within {STEP_SECONDS:.0f} s.")
            time.sleep(0.1)
        self._progress()

    def _versions(self) -> list[ModelVersion]:
        return [
            version
            for version in self._state.store.find(ModelVersion, {"model": self._model.name})
            if version.renews is None
        ]

    def _train(self) -> bool:
        store = self._state.store
        work = store.get(Work, "train-demo")
        if work is None:
            until = moment(self._demo.train_until)
            start_training(
                self._state.project,
                training_work(
                    id="train-demo",
                    model=self._model.name,
                    candidates=tuple(self._model.candidates),
                    since=moment(self._demo.train_since),
                    until=until,
                    as_of=until,
                    seed=0,
                    author=self._demo.author,
                    now=self._state.clock.now(),
                    release=True,
                ),
                actor=self._demo.author,
                store=store,
            )
            return False
        self._raise_if_failed(work)
        return work.state == "done"

    @staticmethod
    def _raise_if_failed(work: Work) -> None:
        if work.state == "failed":
            raise InvalidInput(f"{work.kind} {work.subject} failed: {work.error}")

    def _release(self) -> bool:
        store = self._state.store
        for work in store.find(Work, {"kind": "release"}):
            self._raise_if_failed(work)
        releases = store.find(Release, {"model": self._model.name})
        return len(releases) >= len(self._model.candidates) and all(
            release.state in {"passed", "failed"} for release in releases
        )

    def _best(self) -> ModelVersion:
        fit = [v for v in self._versions() if v.state in {"released", "active"}]
        if not fit:
            raise InvalidInput("No candidate passed its release; the summary of each says why.")
        active = [v for v in fit if v.state == "active"]
        return active[0] if active else min(fit, key=self._loss)

    def _loss(self, version: ModelVersion) -> float:
        rows, _ = read_validation(version, blobs=self._state.blobs)
        return float(rows.loss(rows.prediction).mean())

    def _activate(self) -> bool:
        state = self._state
        best = self._best()
        for by in self._demo.approvers:
            for scope in SCOPES:
                held = state.store.find(
                    Approval,
                    {"model": best.model, "version": best.version, "by": by, "scope": scope},
                )
                if not held:
                    approve(
                        best.model,
                        best.version,
                        by=by,
                        reason="better than the rule in use, in every slice"
                        if scope == "version"
                        else "newer data under the same code and gates",
                        expires_in=state.settings.policy.approval_expires,
                        scope=scope,
                        store=state.store,
                        blobs=state.blobs,
                        signer=state.signer,
                        clock=state.clock,
                    )
        found = state.store.find(Activation, {"model": best.model, "version": best.version})
        if not found:
            with state.store.transaction(actor=self._demo.author) as transaction:
                enqueue_activation(state.context, transaction, best, actor=self._demo.author)
            return False
        for work in state.store.find(Work, {"kind": "activate"}):
            self._raise_if_failed(work)
        if found[0].state == "failed":
            raise InvalidInput(f"The activation failed at {found[0].step!r}: {found[0].reason}")
        # The last step waits for labelled live decisions, which only traffic brings.
        return found[0].state == "passed" or (
            found[0].state == "waiting" and found[0].step == "KPI validation"
        )

    def _replay(self) -> bool:
        state = self._state
        replay = state.store.get(Replay, REPLAY)
        if replay is None:
            start_replay(
                state,
                endpoint=self._endpoint,
                since=moment(self._demo.train_until),
                until=moment(self._until),
                actor=self._demo.author,
                id=REPLAY,
            )
            return False
        self._tell_position(replay)
        return replay.state != "running"

    def _tell_position(self, replay: Replay) -> None:
        self._tell(
            f"   replayed to {iso(replay.position)[:7]}: {replay.acknowledged:,} answered, {replay.failed:,} failed",
            key=iso(replay.position)[:7],
        )

    def _rest(self) -> bool:
        if loop_is_busy(self._state):
            self._rested = 0.0
            return False
        self._rested = getattr(self, "_rested", 0.0) or time.monotonic()
        return time.monotonic() - self._rested > 2.0

    def _progress(self) -> None:
        """Say each new thing that the rows tell, once."""
        store = self._state.store
        for version in store.find(ModelVersion, {"model": self._model.name}):
            self._tell(
                f"   version {version.label()} ({version.candidate}) registered",
                key=f"v{version.version}",
            )
        for release in store.find(Release):
            if release.state in {"passed", "failed"}:
                why = f": {release.reason[:160]}" if release.reason else ""
                self._tell(
                    f"   release of {release.model}/{release.version} {release.state}{why}",
                    key=release.id,
                )
        for alert in store.find(Alert, {"drill": False, "severity": "critical"}):
            self._tell(f"   ALERT {iso(alert.event_time)[:10]} {alert.message[:160]}", key=alert.id)
        for decision in store.find(Decision):
            self._tell(
                f"   decision {iso(decision.event_time)[:10]}: {decision.kind} ({decision.state})",
                key=decision.id + decision.state,
            )
        for rollout in store.find(Rollout):
            self._tell(
                f"   {rollout.strategy} {rollout.change}: {rollout.state}. {rollout.reason[:160]}",
                key=rollout.id + rollout.state,
            )
        for activation in store.find(Activation):
            if activation.state in {"passed", "failed"}:
                self._tell(
                    f"   activation of {activation.model}/{activation.version} {activation.state}",
                    key=activation.id,
                )

    def _tell(self, line: str, *, key: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._say(line)
