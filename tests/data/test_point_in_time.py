"""No decision sees what was not known at its moment, held against the plainest way to compute it."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.flights_like import at, micros, orders, project, readings

from keepwell.core.clock import HOUR
from keepwell.core.errors import InvalidInput
from keepwell.data.decisions import ID, LABEL, LABEL_TIME, decision_rows
from keepwell.data.features import TIME, join_features

hours = st.integers(0, 12).map(lambda n: n / 2)
shops = st.sampled_from(["a", "b", None])


def naive(decisions: pl.DataFrame, rows: pl.DataFrame, ttl: int | None) -> list[float | None]:
    """Look through all rows for each decision: the last one given among the newest known in time."""
    answers: list[float | None] = []
    for decision in decisions.iter_rows(named=True):
        best, value = None, None
        for row in rows.iter_rows(named=True):
            known = row["published"]
            if known is None or row["shop"] is None or row["shop"] != decision["shop"]:
                continue
            known = round((known - at(0)).total_seconds() * 1e6) + micros(0)
            age = decision[TIME] - known
            if age >= 0 and (ttl is None or age <= ttl) and (best is None or known >= best):
                best, value = known, row["crowd"]
        answers.append(value)
    return answers


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(hours, shops), max_size=12),
    st.lists(
        st.tuples(st.one_of(st.none(), hours), shops, st.one_of(st.none(), st.floats(-9, 9))),
        max_size=15,
    ),
    st.sampled_from([None, "1h", "3h"]),
)
def test_the_join_equals_looking_through_all_rows(wanted, known, ttl):
    frames = {
        "orders": orders(1),
        "readings": pl.DataFrame(
            {
                "shop": [shop for _, shop, _ in known],
                "seen": [at(0)] * len(known),
                "published": [None if hour is None else at(hour) for hour, _, _ in known],
                "crowd": [value for _, _, value in known],
            },
            schema={
                "shop": pl.String,
                "seen": pl.Datetime("us"),
                "published": pl.Datetime("us"),
                "crowd": pl.Float64,
            },
        ),
    }
    decisions = pl.DataFrame(
        {
            TIME: [micros(hour) for hour, _ in wanted],
            "shop": [shop for _, shop in wanted],
            "price": [1.0] * len(wanted),
        },
        schema={TIME: pl.Int64, "shop": pl.String, "price": pl.Float64},
    )
    made = project(frames, ttl=ttl)
    joined = join_features(made, made.model("returns"), decisions, sources=frames)
    assert joined.columns == ["price", "double_price", "crowd"]
    limit = None if ttl is None else int(ttl[0]) * HOUR
    assert joined.get_column("crowd").to_list() == naive(decisions, frames["readings"], limit)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200))
def test_as_of_nothing_that_became_known_later_is_there(as_of_hour):
    frames = {"orders": orders(), "readings": readings()}
    made = project(frames)
    as_of = micros(as_of_hour)
    rows = decision_rows(made, "returns", since=None, until=micros(120), as_of=as_of)
    assert rows.height == 120
    known = rows.filter(pl.col(LABEL).is_not_null())
    assert known.height == max(0, min(120, as_of_hour - 48 + 1))
    assert (known.get_column(LABEL_TIME) <= as_of).all()
    # What comes later may change at will: nothing of it may show.
    later = pl.col("published") > at(as_of_hour)
    frames["readings"] = frames["readings"].with_columns(
        pl.when(later).then(-1.0).otherwise("crowd").alias("crowd")
    )
    unknown = pl.col("closed") > at(as_of_hour)
    frames["orders"] = frames["orders"].with_columns(
        pl.when(unknown).then(9.0).otherwise("returned").alias("returned")
    )
    assert decision_rows(made, "returns", since=None, until=micros(120), as_of=as_of).equals(rows)


def test_decisions_come_in_order_of_time_within_their_window():
    frames = {"orders": orders().sample(fraction=1.0, shuffle=True, seed=1), "readings": readings()}
    rows = decision_rows(project(frames), "returns", since=micros(10), until=micros(20))
    assert rows.get_column(TIME).to_list() == [micros(n) for n in range(10, 20)]
    assert rows.get_column(ID).to_list() == [f"o{n}" for n in range(10, 20)]
    assert rows.columns[5:] == ["__slice_shop", "price", "double_price", "crowd"]


def test_the_order_of_a_sources_rows_changes_nothing():
    made = project({"orders": orders(), "readings": readings()})
    again = project({"orders": orders().reverse(), "readings": readings().reverse()})
    window: dict[str, Any] = {"since": None, "until": micros(120)}
    assert decision_rows(made, "returns", **window).equals(
        decision_rows(again, "returns", **window)
    )


def test_decisions_without_a_key_keep_ids_that_no_window_changes():
    frames = {"orders": orders(), "readings": readings()}
    made = project(frames, key=())  # type: ignore[arg-type]
    whole = decision_rows(made, "returns", since=None, until=micros(120)).get_column(ID).to_list()
    assert len(set(whole)) == 120
    assert (
        decision_rows(made, "returns", since=micros(50), until=micros(60)).get_column(ID).to_list()
        == whole[50:60]
    )


def test_a_missing_feature_names_the_nearest():
    frames = {"orders": orders().rename({"price": "prize"}), "readings": readings()}
    with pytest.raises(InvalidInput, match=r"prices.*test_|price"):
        decision_rows(project(frames), "returns", since=None, until=micros(120))


def test_a_view_that_raises_names_the_users_line():
    frames = {"orders": orders(), "readings": readings().drop("crowd")}
    with pytest.raises(InvalidInput, match=r"crowding.*flights_like\.py:\d+"):
        decision_rows(project(frames), "returns", since=None, until=micros(120))


def test_missing_values_stay_missing():
    rows = decision_rows(
        project({"orders": orders(), "readings": readings().head(0)}),
        "returns",
        since=None,
        until=micros(9),
    )
    assert rows.get_column("crowd").to_list() == [None] * 9
    assert not any(math.isnan(v) for v in rows.get_column("price"))
