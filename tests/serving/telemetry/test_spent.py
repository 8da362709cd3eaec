"""The time that models took outlives the gateway, and no crash counts any of it twice."""

import shutil

from keepwell.serving.telemetry.meters import Meters, Work, fold, model_calls, retire


def worked(folder, name, *, rows):
    meters = Meters(folder, worker=name)
    meters.ran("e", 1, rows=rows, spent=rows * 1000, failed=False)
    meters.share()


def spent(tmp_path):
    found = model_calls(tmp_path / "meters", tmp_path / "spent.json").get(("e", 1), Work())
    assert found.spent == found.rows * 1000
    return found.rows


def test_a_new_gateway_keeps_the_model_calls_of_those_before_it(tmp_path):
    folder, kept = tmp_path / "meters", tmp_path / "spent.json"
    retire(folder, kept)  # the first gateway of all
    assert spent(tmp_path) == 0
    worked(folder, "w1", rows=10)
    worked(folder, "w2", rows=5)
    fold(folder, ["w1"], wanted=1, deaths=1)
    assert spent(tmp_path) == 15
    retire(folder, kept)
    assert spent(tmp_path) == 15
    assert not list(folder.glob("*.json"))
    worked(folder, "w1", rows=7)  # the next gateway's first worker has the same name
    assert spent(tmp_path) == 22
    retire(folder, kept)
    assert spent(tmp_path) == 22


def test_a_gateway_killed_while_it_takes_over_counts_nothing_twice(tmp_path):
    folder, kept = tmp_path / "meters", tmp_path / "spent.json"
    worked(folder, "w1", rows=10)
    worked(folder, "w2", rows=5)
    fold(folder, ["w1"], wanted=1)
    left = tmp_path / "left"
    shutil.copytree(folder, left)
    retire(folder, kept)
    # As if it had been killed after it wrote what it keeps and before the files went.
    shutil.rmtree(folder)
    shutil.copytree(left, folder)
    retire(folder, kept)
    assert spent(tmp_path) == 15
