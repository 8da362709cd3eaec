"""What Prometheus reads of a gateway: by its own parser, its own linter and a server that scrapes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.gateways import PATIENCE, Gateway, arm, endpoint, linear, native, running
from tests.serving.models import FailingOnNegative
from tests.serving.telemetry.prometheus import Server, lint, scraping

from keepwell.core.records.traffic import BUCKETS, Arm
from keepwell.serving.log.backlog import Backlog
from keepwell.serving.telemetry.exposition import Family, render
from keepwell.serving.telemetry.footprint import is_alive, take_footprint
from keepwell.serving.telemetry.meters import Counts, Meters, Shared, fold, read_gone
from keepwell.serving.telemetry.metrics import gateway_page

ROOT = Path(__file__).parents[3]
WEIRD = 'the "new"\\one\nof two'


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("counted"), workers=2) as made:
        plain = linear(made.shelf, 10.0)
        strange = Arm(name=WEIRD, model="m", version=7, artefact=plain, weight=BUCKETS)
        failing = native(made.shelf, FailingOnNegative())
        made.publish(
            endpoint("e", arms=[strange], mirrors=(arm(3, failing, 0),), plan=42),
            endpoint("failing", arms=[arm(3, failing)], log="group"),
        )
        yield made


def page(gateway: Gateway) -> str:
    status, content = gateway.application.request("GET", "/metrics")
    assert status == 200
    return content.decode()


def values(text: str, name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def total(gateway: Gateway, name: str, wanted: float | None = None, **labels: str) -> float:
    """What the workers have counted together; they share it twice a second."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = sum(values(page(gateway), name, **labels))
        if wanted is None or found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def mirrored(gateway: Gateway) -> None:
    """Wait until the mirror of ``e`` has answered each row that its callers have been answered."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [each.mirror for each in gateway.records()[0] if each.endpoint == "e"]
        if 2 * sum(found) == len(found):
            return
        assert time.monotonic() < deadline, "the mirror did not answer"
        time.sleep(0.02)


def ask(gateway: Gateway, x: float, *, name: str = "e", rows: int = 1) -> int:
    row = {"x": x, "flag": True, "dep delay": 1.0}
    return gateway.post({"rows": [row] * rows}, endpoint=name)[0]


def test_prometheus_own_linter_finds_nothing(counted: Gateway):
    ask(counted, 1.0)
    ask(counted, -1.0, name="failing")
    counted.wait_for_counters()
    assert lint(page(counted)) == ""


def test_the_linter_would_find_a_counter_without_total_or_help():
    assert "counter metrics should have" in lint("# TYPE a counter\na 1\n")


def test_every_family_says_what_it_is_and_labels_come_back_as_they_were(counted: Gateway):
    ask(counted, 1.0)
    counted.wait_for_counters()
    total(counted, "keepwell_workers", 2)
    found = {family.name: family for family in text_string_to_metric_families(page(counted))}
    assert [name for name, family in found.items() if not family.documentation] == []
    assert [name for name, family in found.items() if family.type == "unknown"] == []
    assert {
        s.labels["arm"]
        for s in found["keepwell_predictions"].samples
        if s.labels["endpoint"] == "e"
    } == {WEIRD}


def test_rows_errors_and_ticks_are_counted_for_each_arm_and_version(counted: Gateway):
    counted.wait_for_counters()
    good = {"endpoint": "failing", "arm": "v3", "version": "3", "status": "ok"}
    bad = good | {"status": "error"}
    before = (
        total(counted, "keepwell_predictions_total", None, **good),
        total(counted, "keepwell_predictions_total", None, **bad),
    )
    answers = total(counted, "keepwell_error_responses_total", code="503")
    ticks = total(counted, "keepwell_tick_rows_sum", endpoint="failing")
    requests = total(counted, "keepwell_tick_requests_sum", endpoint="failing")
    spent = total(counted, "keepwell_prediction_latency_seconds_count", endpoint="failing")
    assert ask(counted, 1.0, name="failing", rows=5) == 200
    assert ask(counted, -1.0, name="failing", rows=2) == 503
    assert total(counted, "keepwell_predictions_total", before[0] + 5, **good) == before[0] + 5
    assert total(counted, "keepwell_predictions_total", before[1] + 2, **bad) == before[1] + 2
    assert total(counted, "keepwell_error_responses_total", answers + 1, code="503") == answers + 1
    assert total(counted, "keepwell_tick_rows_sum", ticks + 7, endpoint="failing") == ticks + 7
    assert (
        total(counted, "keepwell_tick_requests_sum", requests + 2, endpoint="failing")
        == requests + 2
    )
    assert (
        total(counted, "keepwell_prediction_latency_seconds_count", spent + 7, endpoint="failing")
        == spent + 7
    )


def test_a_histogram_grows_with_its_bounds_and_ends_with_its_count(counted: Gateway):
    ask(counted, 1.0)
    text = page(counted)
    buckets = values(text, "keepwell_prediction_latency_seconds_bucket", endpoint="e")
    assert len(buckets) == 17
    assert buckets == sorted(buckets)
    assert [buckets[-1]] == values(text, "keepwell_prediction_latency_seconds_count", endpoint="e")
    assert 'le="0.0001"' in text
    assert 'le="10"' in text


def test_the_page_tells_plans_arms_workers_and_what_they_take(counted: Gateway):
    assert total(counted, "keepwell_workers", 2) == 2
    text = page(counted)
    assert values(text, "keepwell_workers_wanted") == [2]
    assert values(text, "keepwell_worker_ready") == [1, 1]
    assert values(text, "keepwell_plan_revision", endpoint="e") == [42]
    assert values(text, "keepwell_edition") == [counted.number] * 2
    assert values(text, "keepwell_arm_weight_ratio", endpoint="e", role="arm") == [1.0]
    assert values(text, "keepwell_arm_weight_ratio", endpoint="e", role="mirror", version="3") == [
        0.0
    ]
    assert all(10e6 < each < 2e9 for each in values(text, "process_resident_memory_bytes"))
    assert len(values(text, "process_cpu_seconds_total")) == 2
    assert sum(values(text, "keepwell_connections")) >= 1
    assert values(text, "keepwell_build_info") == [1]


def test_the_log_tells_what_is_written_and_what_is_not_on_the_disk_yet(counted: Gateway):
    before = total(counted, "keepwell_log_written_bytes_total")
    syncs = total(counted, "keepwell_log_sync_seconds_count")
    for _ in range(4):
        ask(counted, 1.0)
    mirrored(counted)
    size = sum(path.stat().st_size for path in counted.log.glob("*.seg"))
    assert total(counted, "keepwell_log_written_bytes_total", size) == size
    assert size > before
    # A worker may have shared its counters after it wrote the last record and before that was on the disk.
    counted.wait_for_counters()
    assert total(counted, "keepwell_log_sync_seconds_count") >= syncs + 4
    # Mirrors are brought to the disk within hundredths of a second, though nobody waits for them.
    assert total(counted, "keepwell_log_unsynced_bytes", 0) == 0
    assert total(counted, "keepwell_log_unsynced_seconds") == 0


@pytest.fixture(scope="module")
def prometheus(counted: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("prometheus")
    with scraping(folder / "data", f"127.0.0.1:{counted.port}") as server:
        server.wait("up", 1)
        yield server


@pytest.mark.services
def test_a_real_prometheus_scrapes_the_gateway_and_sums_what_it_answered(
    counted: Gateway, prometheus: Server
):
    counted.wait_for_counters()
    before = total(counted, "keepwell_predictions_total", endpoint="e")
    for _ in range(20):
        ask(counted, 1.0)
    prometheus.wait('sum(keepwell_predictions_total{endpoint="e"})', before + 20)
    assert prometheus.value(
        "histogram_quantile(0.99, sum by (le) (keepwell_prediction_latency_seconds_bucket))"
    )
    told = prometheus.ask("/api/v1/targets/metadata", metric="keepwell_tick_rows")
    assert [(each["type"], each["help"]) for each in told] == [
        ("histogram", "Rows computed together at an endpoint.")
    ]


@pytest.mark.services
def test_a_real_prometheus_understands_every_panel(prometheus: Server):
    panels = json.loads((ROOT / "docs" / "howto" / "prometheus" / "grafana.json").read_text())[
        "panels"
    ]
    queries = [
        target["expr"].replace("$__rate_interval", "1m").replace("$project", "")
        for panel in panels
        for target in panel["targets"]
    ]

    def told() -> int:
        return sum(
            bool(prometheus.ask("/api/v1/query", query=query)["result"]) for query in queries
        )

    deadline = time.monotonic() + PATIENCE
    while told() < 5 and time.monotonic() < deadline:  # a rate wants two scrapes
        time.sleep(0.3)
    assert told() >= 5


def test_what_a_worker_counted_outlives_it(tmp_path: Path):
    with running(tmp_path, workers=1) as gateway:
        gateway.publish(endpoint("e", arms=[arm(1, linear(gateway.shelf, 1.0))]))
        for _ in range(5):
            assert ask(gateway, 1.0) == 200
        died = gateway.pool.pids()[0]
        # A worker that is killed takes with it what it counted since it shared it last.
        shared = tmp_path / "meters" / f"w1p{died}.json"
        while sum(msgspec.json.decode(shared.read_bytes(), type=Shared).counts.rows.values()) < 5:
            time.sleep(0.05)
        os.kill(died, signal.SIGKILL)
        while gateway.pool.tend() == 0:
            time.sleep(0.02)
        gateway.wait()
        assert ask(gateway, 1.0) == 200
        assert total(gateway, "keepwell_predictions_total", 6) == 6
        assert total(gateway, "keepwell_worker_deaths_total") == 1
        assert total(gateway, "keepwell_workers", 1) == 1
        gateway.pool.swap()
        gateway.wait()
        assert ask(gateway, 1.0) == 200
        assert total(gateway, "keepwell_predictions_total", 7) == 7
        assert total(gateway, "keepwell_worker_deaths_total") == 1  # those were told to end
        files = {path.name for path in (tmp_path / "meters").glob("*.json")}
        assert files == {"gone.json", f"w3p{gateway.pool.pids()[0]}.json"}


def test_a_reader_in_the_middle_of_the_folding_counts_nobody_twice(tmp_path: Path):
    ended = Meters(tmp_path, worker="w1p1")
    ended.answered("e", "a", 1, "ok", [100, 200])
    ended.ran("e", 1, rows=2, spent=5, failed=False)
    ended.share()
    left = (tmp_path / "w1p1.json").read_bytes()
    fold(tmp_path, ["w1p1"], wanted=1, deaths=1)
    assert not (tmp_path / "w1p1.json").exists()
    (tmp_path / "w1p1.json").write_bytes(left)  # as a reader finds it between the two steps
    reader = Meters(tmp_path, worker="w2p2")
    reader.answered("e", "a", 1, "ok", [300])
    assert values(gateway_page(reader), "keepwell_predictions_total") == [3]
    assert reader.work()["e", 1].calls == 1


def test_folding_what_a_worker_never_wrote_loses_nothing(tmp_path: Path):
    fold(tmp_path, ["w1p1"], wanted=2, deaths=1)
    fold(tmp_path, (), wanted=2)
    gone = read_gone(tmp_path)
    assert (gone.deaths, gone.wanted, gone.counts) == (1, 2, Counts())


def test_a_process_is_known_by_more_than_its_number():
    own = take_footprint()
    assert is_alive(own)
    assert not is_alive(msgspec.structs.replace(own, born=own.born - 1))
    assert not is_alive(msgspec.structs.replace(own, pid=2**22 + 1))


def test_help_and_labels_are_escaped():
    family = Family("a", "gauge", "back\\slash\nand line")
    family.add(1, of='"\\\n')
    text = render([family])
    assert text == '# HELP a back\\\\slash\\nand line\n# TYPE a gauge\na{of="\\"\\\\\\n"} 1\n'
    assert lint(text) == ""


def test_the_backlog_counts_what_the_log_holds_and_reads_on_where_it_was(counted: Gateway):
    ask(counted, 1.0, rows=3)
    mirrored(counted)
    counted.application.request(
        "POST",
        "/v1/outcomes",
        b'{"outcomes":[{"id":"a","endpoint":"e","value":1},{"id":"b","endpoint":"e","value":0}]}',
    )
    backlog = Backlog(counted.log)
    predictions, outcomes, _ = counted.records()
    first = backlog.look()
    assert first.records == len(predictions) + len(outcomes)
    assert first.uncounted == 0
    assert first.bytes == sum(path.stat().st_size for path in counted.log.glob("*.seg"))
    ask(counted, 1.0, rows=4)
    mirrored(counted)
    assert backlog.look().records == first.records + 8  # the mirror's answers are records too


def test_a_torn_tail_is_told_as_bytes_that_cannot_be_counted(tmp_path: Path):
    (tmp_path / "a.seg").write_bytes(b"\x10\0\0\0torn")
    found = Backlog(tmp_path).look()
    assert (found.records, found.uncounted, found.segments) == (0, 8, 1)
