"""Columns of the log say what its records say, whatever they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.log.test_batches import batches
from tests.serving.log.test_compaction import cells, outcomes, predictions, read_by_all

from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.serving.log.batches import STATUSES
from keepwell.serving.log.columns import (
    ColumnBatch,
    Columns,
    Wanted,
    columns_of_batches,
    columns_of_records,
)
from keepwell.serving.log.compaction import Compactor
from keepwell.serving.log.segments import SegmentLog, SegmentWriter

alike = st.lists(cells, min_size=2, max_size=2).map(tuple)
"""Features of one width, as a signature gives them."""


def rows_of(part: Columns) -> list[str]:
    """Give each row as text, its arms by name, so that NaN is like NaN."""
    return [
        repr(
            (
                part.ids[k],
                part.units[k],
                int(part.time[k]),
                int(part.arrived[k]),
                part.names[part.arm[k]],
                part.names[part.by[k]],
                int(part.plan[k]),
                STATUSES[part.status[k]],
                bool(part.mirror[k]),
                bool(part.placed[k]),
                float(part.propensity[k]),
                float(part.latency[k]),
                float(part.output[k]),
                part.features[k].tolist(),
                _cell(part.group[k]) if part.group else None,
            )
        )
        for k in range(len(part))
    ]


def _cell(value: Any) -> Any:
    # Whole numbers among decimals become decimals in Parquet, and NaN in a batch is a missing value.
    if isinstance(value, float) and np.isnan(value):
        return None
    return float(value) if type(value) is int and abs(value) <= 2**53 else value


def said_by(batch: ColumnBatch) -> list[str]:
    return [row for part in batch.parts for row in rows_of(part)]


@settings(deadline=None, max_examples=80)
@given(st.lists(batches(), max_size=4), st.integers(2, 4), st.sampled_from(["e", "other"]))
def test_columns_of_batches_are_those_of_their_records(drawn, since_plan, endpoint):
    wanted = Wanted(endpoint=endpoint, since_plan=since_plan, fields=(0, 2), group=1)
    made = columns_of_batches([batch for batch, _ in drawn], wanted)
    records = [record for _, each in drawn for record in each]
    assert rows_of(made) == rows_of(columns_of_records(records, wanted))
    assert set(made.names) == {made.names[k] for k in (*made.arm, *made.by)}
    assert bool(len(made)) == (bool(drawn) and since_plan <= 3 and endpoint == "e")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.lists(predictions, max_size=3), st.lists(outcomes, max_size=2), st.none() | batches()
        ),
        max_size=6,
    ),
    st.integers(1, 5),
    st.data(),
)
def test_columns_that_are_read_are_those_of_the_records_before_compaction_and_after(
    tmp_path_factory, drawn, limit, data
):
    folder = tmp_path_factory.mktemp("log")
    writer = SegmentWriter(folder, name="w")
    for some, known, packed in drawn:
        some_alike = [msgspec.structs.replace(p, features=data.draw(alike)) for p in some]
        if some or known or packed:
            writer.append(some_alike, known, [packed[0]] if packed else [])
    writer.close()
    log = SegmentLog(folder)
    everything = log.read({}, limit=10**9)
    endpoint = data.draw(
        st.sampled_from(sorted({r.endpoint for r in everything.predictions} | {"e"}))
    )
    wanted = Wanted(endpoint=endpoint, since_plan=2, fields=(1, 0), group=0)
    expected = rows_of(columns_of_records(everything.predictions, wanted))
    came = [repr(each) for each in everything.outcomes if each.endpoint == endpoint]
    for _ in range(2):
        whole = SegmentLog(folder).read_columns({}, wanted=wanted)
        assert (said_by(whole), [repr(o) for o in whole.outcomes]) == (expected, came)
        assert whole.cursor == everything.cursor
        bite = log.read_columns({}, wanted=wanted, limit=limit)
        rest = log.read_columns(bite.cursor, wanted=wanted)
        assert [*said_by(bite), *said_by(rest)] == expected
        again = log.read_columns({}, wanted=wanted, until=bite.cursor)
        assert said_by(again) == said_by(bite)
        Compactor(folder).run(read_by_all(folder))


def test_what_stands_behind_a_torn_place_is_not_read(tmp_path: Path):
    writer = SegmentWriter(tmp_path, name="w")
    ends = []
    for n in range(3):
        writer.append([], [Outcome(id=f"{n}", endpoint="e", time=n, value=1.0)])
        ends.append(writer.bytes_written)
    writer.close()
    (path,) = tmp_path.glob("*.seg")
    content = bytearray(path.read_bytes())
    content[ends[1] - 1] ^= 1
    path.write_bytes(content)
    found = SegmentLog(tmp_path).read_columns({}, wanted=Wanted(endpoint="e"))
    assert [o.id for o in found.outcomes] == ["0"]
    assert found.cursor == {path.name: ends[0]}
    assert "checksum" in found.torn[0]


def test_answers_of_another_endpoint_are_passed_over_and_not_held(tmp_path: Path):
    base = Prediction(
        id="a", time=1, arrived=1, endpoint="other", unit="u", arms=("v1",), arm="v1", propensity=1.0, mirror=False,
        plan=1, version=1, artefact="sha256:0", features=(), output=1.0, latency=5, status="ok",
    )  # fmt: skip
    writer = SegmentWriter(tmp_path, name="w")
    writer.append([base, msgspec.structs.replace(base, id="b", endpoint="e")])
    writer.append([msgspec.structs.replace(base, id="c")])
    writer.close()
    log = SegmentLog(tmp_path)
    found = log.read_columns({}, wanted=Wanted(endpoint="e"))
    assert [list(part.ids) for part in found.parts] == [["b"]]
    assert found.cursor == log.read({}).cursor
