"""Promises of sequential tests on counts: rare false alarms at any look, quick true ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from keepwell.stats.rate_comparison import RateComparison
from keepwell.stats.rate_limit import RateLimitTest
from keepwell.stats.sample_ratio import SampleRatioTest


def _requests_until_exceeded(rng: np.random.Generator, rate: float, requests: int) -> float:
    """Requests until a canary test alarms, looking after each event; infinite if never.

    Evidence falls between events, so looking after each of them is looking after every request.
    """
    test = RateLimitTest(limit=0.002, alpha=0.01)
    while test.trials < requests:
        gap = int(rng.geometric(rate))
        test = test.update(events=1, trials=gap)
        if test.exceeded:
            return test.trials
    return math.inf


def test_a_canary_at_its_limit_is_rolled_back_in_at_most_one_of_a_hundred() -> None:
    rng = np.random.default_rng(0)
    false = [_requests_until_exceeded(rng, 0.002, 20_000) < 20_000 for _ in range(400)]
    assert np.mean(false) <= 0.015  # six of 400: alpha is 1%


def test_a_canary_at_ten_times_its_limit_is_rolled_back_within_a_minute_of_five_a_second() -> None:
    rng = np.random.default_rng(1)
    delays = [_requests_until_exceeded(rng, 0.02, 20_000) for _ in range(300)]
    assert np.median(delays) <= 300
    assert max(delays) < 2000


def test_a_fixed_level_read_after_every_request_is_rolled_back_far_oftener() -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(200):
        events = np.cumsum(rng.random(10_000) < 0.002)
        n = np.arange(1, 10_001)
        # The known-bad control: an exact binomial test at 1%, looked at after every request.
        wrong += bool((special.bdtrc(np.maximum(events - 1, 0), n, 0.002)[events > 0] < 0.01).any())
    assert wrong / 200 > 0.05


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400)), max_size=15))
def test_evidence_depends_on_counts_alone_and_the_verdict_on_its_peak(
    batches: list[tuple[int, int]],
) -> None:
    test = RateLimitTest(limit=0.01, alpha=0.05)
    peak = 0.0
    for events, others in batches:
        test = test.update(events=events, trials=events + others)
        peak = max(peak, test.log_evidence)
    whole = RateLimitTest(limit=0.01, alpha=0.05).update(events=test.events, trials=test.trials)
    assert whole.log_evidence == pytest.approx(test.log_evidence)
    assert test.peak_log_evidence == peak
    assert test.exceeded == (test.p_value <= 0.05)


def test_expected_evidence_at_the_limit_is_one() -> None:
    # The defining property, summed exactly over all outcomes of 60 requests.
    k = np.arange(61)
    chance = special.binom(60, k) * 0.05**k * 0.95 ** (60 - k)
    start = RateLimitTest(limit=0.05, alpha=0.01)
    evidence = [math.exp(start.update(events=int(e), trials=60).log_evidence) for e in k]
    assert float(chance @ evidence) == pytest.approx(1)


def _events_until_rejected(rng: np.random.Generator, ratio: float, events: int) -> float:
    test = RateComparison(alpha=0.05)
    for i in range(events):
        share = 0.05 if i < events // 4 else 0.25  # a ramp, half-way
        on_treatment = rng.random() < share * ratio / (share * ratio + 1 - share)
        test = test.update(
            treatment_events=int(on_treatment),
            control_events=int(not on_treatment),
            treatment_share=share,
        )
        if test.rejected:
            return i + 1
    return math.inf


def test_equal_rates_are_rarely_told_apart_through_a_ramp() -> None:
    rng = np.random.default_rng(3)
    rejected = [_events_until_rejected(rng, 1.0, 120) < math.inf for _ in range(150)]
    assert np.mean(rejected) <= 0.06


def test_a_fivefold_rate_is_found_within_a_hundred_events() -> None:
    rng = np.random.default_rng(4)
    assert np.median([_events_until_rejected(rng, 5.0, 200) for _ in range(40)]) <= 100


def test_a_better_treatment_is_different_but_not_greater() -> None:
    greater, different = (
        RateComparison(alpha=0.05, side=side).update(
            treatment_events=5, control_events=60, treatment_share=0.5
        )
        for side in ("greater", "different")
    )
    assert not greater.rejected
    assert different.rejected


def test_expected_comparison_evidence_at_equal_rates_is_one() -> None:
    k = np.arange(31)
    chance = special.binom(30, k) * 0.2**k * 0.8 ** (30 - k)
    for side in ("greater", "different"):
        start = RateComparison(alpha=0.05, side=side)
        evidence = [
            math.exp(
                start.update(
                    treatment_events=int(e), control_events=30 - int(e), treatment_share=0.2
                ).log_evidence
            )
            for e in k
        ]
        assert float(chance @ evidence) == pytest.approx(1)


def test_true_shares_are_rarely_called_a_mismatch_at_any_look() -> None:
    rng = np.random.default_rng(5)
    found = naive = 0
    for _ in range(120):
        test = SampleRatioTest(shares=(0.9, 0.1), alpha=0.05, concentration=500)
        peeked = False
        for counts in rng.multinomial(50, test.shares, size=100):
            test = test.update(counts)
            n = np.array(test.counts)
            expected = n.sum() * np.array(test.shares)
            peeked |= bool(((n - expected) ** 2 / expected).sum() > special.chdtri(1, 0.05))
        found += test.mismatched
        naive += peeked
    assert found / 120 <= 0.055
    assert naive / 120 > 0.20  # the known-bad control: chi-square at each look


def test_lost_units_of_an_arm_are_found() -> None:
    rng = np.random.default_rng(6)
    test = SampleRatioTest(shares=(0.5, 0.5), alpha=0.01)
    while not test.mismatched:
        test = test.update(rng.multinomial(1000, [0.51, 0.49]))
    assert sum(test.counts) < 120_000


def test_a_new_plan_goes_on_with_the_evidence_of_the_old() -> None:
    test = SampleRatioTest(shares=(0.5, 0.5), alpha=0.01).update([5300, 4700])
    later = test.replan((0.9, 0.1))
    assert later.log_evidence == test.log_evidence
    assert later.mismatched
    assert later.update([9000, 1000]).log_evidence < test.log_evidence


def test_expected_mismatch_evidence_under_the_plan_is_one() -> None:
    k = np.arange(41)
    chance = special.binom(40, k) * 0.3**k * 0.7 ** (40 - k)
    start = SampleRatioTest(shares=(0.3, 0.7), alpha=0.05, concentration=20)
    evidence = [math.exp(start.update([int(e), 40 - int(e)]).log_evidence) for e in k]
    assert float(chance @ evidence) == pytest.approx(1)


def test_input_that_means_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"events must be within \[0, trials=3\], received 4"):
        RateLimitTest(limit=0.1, alpha=0.05).update(events=4, trials=3)
    with pytest.raises(ValueError, match="limit"):
        RateLimitTest(limit=0.0, alpha=0.05)
    with pytest.raises(ValueError, match="treatment_share"):
        RateComparison(alpha=0.05).update(treatment_events=1, control_events=1, treatment_share=1.0)
    with pytest.raises(ValueError, match="treatment_events"):
        RateComparison(alpha=0.05).update(
            treatment_events=-1, control_events=1, treatment_share=0.5
        )
    with pytest.raises(ValueError, match="sum to 1"):
        SampleRatioTest(shares=(0.5, 0.4), alpha=0.05)
    with pytest.raises(ValueError, match="one entry an arm"):
        SampleRatioTest(shares=(0.5, 0.5), alpha=0.05).update([1, 2, 3])
