"""The filter language reads what it should, refuses the rest, and means the same in memory and in SQL."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keepwell.adapters.tracking.sql import SqlTracking, open_tracking
from keepwell.core.errors import InvalidInput
from keepwell.core.filters import Comparison, holds, like, read_filter, read_order
from keepwell.core.records.tracking import Metric, RunBatch

KEYS = st.sampled_from(["a", "b c", "d.e", "ü", "x-y/z"])
TEXTS = st.sampled_from(["", "tree", "Tree", "it's", "50%", "a_b", "*?[x]", "ünder", "x" * 150])
NUMBERS = st.sampled_from([-1.5, 0.0, 0.5, 2.0, 1e-9, 1e300])
QUOTED = TEXTS.map(lambda text: "'" + text.replace("'", "''") + "'")
TEXT_OPERATORS = st.sampled_from(["=", "!=", "LIKE", "ILIKE"])
SIGNS = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])


def read_back(comparison: Comparison) -> Comparison:
    value = comparison.value
    written = repr(value) if isinstance(value, float) else "'" + str(value).replace("'", "''") + "'"
    return read_filter(f"{comparison.entity}s.`{comparison.key}` {comparison.operator} {written}")[
        0
    ]


@given(KEYS, SIGNS, NUMBERS)
@settings(deadline=None)
def test_what_is_written_is_read_back_for_metrics(key: str, sign: str, value: float) -> None:
    comparison = Comparison("metric", key, sign, value)
    assert read_back(comparison) == comparison


@given(KEYS, TEXT_OPERATORS, TEXTS)
@settings(deadline=None)
def test_what_is_written_is_read_back_for_params(key: str, operator: str, value: str) -> None:
    comparison = Comparison("param", key, operator, value)
    assert read_back(comparison) == comparison


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_is_read_or_refused_as_invalid_input(text: str) -> None:
    for read in (read_filter, read_order):
        with contextlib.suppress(InvalidInput):
            read(text)


@pytest.mark.parametrize(
    "text",
    [
        "metrics.score >>> 2",
        "a = 1 OR b = 2",
        "a",
        "= 3",
        "a = 'open",
        "a IN ('x'",
        "a IN ()",
        "a = 1 AND",
        "a = 1 b = 2",
        "x; DROP TABLE runs",
        "name = 'a'" + " AND name = 'a'" * 100,
        "name = '" + "x" * 20_001 + "'",
    ],
)
def test_a_malformed_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_filter(text)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [("a%", "abc", True), ("a_c", "abc", True), ("a_c", "ac", False), ("A%", "abc", False)],
)
def test_like_takes_percent_and_underscore(pattern: str, text: str, fits: bool) -> None:
    assert like(pattern, text, fold=False) is fits


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[SqlTracking, str]:
    tracking = open_tracking(f"sqlite:///{tmp_path_factory.mktemp('filters')}/t.db")
    tracking.create_tables()
    experiment = tracking.experiment("e", now=0).id
    values = ["", "tree", "Tree", "it's", "50%", "a_b", "*?[x]", "ünder", "x" * 150, "x" * 151]
    for number, value in enumerate(values):
        run = tracking.start_run(experiment, name=value, now=number)
        metrics = (Metric(key="m", value=[0.0, 0.5, -1.5, float("nan")][number % 4], time=0),)
        tracking.log(RunBatch(run=run.id, params={"p": value}, metrics=metrics))
    tracking.start_run(experiment, now=99)
    return tracking, experiment


@given(TEXT_OPERATORS, QUOTED)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sql_finds_what_the_comparison_in_memory_finds(
    filled: tuple[SqlTracking, str], operator: str, quoted: str
) -> None:
    tracking, experiment = filled
    text = f"params.p {operator} {quoted}"
    condition = read_filter(text)[0]
    every = [run for run in tracking.search_runs([experiment]).runs if "p" in run.params]
    found = {run.id for run in tracking.search_runs([experiment], filter=text).runs}
    assert found == {run.id for run in every if holds(condition, run.params["p"])}


@given(SIGNS, NUMBERS)
@settings(deadline=None)
def test_sql_compares_metrics_and_never_finds_what_is_not_a_number(
    filled: tuple[SqlTracking, str], sign: str, value: float
) -> None:
    tracking, experiment = filled
    text = f"metrics.m {sign} {value!r}"
    condition = read_filter(text)[0]
    every = tracking.search_runs([experiment]).runs
    values = {run.id: run.metrics[0].value for run in every if run.metrics}
    found = {run.id for run in tracking.search_runs([experiment], filter=text).runs}
    assert found == {run for run, v in values.items() if not math.isnan(v) and holds(condition, v)}
