"""Monitors and judgement on worlds whose truth is known: quiet when nothing changed, heard when something did."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
import pytest
from tests.watch.simulated import NUMERIC, START, World, draw, validation

from keepwell.core.clock import DAY, WEEK
from keepwell.core.records.data import Column
from keepwell.core.records.models import Signature
from keepwell.core.records.watching import Measurement
from keepwell.core.settings import MonitorSettings
from keepwell.watch.clusters import cluster_sums, compare
from keepwell.watch.diagnosis import diagnose
from keepwell.watch.grid import Grid
from keepwell.watch.judgement import judge
from keepwell.watch.monitors import MONITORS, measure
from keepwell.watch.readings import View
from keepwell.watch.reference import build_reference
from keepwell.watch.windows import WindowRows

GRID = Grid(length=WEEK, label_delay=DAY)
SETTINGS = MonitorSettings()


def reference_of(rows, signature=NUMERIC):
    return build_reference(validation(rows, numeric=True), signature, grid=GRID)


def view_of(rows, reference, *, start=START, answered=True, window=None, **other):
    parts = {
        "rows": window
        or WindowRows(
            start=start,
            end=start + WEEK,
            times=rows.times,
            outputs=rows.p,
            features=np.c_[rows.x, rows.z],
            answered=np.full(len(rows.p), answered),
            labels=rows.y,
        ),
        "task": "binary",
        "signature": NUMERIC,
        "reference": reference,
        "declaration": None,
        "grid": GRID,
        "settings": SETTINGS,
        "volume": len(rows.p),
        "whole": False,
    }
    return View(**(parts | other))


def run(seed, worlds, *, before=None, a_day=100, settings=SETTINGS):
    """Watch one window a world, one after the other; give each window's measurements by monitor."""
    rng = np.random.default_rng(seed)
    before = before or World()
    reference = reference_of(
        draw(rng, since=START - 21 * DAY, until=START, a_day=a_day, world=before)
    )
    history: dict[str, list[Measurement]] = {}
    found = []
    for week, world in enumerate(worlds):
        start = START + week * WEEK
        rows = draw(rng, since=start, until=start + WEEK, a_day=a_day, world=world)
        view = view_of(rows, reference, start=start, settings=settings)
        measured = judge(
            [*measure(view, "data"), *measure(view, "labels")],
            history,
            version=1,
            endpoint="late",
            start=start,
            end=start + WEEK,
            answering=True,
            settings=settings,
            grid=GRID,
            now=0,
        )
        for m in measured:
            history.setdefault(m.monitor, []).append(m)
        found.append({m.monitor: m for m in measured})
    return found


def first_alarm(found, kind, after):
    """Windows from the change to the first alarm of this kind; None if there is none."""
    for week, window in enumerate(found):
        if any(m.state == "alarm" and m.kind == kind for m in window.values()):
            return week - after
    return None


def test_no_drift_raises_no_more_than_one_false_alarm_in_four_years_of_windows():
    # With alpha 0.01 a year and eight series, 4 years expect at most 0.3; days here differ by 0.3 logits.
    world = World(day_spread=0.3)
    years = [run(seed, [world] * 52, before=world, a_day=80) for seed in range(4)]
    alarms = {
        (year, m.kind)
        for year, found in enumerate(years)
        for window in found
        for m in window.values()
        if m.state == "alarm"
    }
    assert len(alarms) <= 1


@pytest.mark.parametrize(("intercept", "within"), [(1.5, 1), (-1.5, 2), (0.8, 5)])
def test_sudden_decay_is_found_within_some_windows(intercept, within):
    calm, changed = World(day_spread=0.2), World(day_spread=0.2, intercept=intercept)
    for seed in range(3):
        found = run(seed, [calm] * 6 + [changed] * 10, before=calm)
        assert first_alarm(found[:6], "performance", 6) is None
        assert first_alarm(found, "performance", 6) <= within


def test_gradual_decay_is_found_while_it_grows():
    calm = World(day_spread=0.2)
    worlds = [calm] * 5 + [World(day_spread=0.2, intercept=0.15 * k) for k in range(1, 11)]
    for seed in range(3):
        found = run(seed, worlds, before=calm)
        assert 0 <= first_alarm(found, "performance", 5) < 10


