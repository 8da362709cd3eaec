"""A receiver of OTLP over HTTP: it decodes what real exporters send, and can be slow or refuse."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.hold = threading.Event()
        """Answers wait until it is set."""
        self.hold.set()
        received = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                received.hold.wait(60)
                if received.status == 200 and self.path == "/v1/traces":
                    received.take(body, dict(self.headers))
                self.send_response(received.status if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        self.headers.append({name.lower(): value for name, value in headers.items()})
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes_of(one.resource))
            for scope in one.scope_spans:
                self.spans.extend(scope.spans)

    def wait(self, count: int, trace: str = "") -> list[Any]:
        """The spans of a trace once there are so many."""
        deadline = time.monotonic() + 60
        while True:
            found = [span for span in self.spans if span.trace_id.hex() == trace or not trace]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.02)


def attributes_of(span: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = (
            [one.string_value for one in value.values] if kind == "array_value" else value
        )
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.hold.set()
        made.server.shutdown()
        made.server.server_close()
        thread.join()
