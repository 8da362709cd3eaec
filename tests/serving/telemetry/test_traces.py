"""Traces reach a real receiver of OTLP, as their callers sample them, and never hold a request up."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.gateways import (
    PATIENCE,
    Gateway,
    arm,
    endpoint,
    linear,
    native,
    request,
    running,
)
from tests.serving.models import FailingOnNegative
from tests.serving.telemetry.collector import Collector, attributes_of, collecting

from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.serving.gateway import check_traces
from keepwell.serving.telemetry.notes import Note
from keepwell.serving.telemetry.traces import MAX_WAITING, Traces
from keepwell.serving.terms import Terms

ROW = {"x": 1.0, "flag": True, "dep delay": 0.0}
SPAN = "00f067aa0ba902b7"


def parent(trace: str, flags: str = "01") -> str:
    return f"traceparent: 00-{trace}-{SPAN}-{flags}\r\n"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Gateway]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=tests")
        terms = Terms(traces_endpoint=collector.url)
        with running(tmp_path_factory.mktemp("traced"), workers=1, grpc=True, terms=terms) as made:
            failing = native(made.shelf, FailingOnNegative())
            made.publish(
                endpoint("e", arms=[arm(1, linear(made.shelf, 10.0))], plan=3),
                endpoint("group", arms=[arm(3, failing)], log="group"),
            )
            yield made


def ask(gateway: Gateway, body: Any, extra: str, *, name: str = "e") -> bytes:
    content = msgspec.json.encode(body)
    return gateway.raw(
        request(
            content, path=f"/v1/endpoints/{name}/predict", extra=f"connection: close\r\n{extra}"
        )
    )


def test_a_sampled_request_becomes_spans_under_its_callers(traced: Gateway, collector: Collector):
    trace = "1" * 32
    began = time.time_ns()
    assert b"200 OK" in ask(traced, {"rows": [ROW, ROW], "ids": ["a", "b"]}, parent(trace))
    spans = {span.name: span for span in collector.wait(4, trace)}
    assert set(spans) == {"predict e", "model call", "log write", "log sync"}
    whole = spans.pop("predict e")
    assert whole.parent_span_id.hex() == SPAN
    assert whole.kind == whole.SPAN_KIND_SERVER
    assert attributes_of(whole) == attributes_of(whole) | {
        "http.request.method": "POST", "url.path": "/v1/endpoints/e/predict", "http.response.status_code": 200,
        "keepwell.endpoint": "e", "keepwell.arm": "v1", "keepwell.version": 1, "keepwell.plan": 3, "keepwell.rows": 2,
        "keepwell.decision_ids": ["a", "b"],
    }  # fmt: skip
    assert began - 10**10 < whole.start_time_unix_nano < whole.end_time_unix_nano
    assert whole.end_time_unix_nano < time.time_ns() + 10**10, "a clock may be set meanwhile"
    for span in spans.values():
        assert span.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    assert spans["model call"].end_time_unix_nano <= spans["log write"].end_time_unix_nano
    assert attributes_of(spans["model call"]) == {"keepwell.endpoint": "e", "keepwell.tick.rows": 2}


def test_the_resource_and_the_headers_are_those_of_opentelemetrys_own_variables(
    traced: Gateway, collector: Collector
):
    ask(traced, {"row": ROW}, parent("2" * 32))
    assert collector.wait(4, "2" * 32)
    assert collector.resources[-1] == collector.resources[-1] | {
        "service.name": "keepwell-gateway",
        "deployment.environment": "tests",
        "service.instance.id": f"w1p{traced.pool.pids()[0]}",
    }
    assert collector.headers[-1]["x-tenant"] == "acme"


def test_who_does_not_sample_is_not_traced(traced: Gateway, collector: Collector):
    ask(traced, {"row": ROW}, parent("3" * 32, "00"))
    ask(traced, {"row": ROW}, "")
    ask(traced, {"row": ROW}, parent("4" * 32))
    assert len(collector.wait(4, "4" * 32)) == 4
    assert collector.wait(0, "3" * 32) == []
    assert all(span.parent_span_id for span in collector.spans)


def test_a_failed_request_is_marked_and_has_no_sync_where_nobody_waits_for_the_disk(
    traced: Gateway, collector: Collector
):
    trace = "5" * 32
    ask(traced, {"rows": [ROW | {"x": -1.0}]}, parent(trace), name="group")
    spans = {span.name: span for span in collector.wait(3, trace)}
    assert set(spans) == {"predict group", "model call", "log write"}
    assert spans["predict group"].status.code == spans["predict group"].status.STATUS_CODE_ERROR
    ask(traced, {"rows": [{"x": "no number"}]}, parent("6" * 32))
    (refused,) = collector.wait(1, "6" * 32)
    assert attributes_of(refused)["http.response.status_code"] == 422


def test_the_metadata_of_grpc_carries_a_trace_too(traced: Gateway, collector: Collector):
    with tritonclient.grpc.InferenceServerClient(traced.grpc) as client:
        given = tritonclient.grpc.InferInput("all", [1, 3], "FP64")
        given.set_data_from_numpy(np.ones((1, 3)))
        client.infer("e", [given], headers={"traceparent": f"00-{'7' * 32}-{SPAN}-01"})
    spans = {span.name: span for span in collector.wait(4, "7" * 32)}
    assert (
        attributes_of(spans["predict e"])["url.path"]
        == "/inference.GRPCInferenceService/ModelInfer"
    )


def counted(gateway: Gateway) -> dict[str, float]:
    page = gateway.application.request("GET", "/metrics")[1].decode()
    return {
        s.name: s.value
        for f in text_string_to_metric_families(page)
        for s in f.samples
        if "spans" in s.name
    }


def test_a_collector_that_refuses_costs_spans_and_no_request(tmp_path: Path):
    with collecting() as collector:
        collector.status = 400
        terms = Terms(traces_endpoint=collector.url, traces_share=1.0)
        with running(tmp_path, workers=1, terms=terms) as gateway:
            gateway.publish(endpoint("e", arms=[arm(1, linear(gateway.shelf, 10.0))]))
            for _ in range(50):
                assert gateway.post({"rows": [ROW]})[0] == 200
            deadline = time.monotonic() + PATIENCE
            while (
                counted(gateway).get("keepwell_spans_failed_total", 0) < 200
                and time.monotonic() < deadline
            ):
                time.sleep(0.1)
            told = counted(gateway)
            assert told["keepwell_spans_failed_total"] >= 200
            assert told["keepwell_spans_total"] >= told["keepwell_spans_failed_total"]
        assert collector.spans == []


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent has all the time that a busy machine may need."""
    monkeypatch.setattr("keepwell.serving.telemetry.traces.CLOSE_SECONDS", PATIENCE)
    monkeypatch.setattr("keepwell.serving.telemetry.traces.TIMEOUT_SECONDS", PATIENCE)


