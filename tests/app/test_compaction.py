"""The worker compacts the log behind the watcher, and neither the watcher nor people who read decisions notice."""

from __future__ import annotations

import logging
import time

import pytest
from tests.serving.log.test_compaction import outcome, prediction, write
from tests.watch.simulated import START, Site, outcomes, predictions

from keepwell.app import worker
from keepwell.app.wiring import open_state
from keepwell.app.worker import Compaction
from keepwell.core.clock import DAY
from keepwell.core.errors import NotFound
from keepwell.core.records.watching import Measurement, Watermark
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.log.segments import SegmentLog, SegmentWriter

TOML = """
[project]
name = "p"
module = "p"

[endpoints.e]
model = "m"
outcome_expires = "2d"
default_outcome = -1

[endpoints.f]
model = "m"
"""


@pytest.fixture
def state(tmp_path):
    (tmp_path / "keepwell.toml").write_text(TOML)
    return open_state(tmp_path)


def test_the_worker_compacts_what_the_watermark_has_passed(state, monkeypatch):
    monkeypatch.setattr(worker, "COMPACT_SECONDS", 0.0)
    log = state.state / "log"
    write(log, [([prediction("a")], [])], name="w")
    write(log, [([prediction("b")], [])], name="x")
    cursor = state.log.read({}).cursor
    (passed, _) = sorted(cursor)
    with state.store.transaction(actor="test") as transaction:
        mark = Watermark(
            endpoint="e", event_time=1, cursor={passed: cursor[passed]}, predictions=1, outcomes=0, updated=1
        )  # fmt: skip
        transaction.add(mark)
    compaction = Compaction(state)
    compaction.look()
    deadline = time.monotonic() + 60
    while (log / passed).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    compaction.stop()
    assert [path.name for path in log.glob("*.seg")] == [max(cursor)]
    assert [p.id for p in state.log.read({}).predictions] == ["a", "b"]


def test_a_round_that_fails_is_said_and_the_worker_goes_on(state, monkeypatch, caplog):
    monkeypatch.setattr(worker, "COMPACT_SECONDS", 0.0)
    (state.state / "log" / "compacted").mkdir(parents=True)
    (state.state / "log" / "compacted" / "manifest.json").write_bytes(b"{")
    compaction = Compaction(state)
    with caplog.at_level(logging.ERROR):
        compaction.look()
        compaction.stop()
    assert "manifest" in caplog.text


def test_decisions_are_read_by_the_settings_of_their_endpoint(state):
    log = state.state / "log"
    some = [prediction("a"), prediction("b"), prediction("c", endpoint="f")]
    write(log, [(some, [outcome("a", time=DAY + 1), outcome("b", time=4 * DAY)])], name="w")
    told = state.decisions("e", since=0, until=9 * DAY)
    assert told.select("id", "outcome", "defaulted").rows() == [
        ("a", 1.0, False),
        ("b", -1.0, True),
    ]
    assert state.decisions("f", since=0, until=9 * DAY)["outcome"].to_list() == [None]
    with pytest.raises(NotFound, match="endpoint"):
        state.decisions("g", since=0, until=1)


def test_a_watcher_that_dies_and_finds_its_segments_compacted_measures_the_same(tmp_path):
    measured = []
    for compacts in (False, True):
        site = Site(tmp_path / f"{compacts}", a_day=60)
        folder = tmp_path / f"log-{compacts}"
        watcher = site.watcher(log=SegmentLog(folder))
        compacted = 0
        for week in range(6):
            rows = site.live(outcomes_too=False)
            writer = SegmentWriter(folder, name=f"w{week}")
            writer.append(predictions(rows), outcomes(rows))
            writer.close()
            watcher.tick()
            if compacts:
                compacted += Compactor(folder).run(m.cursor for m in site.store.find(Watermark))
            if compacts and week == 3:
                assert compacted > 0
                watcher = site.watcher(log=SegmentLog(folder))
        assert (compacted > 0) == compacts
        found = site.store.find(Measurement, order=["start", "version", "monitor"])
        measured.append([(m.monitor, m.start, m.version, m.value) for m in found])
        assert min(m.start for m in found) >= START
    assert len(measured[0]) > 10
    assert measured[0] == measured[1]
