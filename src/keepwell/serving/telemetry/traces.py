"""Traces: OpenTelemetry spans of requests whose caller traces them, or of a share of the others.

Needs the extra ``otel``; loaded only where ``traces_endpoint`` is set. Spans are made and sent by a thread, after the
answer went out. What the collector does not take in time is lost and counted; no request ever waits for it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from threading import Event, Thread

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from keepwell import __version__
from keepwell.serving.telemetry.accesslog import MAX_IDS, MAX_TEXT, answered_by
from keepwell.serving.telemetry.notes import Note, Part, parent_of

MAX_WAITING = 2048
"""Requests whose spans may wait to be sent; a request has four spans at most."""
BATCH = 128
SEND_SECONDS = 1.0
"""What waits is sent this often, or once there is a batch of it."""
TIMEOUT_SECONDS = 5.0
"""The longest that one batch is tried, with its repetitions."""
CLOSE_SECONDS = 2.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_Value = str | int | Sequence[str]


class Traces:
    """Sends the spans of notes. Implements ``keepwell.serving.telemetry.notes.Listener``."""

    def __init__(self, endpoint: str, *, share: float, worker: str) -> None:
        """``share`` is that of requests without a parent; headers for the collector come from OTel's own variables."""
        # Each repetition would be a line; that a batch was given up still is one.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        self._share = share
        self._spans = 0
        self._dropped = 0
        self._failed = 0
        self._zero = 0
        """Nanoseconds since 1970 where ``time.perf_counter`` was 0."""
        named = {"service.version": __version__, "service.instance.id": worker}
        if "OTEL_SERVICE_NAME" not in os.environ:
            named["service.name"] = "keepwell-gateway"
        self._resource = Resource.create(dict(named))
        self._scope = InstrumentationScope("keepwell", __version__)
        self._exporter = OTLPSpanExporter(endpoint, timeout=TIMEOUT_SECONDS)
        self._waiting: deque[tuple[Note, tuple[str, str, bool] | None]] = deque()
        self._due = Event()
        self._closing = False
        self._thread = Thread(target=self._send_all, name="traces", daemon=True)
        self._thread.start()

    def saw(self, note: Note) -> None:
        """See ``Listener``."""
        parent = parent_of(note) if note.parent else None
        if parent is None:
            if self._share == 0.0 or random.random() >= self._share:  # noqa: S311 - a sample, no secret
                return
        elif not parent[2]:
            return
        self._spans += _count(note)
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += _count(note)
            return
        self._waiting.append((note, parent))
        if len(self._waiting) == BATCH:
            self._due.set()

    def counts(self) -> dict[str, int]:
        """See ``Listener``."""
        return {
            "spans": self._spans,
            "spans_dropped": self._dropped,
            "spans_failed": self._failed,
        }

    def close(self) -> None:
        """See ``Listener``. A collector that hangs is waited for ``CLOSE_SECONDS``."""
        self._closing = True
        self._due.set()
        self._thread.join(CLOSE_SECONDS)

    def _send_all(self) -> None:
        while not self._closing or self._waiting:
            self._due.wait(SEND_SECONDS)
            self._due.clear()
            while self._waiting:
                spans: list[ReadableSpan] = []
                for _ in range(min(len(self._waiting), BATCH)):
                    spans += self._spans_of(*self._waiting.popleft())
                self._send(spans)

    def _send(self, spans: Sequence[ReadableSpan]) -> None:
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001
            # The thread's outermost door: whatever the exporter raises, the next batch is tried again.
            sent = False
        if not sent:
            self._failed += len(spans)

    def _spans_of(self, note: Note, parent: tuple[str, str, bool] | None) -> list[ReadableSpan]:
        """Make a request's spans. As values, all at once: to start and to end each would cost ten times as much."""
        # One reading of the two clocks for all of them, so that what is inside stays inside.
        self._zero = time.time_ns() - time.perf_counter_ns()
        above = None
        if parent is not None:
            above = SpanContext(int(parent[0], 16), int(parent[1], 16), True, _SAMPLED)
        trace = above.trace_id if above is not None else _identity(128)
        attributes: dict[str, _Value] = {
            "http.request.method": note.method,
            "url.path": note.path[:MAX_TEXT],
            "http.response.status_code": note.status,
            "client.address": note.client,
        }
        ask = note.ask
        name = f"{note.method} {note.path[:MAX_TEXT]}".strip()
        if ask is not None:
            name = f"predict {ask.endpoint[:MAX_TEXT]}"
            attributes["keepwell.endpoint"] = ask.endpoint[:MAX_TEXT]
            if ask.shed:
                attributes["keepwell.shed"] = ask.shed
        part = ask.part if ask is not None else None
        if part is not None:
            attributes |= _decided(part)
        status = Status(StatusCode.ERROR) if note.status >= 500 else Status()
        whole = self._span(
            name,
            trace,
            above,
            attributes,
            note.began,
            note.ended,
            kind=SpanKind.SERVER,
            status=status,
        )
        if ask is None or part is None:
            return [whole]
        together: dict[str, _Value] = {
            "keepwell.endpoint": part.batch.endpoint,
            "keepwell.tick.rows": part.batch.rows,
        }
        steps = [
            ("model call", part.called, part.answered),
            ("log write", part.answered, part.logged),
        ]
        if ask.waits:
            steps.append(("log sync", part.logged, note.ended))
        return [
            whole,
            *(self._span(what, trace, whole.context, together, a, b) for what, a, b in steps),
        ]

    def _span(
        self,
        name: str,
        trace: int,
        parent: SpanContext | None,
        attributes: Mapping[str, _Value],
        began: float,
        ended: float,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status | None = None,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context=SpanContext(trace, _identity(64), False, _SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            instrumentation_scope=self._scope,
            status=status or Status(),
            start_time=self._zero + int(began * 1e9),
            end_time=self._zero + int(ended * 1e9),
        )


def _count(note: Note) -> int:
    if note.ask is None or note.ask.part is None:
        return 1
    return 4 if note.ask.waits else 3


def _identity(bits: int) -> int:
    return random.getrandbits(bits) or 1


def _decided(part: Part) -> dict[str, _Value]:
    batch = part.batch
    found: dict[str, _Value] = {
        "keepwell.plan": batch.plan,
        "keepwell.rows": part.stop - part.start,
        "keepwell.decision_ids": [
            identity[:MAX_TEXT]
            for identity in batch.identities(part.start, min(part.stop, part.start + MAX_IDS))
        ],
    }
    by = [batch.answerers[place] for place in sorted(answered_by(part))]
    if len(by) == 1:
        found |= {"keepwell.arm": by[0].arm, "keepwell.version": by[0].version}
    else:
        found["keepwell.arms"] = [each.arm for each in by]
    return found
