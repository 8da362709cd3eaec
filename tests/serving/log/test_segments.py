"""The prediction log on disk: what was appended is read, and what was cut off is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.core.errors import Unavailable
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log import segments
from keepwell.serving.log.segments import SegmentLog, SegmentWriter


def prediction(identity: str) -> Prediction:
    return Prediction(
        id=identity, time=1, arrived=2, endpoint="e", unit="u", arms=("a", "b"), arm="a", propensity=0.5, mirror=False,
        plan=1, version=1, artefact="sha256:0", features=(1.0, None, "x", True), output=0.25, latency=10, status="ok",
    )  # fmt: skip


def outcome(identity: str) -> Outcome:
    return Outcome(id=identity, time=1, endpoint="e", value=1.0, arrived=2)


def test_what_was_appended_is_read_in_order_and_a_cursor_goes_on(tmp_path):
    writer = SegmentWriter(tmp_path, name="w")
    log = SegmentLog(tmp_path)
    assert log.read({}).predictions == ()
    writer.append([prediction("a"), prediction("b")], [outcome("a")])
    first = log.read({})
    assert [p.id for p in first.predictions] == ["a", "b"]
    assert first.predictions[0] == prediction("a")
    assert first.outcomes == (outcome("a"),)
    writer.append([prediction("c")])
    writer.close()
    second = log.read(first.cursor)
    assert ([p.id for p in second.predictions], second.outcomes) == (["c"], ())
    assert log.read(second.cursor).predictions == ()


def test_a_limit_leaves_the_rest_for_the_next_read(tmp_path):
    writer = SegmentWriter(tmp_path, name="w")
    for n in range(10):
        writer.append([prediction(f"{n}")])
    cursor: dict[str, int] = {}
    seen = []
    while True:
        batch = SegmentLog(tmp_path).read(cursor, limit=3)
        if not batch.predictions:
            break
        seen.append(len(batch.predictions))
        cursor = batch.cursor
    assert seen == [3, 3, 3, 1]


def test_full_segments_are_followed_by_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 200)
    writer = SegmentWriter(tmp_path, name="w")
    for n in range(9):
        writer.append([prediction(f"{n}")])
    writer.close()
    assert len(list(tmp_path.glob("*.seg"))) >= 3
    assert [p.id for p in SegmentLog(tmp_path).read({}).predictions] == [f"{n}" for n in range(9)]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_tail_torn_anywhere_is_told_and_all_before_it_is_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    writer = SegmentWriter(folder, name="w")
    ends = [0]
    for n in range(4):
        writer.append([prediction(f"{n}")])
        ends.append(writer.bytes_written)
    writer.close()
    (path,) = folder.glob("*.seg")
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    batch = SegmentLog(folder).read({})
    whole = max(n for n in range(5) if ends[n] <= cut)
    assert [p.id for p in batch.predictions] == [f"{n}" for n in range(whole)]
    assert bool(batch.torn) == (cut not in ends)
    assert batch.cursor.get(path.name, 0) == ends[whole]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_flipped_byte_is_told_and_nothing_false_is_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    writer = SegmentWriter(folder, name="w")
    for n in range(3):
        writer.append([prediction(f"{n}")])
    writer.close()
    (path,) = folder.glob("*.seg")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    batch = SegmentLog(folder).read({})
    assert batch.torn
    assert list(batch.predictions) == [prediction(f"{n}") for n in range(len(batch.predictions))]
    assert len(batch.predictions) < 3


def test_a_writer_that_meets_a_limit_keeps_the_frames_whole_and_goes_on_afterwards(tmp_path):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = _meet_the_limit(tmp_path)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    batch = SegmentLog(tmp_path).read({})
    assert ([p.id for p in batch.predictions], batch.torn) == (["before", "after"], ())


def _meet_the_limit(folder: Path) -> int:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = SegmentWriter(folder, name="w")
    writer.append([prediction("before")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.bytes_written + 50, resource.RLIM_INFINITY))
    for _ in range(3):
        try:
            writer.append([prediction("never")])
        except Unavailable:
            continue
        return 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.append([prediction("after")])
    writer.close()
    return 0


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="cannot be written"):
        SegmentWriter(tmp_path / "file" / "log", name="w").append([prediction("a")])
