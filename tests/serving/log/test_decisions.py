"""Decisions with their outcomes: one row each, whatever part of the log is compacted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.log.test_compaction import outcome, prediction, read_by_all, write

from keepwell.core.clock import DAY, HOUR
from keepwell.core.errors import Corrupt, InvalidInput
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log import decisions
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.log.decisions import EARLY, read_decisions
from keepwell.serving.log.manifest import ManifestFile
from keepwell.serving.log.segments import SegmentWriter

DAYS = 4
ids = st.sampled_from("abc")
hours = st.integers(0, 24 * DAYS - 1).map(lambda h: h * HOUR)
predictions = st.builds(
    lambda identity, time, late, mirror, status, endpoint: prediction(
        identity, time=time, arrived=time + late, mirror=mirror, status=status, endpoint=endpoint
    ),
    ids, hours, st.integers(0, 5), st.booleans(), st.sampled_from(["ok", "error", "fallback"]), st.sampled_from("ef"),
)  # fmt: skip
outcomes = st.builds(
    lambda identity, time, value, late, endpoint: outcome(
        identity, time=time, value=value, arrived=time + late, endpoint=endpoint
    ),
    ids, hours, st.sampled_from([0.0, 1.0, math.nan]), st.integers(0, 5), st.sampled_from("ef"),
)  # fmt: skip


def plain(
    records: list[tuple[int, Any]], since: int, until: int, expires: int | None
) -> dict[str, tuple[int, float | None, int | None]]:
    """Join as the page says it, a decision at a time."""
    found: dict[str, tuple[int, float | None, int | None]] = {}
    for identity in "abc":
        own = [
            (r.status == "error", r.arrived, n, r)
            for n, r in records
            if isinstance(r, Prediction) and (r.id, r.endpoint, r.mirror) == (identity, "e", False)
        ]
        if not own:
            continue
        decision = min(own, key=lambda one: one[:3])[3]
        if not since <= decision.time < until:
            continue
        known = [
            (r.time, r.arrived, n, r.value)
            for n, r in records
            if isinstance(r, Outcome)
            and (r.id, r.endpoint) == (identity, "e")
            and not math.isnan(r.value)
            and r.time >= decision.time - EARLY
            and (expires is None or r.time < decision.time + expires)
        ]
        first = min(known) if known else None
        found[identity] = (decision.time, first[3] if first else None, first[0] if first else None)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(predictions | outcomes, max_size=6), min_size=1, max_size=3),
    st.integers(0, 2**3 - 1),
    hours,
    st.sampled_from([None, 0, HOUR, 30 * HOUR]),
)
def test_a_decision_is_one_row_with_the_outcome_that_counts_whatever_is_compacted(
    tmp_path_factory, drawn, compacted, since, expires
):
    folder = tmp_path_factory.mktemp("log")
    for n, records in enumerate(drawn):
        given_frames = [([r], []) if isinstance(r, Prediction) else ([], [r]) for r in records]
        write(folder, given_frames, name=f"w{n}")
    read = read_by_all(folder)[0]
    Compactor(folder).run([{k: v for k, v in read.items() if compacted >> int(k[1]) & 1}])
    until = since + DAY
    table = read_decisions(folder, "e", since, until, expires=expires)
    told = {
        row["id"]: (row["time"], row["outcome"], row["outcome_time"])
        for row in table.iter_rows(named=True)
    }
    assert len(told) == len(table)
    numbered = list(enumerate(r for records in drawn for r in records))
    assert told == plain(numbered, since, until, expires)


def test_an_outcome_that_comes_after_its_decision_was_compacted_is_joined_once(tmp_path):
    write(tmp_path, [([prediction("a"), prediction("b")], [])], name="w0")
    Compactor(tmp_path).run(read_by_all(tmp_path))
    later = [outcome("a", time=3 * DAY, value=0.0), outcome("a", time=2 * DAY), outcome("x")]
    write(tmp_path, [([], later), ([], later)], name="w1")
    for _ in range(2):
        table = read_decisions(tmp_path, "e", DAY, 2 * DAY)
        assert table.select("id", "outcome", "outcome_time", "defaulted").rows() == [
            ("a", 1.0, 2 * DAY, False),
            ("b", None, None, False),
        ]
        Compactor(tmp_path).run(read_by_all(tmp_path))
    assert list(tmp_path.glob("*.seg")) == []


def test_a_decision_without_an_outcome_gets_the_default_once_it_is_too_late_for_one(tmp_path):
    some = [prediction("a"), prediction("b"), prediction("c", time=DAY + HOUR)]
    write(tmp_path, [(some, [outcome("a", time=DAY + 2 * HOUR, value=7.0)])], name="w")

    def told(now: int) -> list[Any]:
        table = read_decisions(tmp_path, "e", 0, 9 * DAY, expires=3 * HOUR, default=-1.0, now=now)
        return table.select("id", "outcome", "defaulted").rows()

    assert told(DAY + 2 * HOUR) == [("a", 7.0, False), ("b", None, False), ("c", None, False)]
    assert told(DAY + 3 * HOUR) == [("a", 7.0, False), ("b", -1.0, True), ("c", None, False)]
    with pytest.raises(InvalidInput, match="expire"):
        read_decisions(tmp_path, "e", 0, DAY, default=0.0)


def test_a_feature_that_changes_its_type_is_told_as_json_and_others_keep_theirs(tmp_path):
    write(tmp_path, [([prediction("a", features=(1, 2.5, "x"))], [])], name="w0")
    Compactor(tmp_path).run(read_by_all(tmp_path))
    write(tmp_path, [([prediction("b", features=(0.5, 1.0, True, None))], [])], name="w1")
    table = read_decisions(tmp_path, "e", 0, 9 * DAY)
    assert table.select("f0", "f1", "f2", "f3").rows() == [
        (1.0, 2.5, '"x"', None),
        (0.5, 1.0, "true", None),
    ]


def test_a_damaged_part_is_refused_and_not_left_out(tmp_path):
    write(tmp_path, [([prediction("a")], [])], name="w")
    Compactor(tmp_path).run(read_by_all(tmp_path))
    (part,) = ManifestFile(tmp_path).read().parts
    (tmp_path / "compacted" / part.path).unlink()
    with pytest.raises(Corrupt, match="not as it was written"):
        read_decisions(tmp_path, "e", 0, 9 * DAY)
    assert read_decisions(tmp_path, "f", 0, 9 * DAY).is_empty()


def test_segments_that_are_compacted_while_they_are_read_count_once(tmp_path, monkeypatch):
    for n in range(3):
        write(tmp_path, [([prediction(f"{n}")], [outcome(f"{n}")])], name=f"w{n}")
    read = read_by_all(tmp_path)
    real = decisions._segment_tables
    begun: list[int] = []

    def compacting(path, endpoint):
        if path.name.startswith("w1") and not begun:
            begun.append(Compactor(tmp_path).run(read))
        yield from real(path, endpoint)

    monkeypatch.setattr(decisions, "_segment_tables", compacting)
    table = read_decisions(tmp_path, "e", 0, 9 * DAY)
    assert begun == [3]
    assert table.select("id", "outcome").rows() == [("0", 1.0), ("1", 1.0), ("2", 1.0)]


def test_what_a_writer_has_just_appended_is_there_too(tmp_path):
    writer = SegmentWriter(tmp_path, name="w")
    assert read_decisions(tmp_path, "e", 0, 9 * DAY).is_empty()
    writer.append([prediction("a")])
    assert read_decisions(tmp_path, "e", 0, 9 * DAY)["id"].to_list() == ["a"]
    writer.close()
