"""Promises of the studies: each bar of `make bench-stats` holds in a shorter run as well."""

import time

import pytest

from benchmarks.rows import Row, at_least, at_most, share_error, within
from benchmarks.stats import run_study, study_names


@pytest.mark.parametrize("name", study_names())
def test_the_bars_of_a_study_hold_in_its_shorter_run(name: str) -> None:
    started = time.process_time()
    rows, _ = run_study(name, quick=True)
    assert rows
    assert [row for row in rows if not row.ok] == []
    assert time.process_time() - started < 30, "a shortened study takes seconds"


def test_a_missed_bar_is_told_and_the_slack_of_a_shorter_run_is_said() -> None:
    assert not at_most("x", 0.051, 0.05, runs=2000, seed=1).ok
    assert not at_least("x", 0.94, 0.95, runs=2000, seed=1).ok
    assert not within("x", 0.98, 0.93, 0.97, runs=2000, seed=1).ok
    shorter = at_most("x", 0.06, 0.05, runs=100, seed=1, slack=share_error(0.05, 100))
    assert shorter == Row(
        name="x",
        value=0.06,
        bar="at most 0.05 (shorter run: 0.065 allowed)",
        ok=True,
        runs=100,
        seed=1,
    )
