"""Tracking keeps what it promises, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import math
import threading

import pytest

from keepwell.adapters.tracking.sql import SqlTracking
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Refused
from keepwell.core.records.tracking import Dataset, DatasetInput, Metric, ModelLink, RunBatch


def batch(run: str, *points: tuple[int, float], key: str = "loss") -> RunBatch:
    metrics = tuple(Metric(key=key, value=value, time=step, step=step) for step, value in points)
    return RunBatch(run=run, metrics=metrics)


@pytest.fixture
def run(tracking: SqlTracking) -> str:
    return tracking.start_run(tracking.experiment("e", now=1).id, name="r", now=1).id


def test_the_latest_value_is_that_of_the_highest_step_whatever_the_order(
    tracking: SqlTracking, run: str
) -> None:
    for points in ([(5, 0.5), (9, 0.9)], [(2, 0.2)], [(9, 0.8)]):
        tracking.log(batch(run, *points))
    assert [m.value for m in tracking.run(run).metrics] == [0.9]
    assert [m.step for m in tracking.metric_history(run, "loss")] == [2, 5, 9, 9]


def test_a_point_logged_twice_is_kept_once(tracking: SqlTracking, run: str) -> None:
    for _ in range(2):
        tracking.log(batch(run, (1, 0.5), (1, 0.5)))
    assert len(tracking.metric_history(run, "loss")) == 1


def test_values_that_are_no_numbers_come_back(tracking: SqlTracking, run: str) -> None:
    for key, value in (("nan", math.nan), ("inf", math.inf), ("minus", -math.inf)):
        tracking.log(batch(run, (0, value), key=key))
    found = {m.key: m.value for m in tracking.run(run).metrics}
    assert math.isnan(found["nan"])
    assert (found["inf"], found["minus"]) == (math.inf, -math.inf)


def test_a_param_never_changes_and_the_batch_that_tries_leaves_nothing(
    tracking: SqlTracking, run: str
) -> None:
    tracking.log(RunBatch(run=run, params={"depth": "3"}))
    tracking.log(RunBatch(run=run, params={"depth": "3"}))
    with pytest.raises(InvalidInput, match="cannot become '4'"):
        tracking.log(RunBatch(run=run, params={"depth": "4", "new": "1"}, tags={"t": "1"}))
    assert tracking.run(run).params == {"depth": "3"}
    assert "t" not in tracking.run(run).tags


def test_in_a_group_one_refused_batch_does_not_harm_the_others(
    tracking: SqlTracking, run: str
) -> None:
    verdicts = tracking.log_many(
        [
            batch(run, (1, 1.0)),
            batch("nobody", (1, 1.0)),
            RunBatch(run=run, params={"a": "1"}),
            RunBatch(run=run, params={"a": "2"}),
        ]
    )
    assert [type(verdict) for verdict in verdicts] == [
        type(None),
        NotFound,
        type(None),
        InvalidInput,
    ]
    assert tracking.run(run).params == {"a": "1"}


def test_a_deleted_run_takes_nothing_until_it_is_restored(tracking: SqlTracking, run: str) -> None:
    tracking.update_run(run, stage="deleted")
    with pytest.raises(Refused):
        tracking.log(batch(run, (1, 1.0)))
    tracking.update_run(run, stage="active")
    tracking.log(batch(run, (1, 1.0)))


def test_an_experiments_name_is_taken_once_even_by_a_deleted_one(tracking: SqlTracking) -> None:
    made = tracking.create_experiment("one", now=1)
    with pytest.raises(Conflict):
        tracking.create_experiment("one", now=2)
    tracking.update_experiment(made.id, stage="deleted", now=3)
    with pytest.raises(Conflict):
        tracking.experiment("one", now=4)


def test_runs_are_ordered_numbers_first_then_nan_then_missing_in_both_directions(
    tracking: SqlTracking,
) -> None:
    experiment = tracking.experiment("order", now=1).id
    for name, value in (("low", 1.0), ("nan", math.nan), ("high", 2.0)):
        made = tracking.start_run(experiment, name=name, now=1).id
        tracking.log(batch(made, (0, value)))
    tracking.start_run(experiment, name="none", now=1)
    for order, wanted in (
        ("metrics.loss", ["low", "high", "nan", "none"]),
        ("metrics.loss DESC", ["high", "low", "nan", "none"]),
    ):
        found = tracking.search_runs([experiment], order=[order])
        assert [one.name for one in found.runs] == wanted


def test_pages_join_to_the_whole_without_gap_or_repeat(tracking: SqlTracking) -> None:
    experiment = tracking.experiment("pages", now=1).id
    names = [f"r{i}" for i in range(23)]
    for i, name in enumerate(names):
        tracking.start_run(experiment, name=name, now=i % 3)
    seen, token = [], ""
    while True:
        page = tracking.search_runs([experiment], limit=5, token=token)
        seen += [one.name for one in page.runs]
        token = page.token
        if not token:
            break
    assert sorted(seen) == sorted(names)
    first = tracking.search_runs([experiment], limit=5)
    with pytest.raises(InvalidInput, match="another search"):
        tracking.search_runs([experiment], filter="name = 'x'", limit=5, token=first.token)


def test_writers_at_the_same_time_lose_nothing(tracking: SqlTracking, run: str) -> None:
    faults = []

    def write(thread: int) -> None:
        try:
            for step in range(20):
                tracking.log(batch(run, (step, float(thread)), key=f"k{step % 3}"))
        except Exception as fault:  # noqa: BLE001 - the thread's door
            faults.append(fault)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sum(len(tracking.metric_history(run, f"k{k}")) for k in range(3)) == 80


def test_inputs_and_links_are_entered_once_and_found(tracking: SqlTracking, run: str) -> None:
    data = Dataset(name="flights", digest="d1", source_type="local", source="{}")
    given = DatasetInput(dataset=data, tags={"mlflow.data.context": "training"})
    for _ in range(2):
        tracking.log_inputs(run, datasets=[given], models=[ModelLink(model="m-1")])
    found = tracking.run(run)
    assert found.inputs == (given,)
    assert found.models_in == (ModelLink(model="m-1"),)
    hits = tracking.search_runs([found.experiment], filter="datasets.context = 'training'")
    assert [one.id for one in hits.runs] == [run]
    assert tracking.dataset_summaries([found.experiment]) == [
        (found.experiment, "flights", "d1", "training")
    ]


def test_a_metric_of_a_logged_model_is_found_with_the_model(
    tracking: SqlTracking, run: str
) -> None:
    experiment = tracking.run(run).experiment
    model = tracking.create_logged_model(experiment, name="m", run=run, now=1)
    tracking.log(RunBatch(run=run, metrics=(Metric(key="auc", value=0.9, time=1, model=model.id),)))
    found, _ = tracking.search_logged_models([experiment], filter="metrics.auc > 0.8")
    assert [one.id for one in found] == [model.id]
    assert tracking.search_logged_models([experiment], filter="metrics.auc > 0.95")[0] == []


def test_a_listing_shows_files_and_folders_and_removal_takes_all_below(
    tracking: SqlTracking, run: str
) -> None:
    for path in ("a.txt", "deep/b.txt", "deep/er/c.txt", "deep.txt"):
        tracking.log_file(run, path, digest="sha256:" + "0" * 64, size=1, now=1)
    root = tracking.run(run).artifacts.removeprefix("mlflow-artifacts:/")
    names = [(name, file is None) for name, file in tracking.list_files(root)]
    assert sorted(names) == [("a.txt", False), ("deep", True), ("deep.txt", False)]
    assert tracking.remove_files(f"{root}/deep") == 2
    assert {file.path for file in tracking.files_under(root)} == {
        f"{root}/a.txt",
        f"{root}/deep.txt",
    }


@pytest.mark.parametrize("path", ["../a", "a/../b", "a//b", "a\\b", "", "a\0b", "./a", "x" * 2000])
def test_a_path_that_could_escape_is_refused(tracking: SqlTracking, run: str, path: str) -> None:
    with pytest.raises(InvalidInput):
        tracking.log_file(run, path, digest="sha256:" + "0" * 64, size=1, now=1)


def test_a_file_cannot_lie_below_a_file(tracking: SqlTracking, run: str) -> None:
    tracking.log_file(run, "a", digest="sha256:" + "0" * 64, size=1, now=1)
    with pytest.raises(InvalidInput):
        tracking.log_file(run, "a/b", digest="sha256:" + "0" * 64, size=1, now=1)


def test_a_search_with_a_value_longer_than_an_index_entry_finds_exactly_it(
    tracking: SqlTracking,
) -> None:
    experiment = tracking.experiment("long", now=1).id
    wanted, other = "x" * 5_999 + "a", "x" * 5_999 + "b"
    for value in (wanted, other):
        made = tracking.start_run(experiment, now=1).id
        tracking.log(RunBatch(run=made, params={"p": value}))
    found = tracking.search_runs([experiment], filter=f"params.p = '{wanted}'").runs
    assert [one.params["p"] for one in found] == [wanted]
