"""Snapshots and training sets are named by their content, and bad sources are named by their fault."""

from __future__ import annotations

import polars as pl
import pytest
from tests.data.flights_like import at, micros, orders, project, readings

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.stores.sql import open_store
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.records.data import Snapshot, TrainingSet
from keepwell.data.snapshots import load_source, read_snapshot, take_snapshot
from keepwell.data.training_sets import build_training_set, read_training_set


@pytest.fixture
def store(tmp_path):
    made = open_store(f"sqlite:///{tmp_path}/a.db")
    yield made
    made.close()


@pytest.fixture
def blobs(tmp_path):
    return FileBlobs(tmp_path / "blobs")


def snapshot(frames, store, blobs, *, as_of, source="orders", now=1, **window):
    return take_snapshot(
        project(frames).source(source),
        as_of=as_of,
        store=store,
        blobs=blobs,
        now=now,
        actor="ana",
        **window,
    )


def test_the_same_rows_give_the_same_snapshot_and_one_more_gives_another(store, blobs):
    frames = {"orders": orders(), "readings": readings()}
    first = snapshot(frames, store, blobs, as_of=micros(100))
    assert snapshot(frames, store, blobs, as_of=micros(100), now=2) == first
    assert snapshot(frames, store, blobs, as_of=micros(101)).content != first.content
    assert store.count(Snapshot) == 2
    rows = read_snapshot(first, blobs=blobs)
    assert (first.rows, rows.height) == (53, 53)
    assert rows.get_column("closed").max() == at(100)


def test_a_snapshot_keeps_its_window(store, blobs):
    frames = {"orders": orders(), "readings": readings()}
    made = snapshot(frames, store, blobs, as_of=micros(500), since=micros(10), until=micros(20))
    assert read_snapshot(made, blobs=blobs).get_column("id").to_list() == [
        f"o{n}" for n in range(10, 20)
    ]


def test_a_changed_byte_of_a_snapshot_is_corrupt(store, blobs):
    made = snapshot({"orders": orders(), "readings": readings()}, store, blobs, as_of=micros(500))
    place = blobs._place(made.content)
    place.chmod(0o644)
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(Corrupt):
        read_snapshot(made, blobs=blobs)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (orders().drop("closed"), r"known_at column 'closed' is not there"),
        (
            orders().rename({"placed": "place"}),
            r"timestamp column 'placed' is not there.*Did you mean 'place'",
        ),
        (orders().with_columns(pl.col("placed").cast(pl.String)), r"placed"),
        (orders().drop("id"), r"key column 'id'"),
        ({"a": 1}, r"gave a dict.*Return a polars DataFrame"),
        (None, r"gave a NoneType"),
    ],
)
def test_a_bad_source_says_what_is_wrong(frame, said):
    with pytest.raises(InvalidInput, match=said):
        load_source(project({"orders": frame, "readings": readings()}).source("orders"))


def test_a_source_that_raises_names_the_users_line():
    made = project({"readings": readings()})
    with pytest.raises(InvalidInput, match=r"flights_like\.py:\d+.*raised KeyError"):
        load_source(made.source("orders"))


def test_a_lazy_frame_is_collected():
    made = project({"orders": orders().lazy(), "readings": readings()})
    assert load_source(made.source("orders")).height == 120


@pytest.mark.parametrize("frame", [orders(0), orders()])
def test_a_snapshot_without_rows_is_refused(store, blobs, frame):
    with pytest.raises(InvalidInput, match="No row is known"):
        snapshot({"orders": frame, "readings": readings()}, store, blobs, as_of=micros(0))


def test_repeated_keys_are_refused(store, blobs):
    frames = {"orders": pl.concat([orders(), orders(2)]), "readings": readings()}
    with pytest.raises(InvalidInput, match="2 rows repeat the key id"):
        snapshot(frames, store, blobs, as_of=micros(500))


def test_a_column_of_an_unsupported_type_is_named(store, blobs):
    frames = {"orders": orders().with_columns(pl.lit([1]).alias("basket")), "readings": readings()}
    with pytest.raises(InvalidInput, match=r"'basket' has the type List"):
        snapshot(frames, store, blobs, as_of=micros(500))


def build(frames, store, blobs, **fields):
    given = {
        "as_of": micros(500),
        "since": None,
        "until": micros(120),
        "now": 1,
        "actor": "ana",
        **fields,
    }
    return build_training_set(project(frames), "returns", store=store, blobs=blobs, **given)


def test_the_same_inputs_give_the_same_training_set(store, blobs):
    frames = {"orders": orders(), "readings": readings()}
    first = build(frames, store, blobs)
    assert build(frames, store, blobs, now=2) == first
    assert (first.rows, set(first.snapshots), set(first.views)) == (
        120,
        {"orders", "readings"},
        {"crowding", "prices"},
    )
    assert store.count(TrainingSet) == 1
    rows = read_training_set(first, blobs=blobs)
    assert rows.get_column("__label").null_count() == 0
    assert [c.name for c in first.columns] == ["price", "double_price", "crowd"]


def test_decisions_whose_label_was_not_known_are_left_out(store, blobs):
    made = build({"orders": orders(), "readings": readings()}, store, blobs, as_of=micros(110))
    assert made.rows == 63


def test_too_few_labels_are_refused(store, blobs):
    with pytest.raises(InvalidInput, match="Only 13 labelled decisions"):
        build({"orders": orders(), "readings": readings()}, store, blobs, as_of=micros(60))


@pytest.mark.parametrize("column", ["returned", "closed", "shop"])
def test_a_missing_column_of_the_model_is_named(store, blobs, column):
    with pytest.raises(InvalidInput, match=column):
        build({"orders": orders().drop(column), "readings": readings()}, store, blobs)
