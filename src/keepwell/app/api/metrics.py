"""The control side's page for Prometheus: work, alerts, plans, the worker's pulse, and how far the log is behind."""

from __future__ import annotations

import threading
from typing import get_args

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keepwell.app.pulse import Pulse
from keepwell.app.wiring import State
from keepwell.core.errors import Corrupt, Unavailable
from keepwell.core.records.rollouts import Rollout
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert, Severity
from keepwell.core.records.work import Work, WorkState
from keepwell.serving.log.backlog import Backlog
from keepwell.serving.telemetry.exposition import CONTENT_TYPE, Family, render
from keepwell.serving.telemetry.footprint import process_families, take_footprint
from keepwell.serving.telemetry.metrics import build_family


class ControlMetrics:
    """Answers scrapes, one at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._backlog = Backlog(state.state / "log")
        self._one = threading.Lock()

    async def answer(self, request: Request) -> Response:
        """Give the page."""
        del request
        return Response(await run_in_threadpool(self.page), media_type=CONTENT_TYPE)

    def page(self) -> str:
        """Write the page. While the store does not answer, it says that and what the folders tell."""
        up = Family("keepwell_store_up", "gauge", "1: the store of records answers.")
        with self._one:
            try:
                found = self._records()
                up.add(1)
            except Unavailable:
                found = []
                up.add(0)
            return render(
                [
                    up,
                    *found,
                    *self._log(),
                    build_family(),
                    *process_families([({}, take_footprint())]),
                ]
            )

    def _records(self) -> list[Family]:
        store = self._state.store
        work = Family("keepwell_work", "gauge", "Pieces of durable work, by state.")
        for state in get_args(WorkState):
            work.add(store.count(Work, {"state": state}), state=state)
        alerts = Family(
            "keepwell_alerts", "gauge", "Alerts that are not closed; drills not counted."
        )
        for severity in get_args(Severity):
            where = {"severity": severity, "drill": False}
            every = store.count(Alert, where)
            alerts.add(every - store.count(Alert, where | {"state": "closed"}), severity=severity)
        undelivered = Family(
            "keepwell_undelivered_alerts", "gauge", "Alerts that no channel has taken."
        )
        undelivered.add(store.count(Alert, {"state": "undelivered", "drill": False}))
        plans = Family(
            "keepwell_stored_plan_revision",
            "gauge",
            "Revision of the newest traffic plan; the gateway tells which one is in force.",
        )
        rollouts = Family("keepwell_rollouts_running", "gauge", "Rollouts under way.")
        for endpoint in store.find(Endpoint):
            newest = store.find(
                TrafficPlan, {"endpoint": endpoint.name}, order=["-revision"], limit=1
            )
            plans.add(newest[0].revision if newest else 0, endpoint=endpoint.name)
            running = store.count(Rollout, {"endpoint": endpoint.name, "state": "running"})
            rollouts.add(running, endpoint=endpoint.name)
        return [work, alerts, undelivered, plans, rollouts]

    def _log(self) -> list[Family]:
        found: list[Family] = []
        said = Pulse(self._state.state).last()
        if said:
            pulse = Family(
                "keepwell_worker_round_timestamp_seconds",
                "gauge",
                "Start of the worker's last whole round.",
            )
            pulse.add(said / 1e6)
            found.append(pulse)
        readable = Family(
            "keepwell_log_manifest_readable", "gauge", "1: the compacted log's manifest is whole."
        )
        found.append(readable)
        try:
            waiting = self._backlog.look()
        except Corrupt:
            readable.add(0)
            return found
        readable.add(1)
        simple: list[tuple[str, str, float]] = [
            ("log_segments", "Segments that have not become Parquet.", waiting.segments),
            ("log_segment_bytes", "Bytes of these segments.", waiting.bytes),
            ("log_uncompacted_records", "Records in them, as far as counted.", waiting.records),
            (
                "log_uncounted_bytes",
                "Bytes of them whose records are not counted yet, or are torn.",
                waiting.uncounted,
            ),
            ("log_compacted_records", "Records that are in Parquet.", waiting.compacted),
        ]
        if waiting.oldest:
            simple.append(
                (
                    "log_oldest_segment_timestamp_seconds",
                    "Last write to the oldest segment that has not become Parquet.",
                    waiting.oldest,
                )
            )
        if waiting.compacted_at:
            simple.append(
                (
                    "log_compacted_timestamp_seconds",
                    "When segments last became Parquet.",
                    waiting.compacted_at,
                )
            )
        for name, told, value in simple:
            family = Family(f"keepwell_{name}", "gauge", told)
            family.add(value)
            found.append(family)
        rounds = Family(
            "keepwell_log_compaction_rounds_total", "counter", "Rounds that made Parquet."
        )
        rounds.add(waiting.rounds)
        return [*found, rounds]


def routes(state: State) -> list[Route]:
    """Give the page's route."""
    return [Route("/metrics", ControlMetrics(state).answer)]
