"""The evidence of a rollout, from the log: both versions' answers to the same decisions, and the outcomes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keepwell.core.clock import DAY, Time
from keepwell.core.ports.predictionlog import PredictionLog
from keepwell.core.ports.rollouts import Gain
from keepwell.core.records.traffic import Rollout
from keepwell.serving.strategies import Comparison


class Gathering:
    """Reads the log from a rollout's start and keeps what its strategy needs; made anew after any crash.

    Only whole days count, and only once their labels have had time to come: half a day would let the order
    of the labels decide. Each decision counts once, however often it was sent.
    """

    def __init__(
        self, rollout: Rollout, *, cursor: Mapping[str, int], label_delay: Time, gain: Gain
    ) -> None:
        self._rollout = rollout
        self._cursor = dict(cursor)
        self._delay = label_delay
        self._gain = gain
        self._champion: dict[str, tuple[Time, float]] = {}
        self._challenger: dict[str, float] = {}
        self._outcomes: dict[str, float] = {}
        self._days: dict[int, tuple[float, int]] = {}
        self._requests = [0, 0]
        self._errors = [0, 0]
        self._watermark: Time = rollout.since
        self._first: Time = 0

    def read(self, log: PredictionLog) -> bool:
        """Take in what is new; True if there was anything."""
        batch = log.read(self._cursor)
        self._cursor = batch.cursor
        rollout = self._rollout
        for prediction in batch.predictions:
            if prediction.endpoint != rollout.endpoint or prediction.time < rollout.since:
                continue
            if not prediction.mirror:
                self._watermark = max(self._watermark, prediction.time)
            mine = prediction.version == rollout.challenger
            if not mine and prediction.version != rollout.champion:
                continue
            # A fallback's answer is an error of the arm that should have answered, the challenger's if it had a share.
            failed = prediction.status == "error"
            fell = prediction.status == "fallback"
            self._requests[1 if mine or fell else 0] += 1
            self._errors[1 if mine or fell else 0] += failed or fell
            if failed or not isinstance(prediction.output, int | float):
                continue
            if mine:
                self._first = min(self._first or prediction.time, prediction.time)
                self._challenger.setdefault(prediction.id, float(prediction.output))
            else:
                self._champion.setdefault(
                    prediction.id, (prediction.time, float(prediction.output))
                )
        for outcome in batch.outcomes:
            if outcome.endpoint == rollout.endpoint:
                self._outcomes.setdefault(outcome.id, outcome.value)
        self._close_days()
        return bool(batch.predictions or batch.outcomes)

    def _close_days(self) -> None:
        last = (self._watermark - self._delay) // DAY  # days before this one are whole and labelled
        done: dict[int, list[tuple[float, float, float]]] = {}
        for identity in [i for i, (at, _) in self._champion.items() if at // DAY < last]:
            at, champion = self._champion.pop(identity)
            challenger = self._challenger.pop(identity, None)
            outcome = self._outcomes.pop(identity, None)
            if challenger is not None and outcome is not None and at // DAY not in self._days:
                done.setdefault(at // DAY, []).append((champion, challenger, outcome))
        for day, rows in done.items():
            champion_, challenger_, outcome_ = np.array(rows, dtype=np.float64).T
            difference = self._gain(challenger_, outcome_) - self._gain(champion_, outcome_)
            self._days[day] = (float(np.sum(difference)), len(rows))

    def evidence(self) -> Comparison:
        """Give the evidence so far."""
        days = sorted(self._days)
        return Comparison(
            day_sums=tuple(self._days[d][0] for d in days),
            day_rows=tuple(self._days[d][1] for d in days),
            rows=sum(self._days[d][1] for d in days),
            requests=self._requests[1],
            errors=self._errors[1],
            champion_requests=self._requests[0],
            champion_errors=self._errors[0],
            since=self._first or self._watermark,
            event_time=self._watermark,
        )