def test_estimated_performance_sees_harder_inputs_before_any_label():
    found = run(1, [World()] * 3 + [World(shift=0.8)] * 3)
    estimated = [w["estimated_log_loss"].state for w in found]
    assert estimated == ["ok"] * 3 + ["alarm"] * 3
    assert found[3]["drift:x"].state == "alarm"
    assert found[3]["drift:z"].state == "ok"


def test_estimated_performance_meets_what_the_labels_say_later():
    window = run(2, [World(shift=0.8)], a_day=1000)[0]
    estimated, realised = window["estimated_log_loss"], window["log_loss"]
    assert realised.low < estimated.value < realised.high


def cause(window, kind="performance"):
    alarms = [m for m in window.values() if m.kind == kind and m.state == "alarm"]
    return diagnose(kind, alarms, window)[0]


def test_concept_drift_is_told_from_data_drift():
    moved = run(3, [World(shift=1.0, wide=0.5)], a_day=1000)[0]
    assert moved["log_loss"].state == "alarm"
    assert moved["unexplained_log_loss"].state == "ok"
    assert cause(moved) == "data drift"
    changed = run(3, [World(slope=-0.5)], a_day=1000)[0]
    assert changed["estimated_log_loss"].state == "ok"
    assert cause(changed) == "concept drift"


def test_concept_drift_is_seen_though_easier_inputs_hide_it_in_the_loss():
    hidden = run(4, [World(shift=-1.5, intercept=1.0)] * 2, a_day=400)[-1]
    assert hidden["log_loss"].value < hidden["log_loss"].limit
    assert hidden["unexplained_log_loss"].state == "alarm"


def test_an_alarm_ends_when_a_window_is_back_within_its_limit():
    found = run(5, [World(intercept=2.0)] * 2 + [World()] * 3)
    states = [w["log_loss"].state for w in found]
    assert states[:2] == ["alarm", "alarm"]
    assert states[-1] == "ok"


def test_big_windows_do_not_alarm_on_a_drift_that_does_not_matter():
    window = run(6, [World(shift=0.1)], a_day=4000)[0]
    chance = float(window["drift:x"].message.split("p ")[1].rstrip(")"))
    assert chance < SETTINGS.alpha / 52 / 2
    assert window["drift:x"].value > 0
    assert window["drift:x"].state == "ok"


def test_too_few_rows_are_measured_and_not_judged():
    found = run(7, [World(intercept=3.0)] * 3, a_day=20)
    assert {m.state for w in found for m in w.values() if m.kind == "performance"} == {"unknown"}
    assert found[0]["log_loss"].value is not None
    assert "500 rows needed" in found[0]["log_loss"].message


def test_an_empty_window_gives_unknown_and_no_error():
    nothing = draw(np.random.default_rng(0), since=START, until=START + DAY, a_day=0)
    reference = reference_of(
        draw(np.random.default_rng(0), since=START - 21 * DAY, until=START, a_day=100)
    )
    view = view_of(nothing, reference)
    readings = [*measure(view, "data"), *measure(view, "labels")]
    assert len(readings) > 5
    assert all(r.value is None for r in readings if r.monitor != "volume")


def test_features_that_are_all_missing_are_drift_and_not_an_error():
    rng = np.random.default_rng(8)
    reference = reference_of(draw(rng, since=START - 21 * DAY, until=START, a_day=100))
    rows = draw(rng, since=START, until=START + WEEK, a_day=100)
    rows.x[:] = np.nan
    readings = {r.monitor: r for r in measure(view_of(rows, reference), "data")}
    assert readings["drift:x"].alarm
    assert readings["missing_share"].value == 0.5
    assert (readings["missing_share"].score or 0) > 5


