"""Traces: OpenTelemetry spans of requests whose caller traces them, or of a share of the others.

Needs the extra ``otel``; loaded only where ``traces_endpoint`` is set. Spans are made after the answer went out and
sent by a thread. What the collector does not take in time is lost and counted; no request ever waits for it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from threading import Event, Thread

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from keepwell import __version__
from keepwell.serving.accesslog import MAX_IDS, MAX_TEXT, answered_by
from keepwell.serving.notes import Note, Part, parent_of

MAX_WAITING = 8192
"""Spans that may wait to be sent."""
BATCH = 512
SEND_SECONDS = 1.0
"""What waits is sent this often, or once there is a batch of it."""
TIMEOUT_SECONDS = 5.0
"""The longest that one batch is tried, with its repetitions."""
CLOSE_SECONDS = 2.0


class Outbox(SpanProcessor):
    """Sends ended spans in batches from a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.made = 0
        self.dropped = 0
        self.failed = 0
        self._exporter = exporter
        self._waiting: deque[ReadableSpan] = deque()
        self._due = Event()
        self._closing = False
        self._thread = Thread(target=self._send_all, name="traces", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span in, or drop it where too many wait."""
        self.made += 1
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH:
            self._due.set()

    def _send_all(self) -> None:
        while not self._closing or self._waiting:
            self._due.wait(SEND_SECONDS)
            self._due.clear()
            while self._waiting:
                size = min(len(self._waiting), BATCH)
                self._send([self._waiting.popleft() for _ in range(size)])

    def _send(self, spans: Sequence[ReadableSpan]) -> None:
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001
            # The thread's outermost door: whatever the exporter raises, the next batch is tried again.
            sent = False
        if not sent:
            self.failed += len(spans)

    def shutdown(self) -> None:
        """Send what is left, within ``CLOSE_SECONDS``."""
        self._closing = True
        self._due.set()
        self._thread.join(CLOSE_SECONDS)


class Traces:
    """Makes spans of notes. Implements ``keepwell.serving.notes.Listener``."""

    def __init__(self, endpoint: str, *, share: float, worker: str) -> None:
        """``share`` is that of requests without a parent; headers for the collector come from OTel's own variables."""
        # Each repetition would be a line; that a batch was given up still is one.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        self._share = share
        self._outbox = Outbox(OTLPSpanExporter(endpoint, timeout=TIMEOUT_SECONDS))
        named = {"service.version": __version__, "service.instance.id": worker}
        if "OTEL_SERVICE_NAME" not in os.environ:
            named["service.name"] = "keepwell-gateway"
        provider = TracerProvider(
            sampler=ALWAYS_ON,  # whether to trace is decided here, before any span is made
            resource=Resource.create(dict(named)),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._outbox)
        self._tracer = provider.get_tracer("keepwell", __version__)

    def saw(self, note: Note) -> None:
        """See ``Listener``."""
        parent = parent_of(note) if note.parent else None
        if parent is None:
            if self._share == 0.0 or random.random() >= self._share:  # noqa: S311 - a sample, no secret
                return
            context = Context()
        elif not parent[2]:
            return
        else:
            remote = SpanContext(
                int(parent[0], 16), int(parent[1], 16), is_remote=True, trace_flags=TraceFlags(1)
            )
            context = trace.set_span_in_context(NonRecordingSpan(remote), Context())
        self._tell(note, context)

    def _tell(self, note: Note, context: Context) -> None:
        zero = time.time_ns() - time.perf_counter_ns()

        def at(moment: float) -> int:
            return zero + int(moment * 1e9)

        attributes: dict[str, str | int | Sequence[str]] = {
            "http.request.method": note.method,
            "url.path": note.path[:MAX_TEXT],
            "http.response.status_code": note.status,
            "client.address": note.client,
        }
        part = note.ask.part if note.ask is not None else None
        name = f"{note.method} {note.path[:MAX_TEXT]}".strip()
        if note.ask is not None:
            name = f"predict {note.ask.endpoint[:MAX_TEXT]}"
            attributes["keepwell.endpoint"] = note.ask.endpoint[:MAX_TEXT]
            if note.ask.shed:
                attributes["keepwell.shed"] = note.ask.shed
        if part is not None:
            attributes |= _decided(part)
        request = self._tracer.start_span(
            name, context, SpanKind.SERVER, attributes, start_time=at(note.began)
        )
        if note.status >= 500:
            request.set_status(Status(StatusCode.ERROR))
        if part is not None:
            inside = trace.set_span_in_context(request, context)
            together: dict[str, str | int] = {
                "keepwell.endpoint": part.batch.endpoint,
                "keepwell.tick.rows": part.batch.rows,
            }
            for what, start, stop in (
                ("model call", part.called, part.answered),
                ("log write", part.answered, part.logged),
                ("log sync", part.logged, note.ended),
            ):
                if what != "log sync" or (note.ask is not None and note.ask.waits):
                    span = self._tracer.start_span(
                        what, inside, SpanKind.INTERNAL, together, start_time=at(start)
                    )
                    span.end(at(stop))
        request.end(at(note.ended))

    def counts(self) -> dict[str, int]:
        """See ``Listener``."""
        outbox = self._outbox
        return {
            "spans": outbox.made,
            "spans_dropped": outbox.dropped,
            "spans_failed": outbox.failed,
        }

    def close(self) -> None:
        """See ``Listener``."""
        self._outbox.shutdown()


def _decided(part: Part) -> dict[str, str | int | Sequence[str]]:
    batch = part.batch
    found: dict[str, str | int | Sequence[str]] = {
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