@pytest.mark.usefixtures("patient")
def test_a_collector_that_is_gone_costs_spans(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("keepwell.serving.telemetry.traces.TIMEOUT_SECONDS", 0.5)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and nobody listens
        traces = Traces(
            f"http://127.0.0.1:{held.getsockname()[1]}/v1/traces", share=1.0, worker="w"
        )
        traces.saw(note())
        traces.close()
    assert traces.counts() == {"spans": 1, "spans_dropped": 0, "spans_failed": 1}


def note() -> Note:
    now = time.perf_counter()
    return Note(now, "GET", "/live", "c", 0, status=200, ended=now)


@pytest.mark.usefixtures("patient")
def test_spans_for_a_collector_that_hangs_are_dropped_counted_and_hold_nobody_up():
    with collecting() as collector:
        collector.hold.clear()
        traces = Traces(collector.url, share=1.0, worker="w")
        began = time.perf_counter()
        for _ in range(MAX_WAITING + 3000):
            traces.saw(note())
        assert time.perf_counter() - began < 20, "it waited for the collector"
        counts = traces.counts()
        assert counts["spans"] == MAX_WAITING + 3000
        assert 3000 - 128 <= counts["spans_dropped"] <= 3000
        collector.hold.set()
        traces.close()
        deadline = time.monotonic() + PATIENCE
        while (
            len(collector.spans) < counts["spans"] - counts["spans_dropped"]
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        assert len(collector.spans) == counts["spans"] - counts["spans_dropped"]
        assert traces.counts()["spans_failed"] == 0


@pytest.mark.usefixtures("patient")
def test_a_share_of_the_requests_without_a_parent_is_traced():
    with collecting() as collector:
        traces = Traces(collector.url, share=0.25, worker="w")
        for _ in range(2000):
            traces.saw(note())
        traces.close()
    assert 400 < len(collector.spans) < 600  # 500 expected, five standard deviations of 19
    assert len({span.trace_id for span in collector.spans}) == len(collector.spans)


def test_an_endpoint_that_is_none_and_packages_that_miss_are_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
):
    with pytest.raises(InvalidInput, match="Set traces_endpoint under"):
        check_traces("collector:4317")
    check_traces("http://collector:4318/v1/traces")
    monkeypatch.setattr("keepwell.serving.gateway.find_spec", lambda _: None)
    with pytest.raises(Unavailable, match=r"keepwell\[otel\]"):
        check_traces("http://collector:4318/v1/traces")