def test_a_version_that_only_mirrors_is_measured_and_alarms_nobody():
    rng = np.random.default_rng(9)
    reference = reference_of(draw(rng, since=START - 21 * DAY, until=START, a_day=100))
    rows = draw(rng, since=START, until=START + WEEK, a_day=100, world=World(intercept=3.0))
    measured = judge(
        measure(view_of(rows, reference, answered=False), "labels"),
        {},
        version=2,
        endpoint="late",
        start=START,
        end=START + WEEK,
        answering=False,
        settings=SETTINGS,
        grid=GRID,
        now=0,
    )
    assert {m.state for m in measured} == {"unknown"}
    assert all((m.score or 0) > 5 for m in measured if m.monitor == "log_loss")


def test_without_a_reference_performance_is_measured_and_nothing_is_judged():
    rows = draw(np.random.default_rng(0), since=START, until=START + WEEK, a_day=100)
    readings = measure(view_of(rows, None), "labels")
    assert {r.monitor for r in readings} >= {"log_loss", "brier", "calibration"}
    assert all(r.score is None and r.value is not None for r in readings)


def test_volume_is_held_against_the_windows_before():
    rows = draw(np.random.default_rng(0), since=START, until=START + WEEK, a_day=100)

    def alarm(volume, **other):
        view = view_of(rows, None, volume=volume, **({"whole": True} | other))
        return next(r.alarm for r in measure(view, "data") if r.monitor == "volume")

    usual = (700, 690, 710, 705)
    assert alarm(700, earlier_volumes=usual) is False
    assert alarm(300, earlier_volumes=usual) is True
    assert alarm(1500, earlier_volumes=usual) is True
    assert alarm(300, earlier_volumes=usual, whole=False) is None
    assert alarm(300, earlier_volumes=usual[:3]) is None


def test_errors_alarm_beyond_one_in_a_hundred():
    rows = draw(np.random.default_rng(0), since=START, until=START + WEEK, a_day=100)

    def score(errors):
        view = view_of(rows, None)
        window = WindowRows(
            **{f: getattr(view.rows, f) for f in WindowRows.__dataclass_fields__}
            | {"errors": errors}
        )
        readings = measure(view_of(rows, None, window=window), "data")
        return next(r.score for r in readings if r.monitor == "error_share")

    assert score(0) < 0 < score(20)
    assert score(200) == 8.0


def test_regression_has_its_own_metrics_and_finds_its_own_decay():
    rng = np.random.default_rng(10)
    signature = msgspec.structs.replace(NUMERIC, task="regression")

    def rows(since, days, *, bias=0.0, noise=1.0):
        found = draw(rng, since=since, until=since + days * DAY, a_day=100)
        found.p[:] = 2 * found.x
        found.y[:] = 2 * found.x + rng.normal(size=len(found.x)) * noise - bias
        return found

    reference = reference_of(rows(START - 21 * DAY, 21), signature)

    def states(window):
        view = view_of(window, reference, task="regression", signature=signature)
        return {
            m.monitor: m.state
            for m in judge(
                [*measure(view, "data"), *measure(view, "labels")],
                {},
                version=1,
                endpoint="late",
                start=START,
                end=START + WEEK,
                answering=True,
                settings=SETTINGS,
                grid=GRID,
                now=0,
            )
            if m.kind == "performance"
        }

    assert states(rows(START, 7)) == {"mae": "ok", "rmse": "ok", "bias": "ok"}
    assert states(rows(START, 7, bias=2.0)) == {"mae": "alarm", "rmse": "alarm", "bias": "alarm"}
    assert states(rows(START, 7, noise=2.0)) == {"mae": "alarm", "rmse": "alarm", "bias": "ok"}


def test_several_classes_are_scored_by_log_loss_and_error_rate():
    rng = np.random.default_rng(11)
    rows = draw(rng, since=START, until=START + WEEK, a_day=100)
    outputs = rng.dirichlet([1, 1, 1], size=len(rows.p))
    labels = np.array([rng.choice(3, p=p) for p in outputs], dtype=float)
    signature = Signature(inputs=NUMERIC.inputs, task="multiclass", classes=("a", "b", "c"))
    frame = validation(rows, numeric=True)
    frame = frame.with_columns(
        pl.Series("__prediction", outputs.tolist()), pl.Series("__label", labels)
    )
    reference = build_reference(frame, signature, grid=GRID)
    view = view_of(rows, reference, task="multiclass", signature=signature)
    window = WindowRows(
        **{f: getattr(view.rows, f) for f in WindowRows.__dataclass_fields__}
        | {"outputs": outputs, "labels": labels}
    )
    view = view_of(rows, reference, task="multiclass", signature=signature, window=window)
    found = {r.monitor: r for r in [*measure(view, "data"), *measure(view, "labels")]}
    assert found["log_loss"].value == pytest.approx(
        -np.log(outputs[np.arange(len(labels)), labels.astype(int)]).mean()
    )
    assert found["error_rate"].value == pytest.approx((outputs.argmax(1) != labels).mean())
    assert not found["prediction_drift"].alarm


