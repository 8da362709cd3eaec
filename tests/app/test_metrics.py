"""The control side's page for Prometheus, on a project's own state."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.app.projects import made
from tests.serving.telemetry.prometheus import lint

from keepwell.app.api.server import application
from keepwell.app.pulse import Pulse
from keepwell.app.wiring import open_state
from keepwell.core.errors import Unavailable
from keepwell.core.records.watching import Alert
from keepwell.core.records.work import Work
from keepwell.serving.log.manifest import FOLDER
from keepwell.serving.log.segments import SegmentWriter


@pytest.fixture
def state(tmp_path):
    return open_state(made(tmp_path / "tumours"))


@pytest.fixture
def page(state):
    async def asked():
        transport = httpx.ASGITransport(application(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/metrics")

    def read():
        answer = asyncio.run(asked())
        assert (answer.status_code, answer.headers["content-type"]) == (
            200, "text/plain; version=0.0.4; charset=utf-8",
        )  # fmt: skip
        return answer.text

    return read


def value(text, name, **labels):
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels == sample.labels
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def alert(name, **fields):
    return Alert(
        id=name, endpoint="e", model="m", version=1, monitor="drift", message="it moved", event_time=1, opened=1,
        **{"severity": "critical", **fields},
    )  # fmt: skip


def test_the_control_page_counts_work_and_alerts_and_pleases_the_linter(state, page):
    with state.store.transaction(actor="test") as transaction:
        transaction.add(Work(id="a", kind="train", subject="m", requested_by="ada", created=1))
        transaction.add(
            Work(id="b", kind="train", subject="m", requested_by="ada", created=1, state="failed")
        )
        transaction.add(alert("open"))
        transaction.add(alert("unheard", state="undelivered"))
        transaction.add(alert("over", state="closed", severity="warning"))
        transaction.add(alert("drill", drill=True))
    Pulse(state.state).beat(1_700_000_000_000_000)
    text = page()
    assert lint(text) == ""
    assert value(text, "keepwell_store_up") == 1
    assert value(text, "keepwell_work", state="queued") == 1
    assert value(text, "keepwell_work", state="failed") == 1
    assert value(text, "keepwell_alerts", severity="critical") == 2
    assert value(text, "keepwell_alerts", severity="warning") == 0
    assert value(text, "keepwell_undelivered_alerts") == 1
    assert value(text, "keepwell_worker_round_timestamp_seconds") == 1_700_000_000
    assert value(text, "process_resident_memory_bytes") > 10e6


def test_a_store_that_does_not_answer_is_told_and_the_log_is_still_looked_at(
    state, page, monkeypatch
):
    def gone(*_, **__):
        raise Unavailable("The store does not answer.")

    writer = SegmentWriter(state.state / "log", name="a")
    writer.append(outcomes=())
    writer.close()
    monkeypatch.setattr(type(state.store), "count", gone)
    text = page()
    assert value(text, "keepwell_store_up") == 0
    assert value(text, "keepwell_log_segments") == 1
    assert lint(text) == ""


def test_a_damaged_manifest_is_told(state, page):
    folder = state.state / "log" / FOLDER
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(msgspec.json.encode({"rounds": "many"}))
    assert value(page(), "keepwell_log_manifest_readable") == 0
