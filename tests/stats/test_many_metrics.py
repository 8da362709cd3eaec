"""Promises where much is asked at once: e-values, guardrails, and the cause of a mismatch."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepwell.stats.guardrail import Guardrail, judge_guardrails
from keepwell.stats.mismatch import mismatch_cause
from keepwell.stats.multiplicity import e_benjamini_hochberg


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0, 3.5, 5.0, 900.0]), max_size=12))
def test_adjusted_levels_reject_what_the_procedure_rejects(logs) -> None:
    levels = e_benjamini_hochberg(logs)
    ordered = sorted(logs, reverse=True)
    for alpha in (0.01, 0.05, 0.3):
        # The definition: the greatest k whose k-th evidence is at least K / (alpha k).
        most = max(
            (
                k
                for k in range(1, len(logs) + 1)
                if ordered[k - 1] >= math.log(len(logs) / (alpha * k))
            ),
            default=0,
        )
        rejected = [level <= alpha * (1 + 1e-12) for level in levels]
        assert sum(rejected) == most
        for log, found in zip(logs, rejected, strict=True):
            assert found is (most > 0 and log >= ordered[most - 1])


def test_evidence_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="log_evidence"):
        e_benjamini_hochberg([math.nan])
    with pytest.raises(ValueError, match="log_evidence"):
        e_benjamini_hochberg([[1.0]])
    assert e_benjamini_hochberg([]) == ()


def _fed(rail: Guardrail, shift: float, rows: int = 2000) -> Guardrail:
    rng = np.random.default_rng(0)
    return rail.update(treatment=shift + rng.normal(10, 1, rows), control=rng.normal(10, 1, rows))


def test_harm_counts_in_the_direction_that_is_worse_and_beyond_the_margin() -> None:
    slower = Guardrail(name="latency", worse="higher", margin=0.2, alpha=0.01, tuned_for=4000)
    poorer = Guardrail(name="revenue", worse="lower", margin=0.2, alpha=0.01, tuned_for=4000)
    assert _fed(slower, 0.5).verdict == "harmed"
    assert _fed(slower, -0.5).verdict == "safe"
    assert _fed(slower, 0.0).verdict == "safe"  # within the margin
    assert _fed(slower, 0.2).verdict == "open"
    assert _fed(poorer, -0.5).verdict == "harmed"
    assert _fed(poorer, 0.5).verdict == "safe"
    assert slower.verdict == "open"
    assert slower.harm == (-math.inf, math.inf)


def test_the_first_verdict_stays() -> None:
    rail = _fed(Guardrail(name="m", worse="higher", margin=0.0, alpha=0.01, tuned_for=4000), 0.5)
    healed = rail.update(treatment=np.full(90_000, 9.0), control=np.full(90_000, 10.0))
    assert healed.harm[1] < 0
    assert healed.verdict == "harmed"


def test_the_report_stops_for_one_and_clears_for_all() -> None:
    harmed = _fed(Guardrail(name="a", worse="higher", margin=0.0, alpha=0.01, tuned_for=4000), 0.5)
    safe = _fed(Guardrail(name="b", worse="higher", margin=0.2, alpha=0.02, tuned_for=4000), 0.0)
    open_ = Guardrail(name="c", worse="lower", margin=0.2, alpha=0.02, tuned_for=4000)
    report = judge_guardrails([harmed, safe, open_])
    assert (report.harmed, report.safe, report.open) == (("a",), ("b",), ("c",))
    assert report.stop
    assert not report.clear
    assert report.false_alarm_chance == pytest.approx(0.05)
    assert judge_guardrails([safe]).clear
    with pytest.raises(ValueError, match="distinct names"):
        judge_guardrails([safe, safe])
    up: dict[str, Any] = {"worse": "up"}
    with pytest.raises(ValueError, match="worse"):
        Guardrail(name="a", margin=0.0, alpha=0.01, tuned_for=10, **up)
    with pytest.raises(ValueError, match="margin"):
        Guardrail(name="a", worse="lower", margin=-1.0, alpha=0.01, tuned_for=10)


def _table(rng: np.random.Generator, share: np.ndarray) -> dict[str, dict[str, list[int]]]:
    total = rng.poisson(np.array([800, 500, 300])[:, None], size=share.shape)
    first = rng.binomial(total, share)
    table = np.stack([first, total - first], axis=-1)
    return {
        "browser": dict(zip(("x", "y", "z"), table.sum(axis=1).tolist(), strict=True)),
        "hour": {f"{i:02}": row for i, row in enumerate(table.sum(axis=0).tolist())},
    }


def test_one_browser_a_run_of_hours_and_everywhere_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    share = np.full((3, 24), 0.5)
    share[1] = 0.55
    cause = mismatch_cause(_table(rng, share), shares=[0.5, 0.5], ordered=["hour"])
    assert (cause.dimension, cause.segments) == ("browser", ("y",))
    assert cause.excess[0] == pytest.approx(0.05 * sum(cause.counts), rel=0.3)
    assert cause.p_value < 1e-6 < cause.rest_p_value
    share = np.full((3, 24), 0.5)
    share[:, 15:] = 0.54
    cause = mismatch_cause(
        _table(rng, share), shares=[0.5, 0.5], ordered=["hour"], arms=["old", "new"]
    )
    assert cause.dimension == "hour"
    assert cause.segments[-1] == "23"
    assert abs(int(cause.segments[0]) - 15) <= 1
    assert cause.sentence.endswith(f"where hour is {cause.segments[0]} to 23")
    cause = mismatch_cause(_table(rng, np.full((3, 24), 0.52)), shares=[0.5, 0.5], ordered=["hour"])
    assert cause.dimension is None
    assert cause.rest_p_value == 1
    assert "assignment itself" in cause.sentence


def test_three_arms_at_uneven_shares_and_empty_segments_are_understood() -> None:
    counts = {"country": {"de": [700, 200, 100], "fr": [1200, 480, 120], "es": [0, 0, 0]}}
    cause = mismatch_cause(counts, shares=[0.7, 0.2, 0.1], arms=["a", "b", "c"])
    assert cause.segments == ("fr",)
    assert cause.sentence == "b has 120 units more than planned where country is fr"
    even = mismatch_cause({"country": {"de": [70, 20, 10]}}, shares=[0.7, 0.2, 0.1])
    assert even.p_value == pytest.approx(1)


def test_counts_that_mean_nothing_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="dimension"):
        mismatch_cause({}, shares=[0.5, 0.5])
    with pytest.raises(ValueError, match="same units"):
        mismatch_cause({"a": {"x": [1, 2]}, "b": {"x": [1, 1]}}, shares=[0.5, 0.5])
    with pytest.raises(ValueError, match="segments of 2 arms"):
        mismatch_cause({"a": {"x": [1, 2, 3]}}, shares=[0.5, 0.5])
    with pytest.raises(ValueError, match="sum to 1"):
        mismatch_cause({"a": {"x": [1, 2]}}, shares=[0.5, 0.6])
    with pytest.raises(ValueError, match="arms must be 2 names"):
        mismatch_cause({"a": {"x": [1, 2]}}, shares=[0.5, 0.5], arms=["a"])
