"""The watcher from log to store: complete, exactly once, and able to die at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.watch.simulated import (
    START,
    Inbox,
    ListLog,
    Site,
    World,
    kpi,
    outcomes,
    predictions,
)

from keepwell.core.auditing import audit_problems
from keepwell.core.clock import DAY, WEEK
from keepwell.core.errors import Unavailable
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import HOLDOUT
from keepwell.core.records.watching import Alert, Decision, LedgerEntry, Measurement, Watermark
from keepwell.core.settings import MonitorSettings
from keepwell.serving.log.segments import SegmentLog, SegmentWriter
from keepwell.watch.health import health
from keepwell.watch.totals import totals

DECAYED = World(slope=-0.5, intercept=0.5)


def results(store):
    """Everything that watching wrote, but for where to read on."""
    return {
        kind.TABLE: store.find(kind) for kind in (Measurement, LedgerEntry, Alert, Decision)
    } | {
        "marks": [
            (m.endpoint, m.event_time, m.predictions, m.outcomes) for m in store.find(Watermark)
        ]
    }


def measured(site, monitor, **where):
    return site.store.find(Measurement, {"monitor": monitor, **where}, order=["start"])


def test_windows_are_measured_when_they_are_complete_and_only_then(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    assert watcher.tick() is False
    site.live(weeks=1)
    assert watcher.tick() is True
    assert measured(site, "volume") == []
    site.live(weeks=1)
    watcher.tick()
    assert [m.start for m in measured(site, "volume")] == [START]
    assert [m.start for m in measured(site, "log_loss")] == [START]
    watcher.settle()
    assert [m.start for m in measured(site, "log_loss")] == [START, START + WEEK]


def test_decay_becomes_one_delivered_critical_alert_and_one_decision(tmp_path):
    site = Site(tmp_path)
    site.plan(1, 1)
    watcher = site.watcher()
    site.live(weeks=3)
    watcher.tick()
    assert site.store.find(Alert) == []
    assert health("late", site.store).state == "healthy"
    site.live(weeks=4, world=DECAYED)
    watcher.tick()
    (alert,) = [a for a in site.store.find(Alert) if a.severity == "critical"]
    assert alert.state == "delivered"
    assert "concept drift" in alert.message
    assert alert.event_time <= START + 5 * WEEK + DAY
    assert site.inbox.alerts[0].id == alert.id
    (decision,) = site.store.find(Decision)
    assert (decision.kind, decision.alert, decision.version) == ("retrain", alert.id, 1)
    assert decision.event_time == alert.event_time
    found = health("late", site.store)
    assert (found.state, found.version, found.worst) == ("critical", 1, alert.monitor)
    assert audit_problems(site.store) == []


def test_data_drift_alone_warns_and_asks_for_nothing(tmp_path):
    site = Site(tmp_path, monitors=MonitorSettings(retrain_on=("performance",)))
    watcher = site.watcher()
    site.live(weeks=2)
    # Lower x makes the model surer, and as right as it says.
    site.live(weeks=3, world=World(shift=-1.0))
    watcher.tick()
    watcher.settle()
    alerts = site.store.find(Alert)
    assert {a.severity for a in alerts} == {"warning"}
    assert "drift:x" in {a.monitor for a in alerts}
    assert len([a for a in alerts if a.monitor.startswith("drift:")]) == 1
    assert site.store.find(Decision) == []


def test_the_alert_closes_when_the_trouble_is_over_and_may_open_again(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    site.live(weeks=2)
    site.live(weeks=2, world=DECAYED)
    site.live(weeks=3)
    site.live(weeks=2, world=DECAYED)
    watcher.tick()
    watcher.settle()
    critical = site.store.find(Alert, {"severity": "critical"}, order=["event_time"])
    assert [a.state for a in critical] == ["closed", "delivered"]
    # Both were heard, though the first was over before the tick ended.
    assert {a.id for a in site.inbox.alerts} >= {a.id for a in critical}


def test_a_renewal_is_asked_for_again_only_after_the_cooldown_and_the_answer(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    site.live(weeks=2)
    site.live(weeks=2, world=DECAYED)
    watcher.tick()
    (decision,) = site.store.find(Decision)
    site.live(weeks=4, world=DECAYED)
    watcher.tick()
    assert len(site.store.find(Decision)) == 1, "the first was not answered yet"
    with site.store.transaction(actor="loop") as transaction:
        transaction.replace(
            msgspec.structs.replace(decision, state="taken", revision=decision.revision + 1)
        )
    site.live(weeks=2, world=DECAYED)
    watcher.tick()
    first, second = site.store.find(Decision, order=["event_time"])
    assert second.event_time - first.event_time >= 14 * DAY
    assert second.alert == first.alert


def test_a_version_that_no_longer_answers_gets_no_decision_and_its_alerts_close(tmp_path):
    site = Site(tmp_path)
    site.plan(1, 1)
    watcher = site.watcher()
    site.live(weeks=2)
    site.live(weeks=2, world=DECAYED)
    watcher.tick()
    assert site.store.find(Alert, {"state": "delivered"})
    reference = site.live(weeks=1, world=DECAYED)
    site.register(2, reference)
    site.plan(2, 2)
    site.live(weeks=2, version=2)
    watcher.tick()
    assert {a.state for a in site.store.find(Alert)} == {"closed"}
    assert len(site.store.find(Decision)) == 1


def test_a_mirrored_challenger_is_measured_beside_the_champion(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    site.register(2, site.live(weeks=1))
    rows = site.live(weeks=2)
    site.log.append(predictions(rows, version=2, mirror=True))
    watcher.tick()
    watcher.settle()
    ours = measured(site, "log_loss", version=1, start=START + WEEK)
    theirs = measured(site, "log_loss", version=2, start=START + WEEK)
    assert ours[0].value == theirs[0].value
    assert {e.version for e in site.store.find(LedgerEntry)} == {1}


def test_late_repeated_and_disordered_records_give_the_same_results(tmp_path):
    plain, mixed = Site(tmp_path / "plain"), Site(tmp_path / "mixed")
    for site in (plain, mixed):
        site.live(weeks=4)
    records = mixed.log.segments.pop("one")
    rng = np.random.default_rng(0)
    # Two writers, shuffled within a few hours' worth, and a tenth told twice.
    places = rng.permutation(
        np.argsort(np.arange(len(records)) + rng.normal(size=len(records)) * 20)
    )
    asked = [records[i] for i in sorted(places[: len(places)], key=lambda i: i + rng.normal() * 20)]
    for i, record in enumerate(asked):
        mixed.log.append([record] * (2 if rng.random() < 0.1 else 1), segment="ab"[i % 2])
    for site in (plain, mixed):
        watcher = site.watcher()
        watcher.tick()
        watcher.settle()
    assert results(plain.store) == results(mixed.store)


def test_labels_that_never_come_are_left_out_and_counted(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    rows = site.live(weeks=1, outcomes_too=False)
    site.log.append([o for o in outcomes(rows) if int(o.id.split("-")[1]) % 2])
    site.live(weeks=1, outcomes_too=False)
    watcher.tick()
    watcher.settle()
    half, none = site.store.find(Measurement, {"monitor": "brier"}, order=["start"])
    assert half.rows == len(rows.times) // 2
    assert (none.rows, none.state, none.value) == (0, "unknown", None)
    (entry,) = site.store.find(LedgerEntry)
    assert (entry.decisions, entry.labelled) == (len(rows.times), len(rows.times) // 2)


def test_a_kpi_that_raises_is_told_with_its_line_and_the_rest_goes_on(tmp_path):
    def broken(predictions, outcomes):
        raise ZeroDivisionError("no money in here")

    site = Site(tmp_path, kpi_function=broken)
    watcher = site.watcher()
    site.live(weeks=2)
    watcher.tick()
    (value,) = measured(site, "value")
    assert value.state == "unknown"
    assert "ZeroDivisionError" in value.message
    assert "test_watcher.py" in value.message
    assert site.store.find(LedgerEntry) == []
    assert measured(site, "log_loss")[0].state == "ok"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda p, o: np.ones(3), "shape"),
        (lambda p, o: np.full(len(o), np.nan), "NaN"),
        (lambda p, o: ["much"] * len(o), "no numbers"),
    ],
)
def test_a_kpi_that_gives_no_money_is_told(tmp_path, function, words):
    site = Site(tmp_path, kpi_function=function)
    watcher = site.watcher()
    site.live(weeks=2)
    watcher.tick()
    assert words in measured(site, "value")[0].message


def test_business_drift_is_told_from_decay_of_the_model(tmp_path):
    prices = {"warning": 1.0}

    def dear(predictions, outcomes):
        return kpi(predictions, outcomes) * np.where(
            np.asarray(predictions) > 0.25, prices["warning"], 1
        )

    site = Site(tmp_path, kpi_function=dear)
    watcher = site.watcher()
    site.live(weeks=3)
    watcher.tick()
    prices["warning"] = 6.0
    site.live(weeks=3)
    watcher.tick()
    (alert,) = site.store.find(Alert)
    assert (alert.monitor, alert.severity) == ("value", "critical")
    assert "business drift" in alert.message
    assert "less than the baseline" in alert.message


def test_the_ledger_adds_up_to_the_money_of_every_labelled_decision(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    rows = [site.live(weeks=1) for _ in range(4)]
    watcher.tick()
    watcher.settle()
    found = totals(site.store.find(LedgerEntry))
    p, y, x = (np.concatenate([getattr(r, name) for r in rows]) for name in ("p", "y", "x"))
    baseline = kpi(np.where(x > 2.0, 1.0, 0.0), y)
    assert found.value == pytest.approx(kpi(p, y).sum())
    assert found.baseline == pytest.approx(baseline.sum())
    assert found.low < found.difference < found.high
    assert found.labelled == len(p)
    assert found.unit == "USD"


def test_what_is_held_out_is_in_the_volume_and_in_no_versions_ledger(tmp_path):
    site = Site(tmp_path, a_day=40)
    watcher = site.watcher()
    site.live(weeks=1)
    given = site.log.segments["one"]
    held = [k for k, record in enumerate(given) if isinstance(record, Prediction)][::4]
    for k in held:
        given[k] = msgspec.structs.replace(given[k], arm=HOLDOUT)
    count = sum(isinstance(record, Prediction) for record in given)
    watcher.tick()
    watcher.settle()
    assert sum(m.value for m in measured(site, "volume")) == count
    assert totals(site.store.find(LedgerEntry)).decisions == count - len(held)
    assert [mark.predictions for mark in site.store.find(Watermark)] == [count]


def test_the_ledgers_interval_covers_the_expected_gain(tmp_path):
    from tests.watch.simulated import SIGNATURE, draw

    from keepwell.watch.grid import Grid
    from keepwell.watch.ledger import ledger_entry
    from keepwell.watch.readings import View
    from keepwell.watch.windows import WindowRows

    site = Site(tmp_path)
    grid = Grid(length=WEEK, label_delay=DAY)
    rng = np.random.default_rng(0)

    def entry(week):
        rows = draw(rng, since=START, until=START + WEEK, a_day=60)
        window = WindowRows(
            start=START + week * WEEK,
            end=START + (week + 1) * WEEK,
            times=rows.times,
            outputs=rows.p,
            features=np.array(list(zip(rows.x, rows.z, rows.place, strict=True)), dtype=object),
            answered=np.ones(len(rows.p), dtype=bool),
            labels=rows.y,
        )
        view = View(
            rows=window,
            task="binary",
            signature=SIGNATURE,
            reference=None,
            declaration=site.project.models["late"],
            grid=grid,
            settings=site.settings.monitors,
        )
        return ledger_entry(view, endpoint="late", version=1, now=0)

    many = [entry(week) for week in range(400)]
    truth = np.mean([e.difference for e in many])
    alone = np.mean([e.low <= truth <= e.high for e in many])
    together = [totals(many[i : i + 4]) for i in range(0, 400, 4)]
    joint = np.mean([t.low <= 4 * truth <= t.high for t in together])
    assert 0.91 <= alone <= 0.985
    assert 0.88 <= joint <= 1.0


def test_an_alert_that_nobody_hears_is_tried_again_until_somebody_does(tmp_path):
    site = Site(tmp_path)
    watcher = site.watcher()
    site.live(weeks=2)
    site.live(weeks=2, world=DECAYED)
    site.inbox.down = True
    watcher.tick()
    (alert,) = site.store.find(Alert, {"severity": "critical"})
    assert alert.state == "undelivered"
    assert [d.ok for d in alert.deliveries] == [False]
    watcher.tick()
    assert len(site.store.find(Alert, {"id": alert.id})[0].deliveries) == 1, "waits a second first"
    site.inbox.down = False
    site.clock.at += 2_000_000
    # Another process takes over in the meantime.
    site.watcher().tick()
    (alert,) = site.store.find(Alert, {"id": alert.id})
    assert alert.state == "delivered"
    assert [d.ok for d in alert.deliveries] == [False, True]
    assert "Nobody answers" in alert.deliveries[0].detail


def test_one_deaf_channel_does_not_keep_the_others_from_hearing_and_is_given_up_in_the_end(
    tmp_path,
):
    site = Site(tmp_path)
    deaf = Inbox("deaf")
    deaf.down = True
    watcher = site.watcher(channels=[deaf, site.inbox])
    site.live(weeks=2)
    site.live(weeks=2, world=DECAYED)
    watcher.tick()
    for _ in range(60):
        site.clock.at += 60_000_000
        watcher.tick()
    (alert,) = site.store.find(Alert, {"severity": "critical"})
    assert alert.state == "delivered"
    assert len([d for d in alert.deliveries if d.channel == "deaf"]) == 20
    assert len(site.inbox.alerts) == len(site.store.find(Alert))


def test_records_of_an_endpoint_that_nobody_declared_are_passed_over(tmp_path):
    site = Site(tmp_path)
    rows = site.live(weeks=1)
    site.log.append([msgspec.structs.replace(p, endpoint="unknown") for p in predictions(rows)])
    watcher = site.watcher()
    watcher.tick()
    watcher.settle()
    assert {m.endpoint for m in site.store.find(Measurement)} == {"late"}


class Died(BaseException):
    """Stands for kill -9: nothing catches it."""


class FragileStore:
    """The real store, that dies at its nth moment of danger: before a commit, or right after it."""

    def __init__(self, store, fuse) -> None:
        self._store = store
        self._fuse = fuse

    def __getattr__(self, name):
        return getattr(self._store, name)

    @contextmanager
    def transaction(self, *, actor):
        with self._store.transaction(actor=actor) as transaction:
            yield transaction
            self._fuse.burn()
        self._fuse.burn()


class Fuse:
    def __init__(self, length) -> None:
        self.length = length

    def burn(self) -> None:
        self.length -= 1
        if self.length == 0:
            raise Died


class FragileLog:
    def __init__(self, log, fuse) -> None:
        self._log, self._fuse = log, fuse

    def read(self, cursor, *, limit=50_000, until=None):
        self._fuse.burn()
        return self._log.read(cursor, limit=min(limit, 700))


def _story(site, died_at):
    """Live through weeks with decay in them, ticking often, dying after so many moments, again and again."""
    deaths, fuse = 0, Fuse(died_at)

    def watcher():
        return site.watcher(store=FragileStore(site.store, fuse), log=FragileLog(site.log, fuse))

    watching = watcher()
    for week in range(7):
        site.live(weeks=1, world=DECAYED if week in {3, 4} else None)
        ticks = 2
        while ticks:
            try:
                watching.tick()
                ticks -= 1
            except Died:
                deaths += 1
                fuse.length = died_at + deaths
                watching = watcher()
    fuse.length = 10**9
    watching.settle()
    return deaths


def test_a_watcher_that_dies_at_any_moment_comes_to_the_same_results(tmp_path):
    # Below some number of moments it never gets through one reading of an open window, and cannot.
    whole = Site(tmp_path / "whole", a_day=80)
    assert _story(whole, 10**9) == 0
    expected = results(whole.store)
    assert len(expected["alerts"]) >= 1
    assert len(expected["decisions"]) == 1
    for died_at in (9, 12, 21):
        site = Site(tmp_path / str(died_at), a_day=80)
        assert _story(site, died_at) > 1
        assert results(site.store) == expected, died_at
        assert audit_problems(site.store) == []
        assert {a.id for a in site.inbox.alerts} == {a.id for a in expected["alerts"]}


def test_reading_goes_on_at_the_oldest_record_that_an_open_window_needs(tmp_path):
    site = Site(tmp_path)
    for _ in range(10):
        site.live(weeks=1)
    site.watcher(log=_Small(site.log)).tick()
    (mark,) = site.store.find(Watermark)
    later = ListLog()
    later.segments = {"one": site.log.segments["one"][mark.cursor["one"] :]}
    assert 0 < len(later.segments["one"]) < len(site.log.segments["one"]) / 2
    needed = {r.id for r in site.log.segments["one"] if r.time >= START + 9 * WEEK}
    assert needed <= {r.id for r in later.segments["one"]}


class _Small:
    def __init__(self, log) -> None:
        self._log = log

    def read(self, cursor, *, limit=50_000, until=None):
        return self._log.read(cursor, limit=1000)


def test_a_second_watcher_that_writes_meanwhile_is_noticed(tmp_path):
    from keepwell.core.errors import Conflict

    site = Site(tmp_path)
    first, second = site.watcher(), site.watcher()
    site.live(weeks=2)
    first.tick()
    with pytest.raises(Conflict):
        second.tick()


def test_a_store_that_fails_for_a_while_costs_nothing(tmp_path):
    site, calm = Site(tmp_path / "site"), Site(tmp_path / "calm")
    fuse = Fuse(2)

    class Flaky(FragileStore):
        @contextmanager
        def transaction(self, *, actor):
            with self._store.transaction(actor=actor) as transaction:
                yield transaction
                fuse.length -= 1
                if fuse.length == 0:
                    raise Unavailable("The disk is full.")

    watcher = site.watcher(store=Flaky(site.store, fuse))
    for each in (site, calm):
        each.live(weeks=4)
    with pytest.raises(Unavailable):
        watcher.tick()
    watcher.tick()
    calm.watcher().tick()
    assert results(site.store) == results(calm.store)


_CHILD = """
import sys
from pathlib import Path
import msgspec
sys.path.insert(0, {root!r})
from keepwell.core.records.predictions import Outcome, Prediction
from tests.watch.simulated import Site
folder = Path(sys.argv[1])
site = Site(folder, a_day=80)
site.log.append(msgspec.json.decode((folder / "predictions.json").read_bytes(), type=list[Prediction]))
site.log.append(msgspec.json.decode((folder / "outcomes.json").read_bytes(), type=list[Outcome]), segment="two")
watcher = site.watcher()
print("ready", flush=True)
watcher.tick()
watcher.settle()
print("done", flush=True)
"""


@pytest.mark.services
def test_a_process_killed_while_it_watches_leaves_a_store_that_the_next_one_finishes(tmp_path):
    made = Site(tmp_path / "made", a_day=80)
    rows = [made.live(weeks=4), made.live(weeks=3, world=DECAYED)]
    asked = [p for r in rows for p in predictions(r)]
    told = [o for r in rows for o in outcomes(r)]
    expected = made.watcher()
    expected.tick()
    expected.settle()

    folder = tmp_path / "killed"
    Site(folder, a_day=80).store.close()
    (folder / "predictions.json").write_bytes(msgspec.json.encode(asked))
    (folder / "outcomes.json").write_bytes(msgspec.json.encode(told))
    script = _CHILD.format(root=str(Path(__file__).parents[2]))

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
        )

    site = Site(folder, a_day=80)
    for goal in (2, 60):
        child = start()
        assert child.stdout.readline() == "ready\n"
        while site.store.count(Measurement) < goal and child.poll() is None:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    last = start()
    out, _ = last.communicate(timeout=150)
    assert out.endswith("done\n")
    assert results(site.store) == results(made.store)
    assert audit_problems(site.store) == []


def test_the_gateways_own_segments_are_watched_as_they_grow(tmp_path):
    site, plain = Site(tmp_path / "site"), Site(tmp_path / "plain")
    folder = tmp_path / "log"
    folder.mkdir()
    writers = [SegmentWriter(folder, name=name) for name in ("one", "two")]
    watcher = site.watcher(log=SegmentLog(folder))
    for week in range(6):
        for each in (site, plain):
            each.live(weeks=1, world=DECAYED if week > 3 else None)
        records = site.log.segments.pop("one")
        for i, writer in enumerate(writers):
            # One writer is far ahead of the other in the folder, as after a busy worker's part is full.
            mine = records[i::2]
            writer.append(
                [r for r in mine if isinstance(r, Prediction)],
                [r for r in mine if isinstance(r, Outcome)],
            )
            writer.sync()
        watcher.tick()
        if week == 3:
            watcher = site.watcher(log=SegmentLog(folder))
    watcher.settle()
    for writer in writers:
        writer.close()
    whole = plain.watcher()
    whole.tick()
    whole.settle()
    kinds = ("measurements", "ledger", "decisions")
    ours, theirs = results(site.store), results(plain.store)
    assert {k: ours[k] for k in kinds} == {k: theirs[k] for k in kinds}
    assert site.store.find(Decision)