def test_a_window_of_days_that_differ_is_less_sure_than_its_rows_alone():
    rng = np.random.default_rng(12)
    days = np.repeat(np.arange(28), 200)
    values = rng.normal(size=28)[days] + rng.normal(size=len(days))
    times = days * DAY
    seven, rest = times < 7 * DAY, times >= 7 * DAY
    found = compare(
        cluster_sums(values[seven], times[seven], DAY), cluster_sums(values[rest], times[rest], DAY)
    )
    assert found.error > 5 * values.std() / np.sqrt(seven.sum())
    assert found.freedom == 26


def test_clustered_scores_of_equal_worlds_are_about_standard_normal():
    rng = np.random.default_rng(13)
    scores = []
    for _ in range(400):
        days = np.repeat(np.arange(28), 30)
        values = 0.5 * rng.normal(size=28)[days] + rng.normal(size=len(days))
        live = days < 7
        found = compare(
            cluster_sums(values[live], days[live] * DAY, DAY),
            cluster_sums(values[~live], days[~live] * DAY, DAY),
        )
        scores.append(found.score(found.reference or 0.0))
    assert np.mean(np.array(scores) > 1.645) < 0.08
    assert abs(np.mean(scores)) < 0.15


def test_every_monitor_of_the_catalog_names_its_kind_and_part():
    for name in MONITORS.names():
        monitor = MONITORS.load(name)
        assert monitor.kind in {
            "data",
            "prediction",
            "performance",
            "estimate",
            "business",
            "traffic",
        }
        assert monitor.part in {"data", "labels"}


def test_text_features_beyond_the_known_ones_are_drift():
    column = Column(name="place", dtype="string", nullable=True)
    signature = Signature(inputs=(*NUMERIC.inputs, column), task="binary")
    rng = np.random.default_rng(14)
    past = draw(rng, since=START - 21 * DAY, until=START, a_day=100)
    reference = build_reference(validation(past, numeric=False), signature, grid=GRID)
    rows = draw(rng, since=START, until=START + WEEK, a_day=100)
    assert reference is not None
    place = reference.features[2]
    from keepwell.stats.drift import psi_test

    assert psi_test(place.counts, place.count(rows.place.astype(object))).effect < 0.05
    strange = np.array(["sfo", None] * (len(rows.place) // 2), dtype=object)
    assert psi_test(place.counts, place.count(strange)).effect > 2


def test_a_part_of_a_window_is_not_judged_for_drift():
    rng = np.random.default_rng(15)
    reference = reference_of(draw(rng, since=START - 21 * DAY, until=START, a_day=200))
    rows = draw(rng, since=START, until=START + 4 * DAY, a_day=200, world=World(shift=2.0))
    readings = {r.monitor: r for r in measure(view_of(rows, reference), "data")}
    assert readings["drift:x"].alarm is None
    assert "4 days are too few" in readings["drift:x"].message


def test_a_column_that_moves_within_the_reference_must_move_further_to_alarm():
    rng = np.random.default_rng(16)
    rows = draw(rng, since=START - 28 * DAY, until=START, a_day=200)
    rows.x[:] += 1.5 * ((rows.times - START) // WEEK % 2)
    season = reference_of(rows)
    assert season.features[0].natural > 0.3
    assert season.features[1].natural < 0.05
    live = draw(rng, since=START, until=START + WEEK, a_day=200)
    readings = {r.monitor: r for r in measure(view_of(live, season), "data")}
    assert not readings["drift:x"].alarm
