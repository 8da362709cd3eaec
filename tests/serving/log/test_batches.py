"""A batch in the log gives back the records of its rows, whatever stood in which column."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.core.records.predictions import Prediction
from keepwell.serving.log.batches import STATUSES, Answerer, Answers, Batch
from keepwell.serving.log.segments import SegmentLog, SegmentWriter

ARMS = (
    Answerer("v1", 1, "sha256:a", 6000),
    Answerer("v2", 2, "sha256:b", 4000),
    Answerer("v2", 2, "sha256:b", 10_000, "x-tester=ann"),
)
numbers = st.one_of(st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 1e308, 5e-324, float("inf")]))  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, list[Prediction]]:
    """Draw rows as records, and the batch that says the same."""
    n = draw(st.integers(1, 5))
    width = draw(st.integers(1, 3))
    classes = draw(st.sampled_from([0, 3]))
    packs = draw(st.booleans())
    mirror = draw(st.booleans())
    cell = st.none() | numbers if packs else st.none() | numbers | st.booleans() | st.text()
    rows: list[tuple[Any, ...]] = [tuple(draw(cell) for _ in range(width)) for _ in range(n)]
    named, timed, with_units, parted, fell, drawn = (draw(st.booleans()) for _ in range(6))
    ids = [draw(st.text()) for _ in range(n)] if named else [f"p-{9 + k:x}" for k in range(n)]
    units = [draw(st.text(max_size=2)) for _ in range(n)] if with_units else [""] * n
    times = [draw(st.integers(-(10**15), 10**15)) for _ in range(n)] if timed else [77] * n
    chosen = [draw(st.integers(0, 2)) if parted else 0 for _ in range(n)]
    chances = [draw(st.floats(0, 1)) if drawn else (0.6, 0.4, 1.0)[c] for c in chosen]
    answered = [draw(st.integers(0, 1)) if fell else c for c in chosen]
    statuses = [draw(st.integers(0, 3)) if fell else 0 for _ in range(n)]
    outputs = np.array([[draw(numbers) for _ in range(classes or 1)] for _ in range(n)])
    spent = [draw(st.integers(0, 2**32 - 1)) for _ in range(n)]
    errors = {k: "said" for k in range(n) if statuses[k]}
    batch = Batch(
        endpoint="e",
        plan=3,
        arms=("v1", "v2"),
        answerers=ARMS,
        arrived=77,
        mirror=mirror,
        rows=n,
        prefix="p-",
        first=9,
        ids=ids if named else (),
        times=times if timed else (),
        units=units if with_units else (),
        chosen=np.array(chosen, dtype="<u2").tobytes() if parted else b"",
        answered=np.array(answered, dtype="<u2").tobytes() if fell else b"",
        features=() if packs else rows,
        matrix=np.array(rows, dtype=np.float64).tobytes() if packs else b"",
        outputs=outputs.tobytes(),
        classes=classes,
        latencies=np.array(spent, dtype="<u4").tobytes(),
        statuses=bytes(statuses) if fell else b"",
        errors=errors,
        propensities=np.array(chances, dtype="<f8").tobytes() if drawn else b"",
    )
    records = [
        Prediction(
            id=ids[k],
            time=times[k],
            arrived=77,
            endpoint="e",
            unit=units[k] or ids[k],
            arms=("v1", "v2"),
            arm=ARMS[answered[k]].arm,
            propensity=chances[k],
            mirror=mirror,
            plan=3,
            version=ARMS[answered[k]].version,
            artefact=ARMS[answered[k]].artefact,
            features=rows[k],
            output=None
            if STATUSES[statuses[k]] == "error"
            else (outputs[k].tolist() if classes else float(outputs[k, 0])),
            latency=spent[k],
            status=STATUSES[statuses[k]],
            error=errors.get(k, ""),
            cohort=ARMS[chosen[k]].cohort,
            chosen="" if ARMS[chosen[k]].arm == ARMS[answered[k]].arm else ARMS[chosen[k]].arm,
        )
        for k in range(n)
    ]
    return batch, records


@settings(deadline=None, max_examples=150)
@given(batches(), st.data())
def test_some_rows_of_a_batch_are_those_records_with_the_share_that_was_written(drawn, data):
    batch, _ = drawn
    places = data.draw(st.lists(st.integers(0, batch.rows - 1), unique=True).map(sorted))
    taken = batch.take(np.array(places, dtype=np.intp), share=0.5)
    records = batch.expand()
    assert taken.rows == len(places)
    if places:
        assert [repr(r) for r in taken.expand()] == [
            repr(msgspec.structs.replace(records[k], share=0.5)) for k in places
        ]


@settings(deadline=None, max_examples=150)
@given(st.lists(batches(), min_size=1, max_size=3))
def test_what_is_read_are_the_records_that_the_batches_say(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("log")
    writer = SegmentWriter(folder, name="w")
    for batch, _ in drawn:
        writer.append(batches=[batch])
    writer.close()
    read = SegmentLog(folder).read({}).predictions
    expected = [record for _, records in drawn for record in records]
    assert [repr(one) for one in read] == [repr(one) for one in expected], (
        "repr tells true from 1.0"
    )


@settings(deadline=None, max_examples=60)
@given(batches(), st.data())
def test_a_part_of_a_batch_is_that_part_of_its_records(drawn, data):
    batch, records = drawn
    start = data.draw(st.integers(0, batch.rows))
    stop = data.draw(st.integers(start, batch.rows))
    answers = Answers(batch, batch.values()[start:stop], start, stop)
    assert [repr(one) for one in answers] == [repr(one) for one in records[start:stop]]
    assert (len(answers), answers.ids) == (stop - start, [r.id for r in records[start:stop]])


def test_numbers_that_came_as_half_as_many_bytes_are_logged_as_such():
    sent = np.array([[0.1, np.nan]], dtype=np.float32)
    batch = Batch(
        endpoint="e", plan=1, arms=("v1",), answerers=ARMS[:1], arrived=1, mirror=False, rows=1, prefix="p", first=1,
        matrix=sent.tobytes(), kind="<f4", outputs=np.array([1.0]).tobytes(), latencies=bytes(4),
    )  # fmt: skip
    assert batch.expand()[0].features == (float(sent[0, 0]), None)


@settings(deadline=None, max_examples=40)
@given(st.lists(batches(), min_size=2, max_size=4), st.data())
def test_of_batches_torn_anywhere_the_whole_ones_are_read(tmp_path_factory, drawn, data):
    folder = tmp_path_factory.mktemp("log")
    writer = SegmentWriter(folder, name="w")
    ends = [0]
    for batch, _ in drawn:
        writer.append(batches=[batch])
        ends.append(writer.bytes_written)
    writer.close()
    (path,) = folder.glob("*.seg")
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    batch_read = SegmentLog(folder).read({})
    whole = max(k for k in range(len(ends)) if ends[k] <= cut)
    expected = [record for _, records in drawn[:whole] for record in records]
    assert [repr(one) for one in batch_read.predictions] == [repr(one) for one in expected]
    assert bool(batch_read.torn) == (cut not in ends)


@pytest.mark.parametrize("rolls", [False, True])
def test_a_sync_brings_every_file_that_was_appended_to_and_their_names_to_the_disk(
    tmp_path, monkeypatch, rolls
):
    from keepwell.serving.log import segments

    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1 if rolls else 10**9)
    synced: list[str] = []
    for name in ("fdatasync", "fsync"):
        real = getattr(os, name)

        def spy(descriptor: int, real: Any = real) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            real(descriptor)

        monkeypatch.setattr(os, name, spy)
    writer = SegmentWriter(tmp_path / "log", name="w")
    batch = Batch(
        endpoint="e", plan=1, arms=("v1",), answerers=ARMS[:1], arrived=1, mirror=False, rows=1, prefix="p", first=1,
        outputs=bytes(8), latencies=bytes(4),
    )  # fmt: skip
    for _ in range(3):
        writer.append(batches=[batch])
    assert synced == [], "an append never waits for the disk"
    writer.sync()
    files = {path.name for path in (tmp_path / "log").iterdir()}
    assert len(files) == (3 if rolls else 1)
    assert set(synced) == files | {"log"}
    synced.clear()
    writer.append(batches=[batch])
    writer.sync()
    newest = max(path.name for path in (tmp_path / "log").iterdir())
    assert newest in synced
    assert ("log" in synced) == rolls, "a name is brought to the disk once"
    open_files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert sum(path.is_relative_to(tmp_path) for path in open_files) == 1, "full files are closed"
    writer.close()
