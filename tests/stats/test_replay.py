"""Promises of replay: a verdict is a function of what it is given, bit for bit."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keepwell.stats
from keepwell.stats import rate_comparison, sample_ratio
from keepwell.stats.difference_sequence import DifferenceSequence
from keepwell.stats.group_sequential import GroupSequentialTest
from keepwell.stats.guardrail import Guardrail
from keepwell.stats.outcome_comparison import OutcomeComparison
from keepwell.stats.rate_comparison import RateComparison
from keepwell.stats.rate_limit import RateLimitTest
from keepwell.stats.sample_ratio import SampleRatioTest

SOURCES = sorted(Path(keepwell.stats.__file__).parent.rglob("*.py"))
# What makes a generator, or draws from numpy's own.
GLOBAL = {f"np.random.{name}" for name in dir(np.random)}
FORBIDDEN = {"time", "datetime", "random", "secrets", "uuid", "os"}


def _hidden_inputs(source: str) -> list[str]:
    """What a module reads besides its arguments: clocks, and generators without a seed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "np.random.default_rng" and node.args:
                continue  # from a seed that it was given
            if called in GLOBAL:
                found.append(called)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_reads_a_clock_or_makes_its_own_randomness(path: Path) -> None:
    assert _hidden_inputs(path.read_text()) == []


def test_a_module_that_did_would_be_found() -> None:
    source = (
        "import time\nx = np.random.default_rng(), np.random.normal()\nnp.random.default_rng(1)"
    )
    assert sorted(_hidden_inputs(source)) == ["np.random.default_rng", "np.random.normal", "time"]


def _history() -> list[tuple[Any, list[dict[str, Any]]]]:
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(2, 40)) for _ in range(4)]
    arms = [{"treatment": a, "control": b} for a, b in rows]
    events = rng.integers(0, 9, size=(4, 2)).tolist()
    return [
        (DifferenceSequence(alpha=0.05, tuned_for=100), arms),
        (Guardrail(name="m", worse="higher", margin=0.1, alpha=0.05, tuned_for=100), arms),
        (
            RateComparison(alpha=0.05),
            [
                {"treatment_events": a, "control_events": b, "treatment_share": 0.1 * (a + 1)}
                for a, b in events
            ],
        ),
        (RateLimitTest(limit=0.1, alpha=0.05), [{"events": a, "trials": 20} for a, _ in events]),
        (
            SampleRatioTest(shares=(0.5, 0.5), alpha=0.05),
            [{"counts": pair} for pair in events],
        ),
        (
            OutcomeComparison(alpha=0.05, rate=0.1, effect=0.05),
            [
                {
                    "treatment_events": a,
                    "treatment_units": 20,
                    "control_events": b,
                    "control_units": 20,
                }
                for a, b in events
            ],
        ),
    ]


@pytest.mark.parametrize("case", _history(), ids=lambda case: type(case[0]).__name__)
def test_the_same_looks_give_the_same_state_and_leave_the_start_alone(case) -> None:
    start, looks = case
    kept = replace(start)
    states = []
    for _ in range(2):
        state = start
        for look in looks:
            state = state.update(**look)
        states.append(state)
    assert states[0] == states[1]
    assert start == kept
    assert states[0] != start


def test_planned_looks_replay_too() -> None:
    once, again = (
        GroupSequentialTest(alpha=0.05).look(information=0.2, z=0.3).look(information=0.71, z=1.1)
        for _ in range(2)
    )
    assert once == again


def test_evidence_of_many_counts_is_that_kept_look_by_look() -> None:
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 30, size=(20, 2))
    rates = RateComparison(alpha=0.05, side="different")
    shares = SampleRatioTest(shares=(0.4, 0.6), alpha=0.05, concentration=300)
    totals = counts.cumsum(axis=0)
    by_array = rate_comparison.log_evidence(
        totals[:, 0], totals[:, 1], treatment_share=0.3, side="different"
    )
    of_shares = sample_ratio.log_evidence(totals, shares=(0.4, 0.6), concentration=300)
    for place, (a, b) in enumerate(counts.tolist()):
        rates = rates.update(treatment_events=a, control_events=b, treatment_share=0.3)
        shares = shares.update([a, b])
        assert rates.log_evidence == pytest.approx(by_array[place], abs=1e-9)
        assert shares.log_evidence == pytest.approx(of_shares[place], abs=1e-9)
    with pytest.raises(ValueError, match="events must be 0 or more"):
        rate_comparison.log_evidence(-1, 2, treatment_share=0.3)
    with pytest.raises(ValueError, match="2 arms last"):
        sample_ratio.log_evidence([1, 2, 3], shares=(0.4, 0.6))
