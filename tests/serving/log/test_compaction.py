"""Compaction: what the log gives its readers stays the same to the record, wherever the process stops."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.core.clock import DAY
from keepwell.core.errors import Conflict, Corrupt
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log import compaction, manifest, parts, segments
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.log.decisions import read_decisions
from keepwell.serving.log.manifest import ManifestFile
from keepwell.serving.log.segments import SegmentLog, SegmentWriter


def prediction(identity: str, **other: Any) -> Prediction:
    given: dict[str, Any] = {
        "id": identity, "time": DAY, "arrived": DAY, "endpoint": "e", "unit": "u", "arms": ("a", "b"), "arm": "a",
        "propensity": 0.5, "mirror": False, "plan": 1, "version": 1, "artefact": "sha256:0",
        "features": (1.0, None, "x", True), "output": 0.25, "latency": 10, "status": "ok",
    }  # fmt: skip
    return Prediction(**(given | other))


def outcome(identity: str, **other: Any) -> Outcome:
    given: dict[str, Any] = {
        "id": identity,
        "time": DAY,
        "endpoint": "e",
        "value": 1.0,
        "arrived": 2,
    }
    return Outcome(**(given | other))


cells = (
    st.none()
    | st.floats()
    | st.sampled_from([0.0, -0.0, 5e-324, 2.0**53])
    | st.integers(-(2**63), 2**64 - 1)
    | st.booleans()
    | st.text()
)
outputs = st.none() | st.floats() | st.lists(st.floats(), max_size=3)
names = st.sampled_from(["e", "late/east", "ü = 1", ".."])
times = st.sampled_from([0, -1, DAY - 1, DAY, 3 * DAY]) | st.integers(-(10**15), 10**15)
predictions = st.builds(
    Prediction,
    id=st.text(max_size=3), time=times, arrived=times, endpoint=names, unit=st.text(max_size=2),
    arms=st.lists(st.text(max_size=2), max_size=2).map(tuple), arm=st.text(max_size=2), propensity=st.floats(0, 1),
    mirror=st.booleans(), plan=st.integers(0, 9), version=st.integers(1, 3), artefact=st.just("sha256:0"),
    features=st.lists(cells, max_size=3).map(tuple), output=outputs, latency=st.integers(0, 2**32 - 1),
    status=st.sampled_from(["ok", "fallback", "error", "refused"]), error=st.text(max_size=3),
    cohort=st.text(max_size=2), chosen=st.text(max_size=2), share=st.floats(0.001, 1),
)  # fmt: skip
outcomes = st.builds(
    Outcome,
    id=st.text(max_size=3),
    time=times,
    endpoint=names,
    value=st.floats(),
    arrived=times,
)
frames = st.lists(
    st.tuples(st.lists(predictions, max_size=3), st.lists(outcomes, max_size=2)), max_size=6
)


def everything(folder: Path, *, limit: int = 50_000) -> tuple[list[Any], list[Any]]:
    """Read all as a new reader does, in bites; records by their repr, so that NaN is like NaN."""
    log = SegmentLog(folder)
    cursor: dict[str, int] = {}
    found: tuple[list[str], list[str]] = ([], [])
    while True:
        batch = log.read(cursor, limit=limit)
        if not batch.predictions and not batch.outcomes:
            return found
        cursor = batch.cursor
        found[0].extend(map(said, batch.predictions))
        found[1].extend(map(said, batch.outcomes))


def said(record: Any) -> str:
    """Give all of a record as text; a whole number among decimals is the same as the decimal."""
    if not isinstance(record, Prediction):
        return repr(record)
    cells = [float(v) if type(v) is int and abs(v) <= 2**53 else v for v in record.features]
    return f"{record.id!r} {record} {cells}".replace(f"features={record.features!r}", "")


def read_by_all(folder: Path) -> list[dict[str, int]]:
    return [SegmentLog(folder).read({}, limit=10**9).cursor]


def write(folder: Path, given: Sequence[tuple[list[Any], list[Any]]], *, name: str) -> None:
    writer = SegmentWriter(folder, name=name)
    for some, known in given:
        if some or known:
            writer.append(some, known)
    writer.close()


@settings(deadline=None, max_examples=40)
@given(st.lists(frames, min_size=1, max_size=3), st.integers(1, 7), st.data())
def test_every_record_is_read_once_and_the_same_before_and_after(
    tmp_path_factory, drawn, limit, data
):
    folder = tmp_path_factory.mktemp("log")
    for n, given_frames in enumerate(drawn):
        write(folder, given_frames, name=f"w{n}")
    before = everything(folder)
    middle = SegmentLog(folder).read({}, limit=limit)
    rest = SegmentLog(folder).read(middle.cursor)
    full = list(folder.glob("*.seg"))
    some = data.draw(st.lists(st.sampled_from(full), unique=True)) if full else []
    known = read_by_all(folder)[0]
    Compactor(folder).run([{path.name: known[path.name] for path in some}])
    assert {p.name for p in folder.glob("*.seg")} == {p.name for p in full} - {p.name for p in some}
    assert everything(folder, limit=limit) == before, "records in, records out, in their order"
    again = SegmentLog(folder).read({}, limit=limit)
    assert again.cursor == middle.cursor, "a bite ends at the same byte"
    after = SegmentLog(folder).read(middle.cursor)
    assert [*map(said, after.predictions)] == [*map(said, rest.predictions)]
    assert [*map(said, after.outcomes)] == [*map(said, rest.outcomes)]
    assert after.cursor == rest.cursor
    Compactor(folder).run([known])
    assert list(folder.glob("*.seg")) == []
    assert everything(folder, limit=limit) == before


class Stopped(BaseException):
    """Stands for the end of the process: nothing in the code catches it."""


STEPS = ("open", "write", "fsync", "replace", "unlink")


def stopping_at(step: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> Callable[[], int]:
    """Let the process end at a step that a crash may fall on, before it or just after it."""
    count = 0
    for name in STEPS:
        real = getattr(os, name)

        def stepped(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step and not after:
                raise Stopped
            result = real(*args, **kwargs)
            if count == step:
                raise Stopped
            return result

        monkeypatch.setattr(os, name, stepped)
    return lambda: count


def three_segments(folder: Path) -> None:
    for n in range(3):
        write(
            folder,
            [
                ([prediction(f"{n}-{k}", time=k * DAY) for k in range(2)], [outcome(f"{n}-0")]),
                ([prediction("again", endpoint="f")], []),
            ],
            name=f"w{n}",
        )


def test_a_process_that_stops_at_any_step_leaves_every_record_in_force_once(tmp_path):
    three_segments(tmp_path / "whole")
    before = everything(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        steps = stopping_at(0, patch, after=False)
        Compactor(tmp_path / "whole").run(read_by_all(tmp_path / "whole"))
        most = steps()
    assert most > 40, "files, folders, the manifest and the segments all take steps"
    left_as = set()
    for step in range(1, most + 1):
        for after in (False, True):
            folder = tmp_path / f"{step}-{after}"
            three_segments(folder)
            read = read_by_all(folder)
            reader = SegmentLog(folder)
            start = reader.read({}, limit=1).cursor
            with pytest.MonkeyPatch.context() as patch:
                stopping_at(step, patch, after=after)
                with pytest.raises(Stopped):
                    Compactor(folder).run(read)
            assert everything(folder) == before, f"step {step}"
            found = reader.read(start)
            assert len(found.predictions) == 9 - 2, "also for a reader that was under way"
            left_as.add(
                (len(list(folder.glob("*.seg"))), len(ManifestFile(folder).read().segments))
            )
            Compactor(folder).run(read)
            assert everything(folder) == before
            assert list(folder.glob("*.seg")) == []
            on_disk = {
                str(p.relative_to(folder / "compacted"))
                for p in (folder / "compacted").rglob("*.*")
                if p.is_file()
            }
            named = {part.path for part in ManifestFile(folder).read().parts}
            assert on_disk == named | {"manifest.json"}, "and nothing is left over"
    assert left_as == {(3, 0), (3, 3), (2, 3), (1, 3), (0, 3)}


def test_a_disk_that_refuses_leaves_the_segments_in_force(tmp_path, monkeypatch):
    three_segments(tmp_path)
    before, read = everything(tmp_path), read_by_all(tmp_path)
    real = os.write

    def full(descriptor: int, content: Any) -> int:
        if b"PAR1" in bytes(content[:4]):
            raise OSError(28, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        Compactor(tmp_path).run(read)
    assert len(list(tmp_path.glob("*.seg"))) == 3
    assert everything(tmp_path) == before


def test_what_a_writer_still_writes_to_or_the_watcher_still_needs_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 200)
    writer = SegmentWriter(tmp_path, name="w")
    for n in range(6):
        writer.append([prediction(f"{n}")])
    writer.sync()
    newest = max(path.name for path in tmp_path.glob("*.seg"))
    read = read_by_all(tmp_path)[0]
    oldest = min(read)
    assert Compactor(tmp_path).run([{oldest: read[oldest] - 1}, {}]) == 0
    assert Compactor(tmp_path).run([read, {}]) == len(read) - 1
    assert [path.name for path in tmp_path.glob("*.seg")] == [newest]
    writer.append([prediction("6")])
    assert Compactor(tmp_path).run([SegmentLog(tmp_path).read({}).cursor]) == 0
    writer.close()
    assert Compactor(tmp_path).run([SegmentLog(tmp_path).read({}).cursor]) == 2
    assert [p.id for p in SegmentLog(tmp_path).read({}).predictions] == [f"{n}" for n in range(7)]


def test_the_segment_of_a_process_that_was_killed_is_compacted_and_no_earlier(tmp_path):
    code = (
        "import sys; from pathlib import Path; from keepwell.serving.log.segments import SegmentWriter\n"
        "from tests.serving.log.test_compaction import prediction\n"
        "writer = SegmentWriter(Path(sys.argv[1]), name='w'); writer.append([prediction('a')])\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        read = read_by_all(tmp_path)
        assert Compactor(tmp_path).run(read) == 0
    finally:
        process.kill()
        process.communicate()
    assert Compactor(tmp_path).run(read) == 1
    assert [p.id for p in SegmentLog(tmp_path).read({}).predictions] == ["a"]


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_segment_with_a_torn_tail_stays_and_is_told(tmp_path, harm):
    write(tmp_path, [([prediction("a")], []), ([prediction("b")], [])], name="w")
    (path,) = tmp_path.glob("*.seg")
    size = path.stat().st_size
    if harm == "cut":
        os.truncate(path, size - 3)
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    write(tmp_path, [([prediction("c")], [])], name="x")
    compactor = Compactor(tmp_path)
    assert compactor.run(read_by_all(tmp_path)) == 1
    # Damage that came after the watcher had read it is found as well.
    assert compactor.run([{path.name: size}]) == 0
    assert path.exists()
    batch = SegmentLog(tmp_path).read({})
    assert [p.id for p in batch.predictions] == ["a", "c"]
    assert batch.torn


def test_a_part_that_was_changed_is_told_and_nothing_false_is_read(tmp_path):
    three_segments(tmp_path)
    Compactor(tmp_path).run(read_by_all(tmp_path))
    part = next(p for p in ManifestFile(tmp_path).read().parts if p.endpoint == "f")
    path = tmp_path / "compacted" / part.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    batch = SegmentLog(tmp_path).read({})
    assert {p.endpoint for p in batch.predictions} == {"e"}
    assert len(batch.torn) == 3
    assert all(part.path in told for told in batch.torn)


def test_two_compactors_never_work_on_one_log(tmp_path):
    three_segments(tmp_path)
    (tmp_path / "compacted").mkdir()
    with (
        compaction._locked(tmp_path / "compacted" / "lock", os.O_CREAT) as held,
        pytest.raises(Conflict),
    ):
        assert held
        Compactor(tmp_path).run(read_by_all(tmp_path))
    assert Compactor(tmp_path).run(read_by_all(tmp_path)) == 3


def test_a_round_is_bounded_and_stops_when_it_is_told_to(tmp_path, monkeypatch):
    three_segments(tmp_path)
    read = read_by_all(tmp_path)
    monkeypatch.setattr(compaction, "CHUNK", 1)
    assert Compactor(tmp_path).run(read, stopping=lambda: True) == 0
    assert len(list(tmp_path.glob("*.seg"))) == 3
    monkeypatch.setattr(compaction, "ROUND_BYTES", 1)
    assert [Compactor(tmp_path).run(read) for _ in range(4)] == [1, 1, 1, 0]


def test_a_reader_under_way_beside_compaction_reads_everything_once(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "ROUND_BYTES", 1)
    for n in range(40):
        write(tmp_path, [([prediction(f"{n}-{k}") for k in range(5)], [])], name=f"w{n:02d}")
    read = read_by_all(tmp_path)
    seen: list[str] = []
    going = threading.Event()

    def follow() -> None:
        log = SegmentLog(tmp_path)
        cursor: dict[str, int] = {}
        going.set()
        while len(seen) < 200:
            batch = log.read(cursor, limit=3)
            cursor = batch.cursor
            seen.extend(p.id for p in batch.predictions)
            if not batch.predictions and len(ManifestFile(tmp_path).read().segments) == 40:
                return

    reader = threading.Thread(target=follow)
    reader.start()
    going.wait()
    while Compactor(tmp_path).run(read):
        pass
    reader.join(timeout=60)
    assert sorted(seen) == sorted(f"{n}-{k}" for n in range(40) for k in range(5))


def test_parts_are_parquet_by_endpoint_and_day_that_other_tools_read(tmp_path):
    three_segments(tmp_path)
    Compactor(tmp_path).run(read_by_all(tmp_path))
    found = pl.read_parquet(
        tmp_path / "compacted" / "**" / "part-predictions-*.parquet", hive_partitioning=True
    )
    assert sorted(found["endpoint"].unique()) == ["e", "f"]
    assert found.schema["f0"] == pl.Float64
    assert found.schema["f2"] == pl.String
    assert found.schema["f3"] == pl.Boolean
    assert manifest.day_of(0) == "1970-01-01"
    assert (tmp_path / "compacted" / "endpoint=e" / "day=1970-01-02").is_dir()


def test_parts_of_an_earlier_version_are_read_as_wholly_logged_and_without_cohorts(
    tmp_path, monkeypatch
):
    write(tmp_path, [([prediction("a"), prediction("b")], [])], name="w")
    before = everything(tmp_path)
    with monkeypatch.context() as patch:
        patch.delitem(parts._FIELDS, "cohort")
        patch.delitem(parts._FIELDS, "share")
        assert Compactor(tmp_path).run(read_by_all(tmp_path)) == 1
    (path,) = tmp_path.rglob("part-*")
    assert "cohort" not in pl.read_parquet(path).columns
    assert everything(tmp_path) == before
    write(tmp_path, [([prediction("c", cohort="x=1", share=0.5)], [])], name="x")
    table = read_decisions(tmp_path, "e", 0, 3 * DAY)
    assert table.get_column("cohort").to_list() == ["", "", "x=1"]
    assert table.get_column("share").to_list() == [1.0, 1.0, 0.5]


def test_a_table_that_parquet_does_not_give_back_removes_nothing(tmp_path, monkeypatch):
    three_segments(tmp_path)
    read = read_by_all(tmp_path)
    real = pl.read_parquet
    monkeypatch.setattr(pl, "read_parquet", lambda *given: real(*given).reverse())
    with pytest.raises(Corrupt, match="other than it went in"):
        Compactor(tmp_path).run(read)
    assert len(list(tmp_path.glob("*.seg"))) == 3
