"""Many metrics at once: shares of false alarms, guardrails, and mismatches traced to their cause."""

from __future__ import annotations

import numpy as np

from benchmarks.rows import Row, Simulated
from keepwell.stats.guardrail import Guardrail, judge_guardrails
from keepwell.stats.mismatch import mismatch_cause
from keepwell.stats.multiplicity import e_benjamini_hochberg
from keepwell.stats.outcome_comparison import log_evidence

SEED = 70
METRICS = 20
CHANGED = 4


def _shares(rng: np.random.Generator, runs: int) -> tuple[float, float, float]:
    """False share among the alarms, changed ones found, and the false share of unadjusted tests.

    Every run is stopped when it looks best: at the look with the most alarms.
    """
    units = 100 * np.arange(1, 101)
    rates = np.where(np.arange(METRICS) < CHANGED, 0.13, 0.10)
    false, found, plain = [], [], []
    for _ in range(runs):
        control = rng.binomial(100, 0.10, size=(METRICS, units.size)).cumsum(axis=1)
        treatment = rng.binomial(100, rates[:, None], size=control.shape).cumsum(axis=1)
        evidence = log_evidence(treatment, units, control, units, rate=0.10, effect=0.02)
        alarms = np.array([e_benjamini_hochberg(look) for look in evidence.T]) <= 0.05
        best = alarms[alarms.sum(axis=1).argmax()]
        false.append(best[CHANGED:].sum() / max(best.sum(), 1))
        found.append(best[:CHANGED].mean())
        p, q = treatment / units, control / units
        error = np.sqrt(np.maximum(p * (1 - p) + q * (1 - q), 1e-9) / units)
        peeked = (np.abs(p - q) > 1.96 * error).any(axis=1)
        plain.append(peeked[CHANGED:].sum() / max(peeked.sum(), 1))
    return float(np.mean(false)), float(np.mean(found)), float(np.mean(plain))


def _guardrails(rng: np.random.Generator, harm: float, runs: int) -> float:
    """Share of rollouts that any of three guardrails stops."""
    stopped = 0
    for _ in range(runs):
        rails = [
            Guardrail(name=name, worse=worse, margin=0.0, alpha=0.01, tuned_for=2000)
            for name, worse in (("latency", "higher"), ("cost", "higher"), ("revenue", "lower"))
        ]
        for _ in range(40):
            rails = [
                rail.update(
                    treatment=rng.gamma(4.0, 1.0, size=50)
                    + (harm if rail.name == "latency" else 0.0),
                    control=rng.gamma(4.0, 1.0, size=50),
                )
                for rail in rails
            ]
            if judge_guardrails(rails).stop:
                stopped += 1
                break
    return stopped / runs


def _causes(rng: np.random.Generator, runs: int) -> tuple[float, float, float]:
    """Share of mismatches traced to their browser, to their hours, and to no segment rightly."""
    right = [0, 0, 0]
    for _ in range(runs):
        for kind in range(3):
            share = np.full((5, 24), 0.5)  # browser by hour
            if kind == 0:
                share[2] = 0.55
            elif kind == 1:
                share[:, 15:] = 0.53
            else:
                share[:] = 0.515
            total = rng.poisson(np.array([800, 500, 300, 150, 50])[:, None], size=share.shape)
            first = rng.binomial(total, share)
            table = np.stack([first, total - first], axis=-1)
            counts = {
                "browser": {f"b{i}": row.tolist() for i, row in enumerate(table.sum(axis=1))},
                "hour": {f"{i:02}": row.tolist() for i, row in enumerate(table.sum(axis=0))},
            }
            cause = mismatch_cause(counts, shares=[0.5, 0.5], ordered=("hour",))
            if kind == 0:
                right[0] += cause.dimension == "browser" and cause.segments == ("b2",)
            elif kind == 1:
                hours = {f"{i:02}" for i in range(15, 24)}
                overlap = len(hours & set(cause.segments)) / len(hours | set(cause.segments))
                right[1] += cause.dimension == "hour" and overlap >= 0.7
            else:
                right[2] += cause.dimension is None
    first, second, third = (count / runs for count in right)
    return first, second, third


def study(quick: bool) -> list[Row]:
    """Simulate metrics, guardrails and causes."""
    runs, rollouts, mismatches = (10, 25, 30) if quick else (500, 1000, 500)
    rng = np.random.default_rng(SEED)
    simulated = Simulated(runs=runs, seed=SEED, quick=quick)
    guarded = Simulated(runs=rollouts, seed=SEED, quick=quick)
    broken = Simulated(runs=mismatches, seed=SEED, quick=quick)
    false, found, plain = _shares(rng, runs)
    healthy, harmed = (_guardrails(rng, harm, rollouts) for harm in (0.0, 0.4))
    traced = _causes(rng, mismatches)
    return [
        simulated.at_most(
            "many metrics: false share among alarms, stopped at its best look",
            false,
            0.05,
            slack=0.05,
        ),
        simulated.at_least(
            "many metrics: changed ones found, 10% against 13%", found, 0.9, slack=0.1
        ),
        simulated.at_least("many metrics: false share of unadjusted peeking beside it", plain, 0.4),
        guarded.at_most(
            "guardrails: healthy rollouts stopped by any of three at alpha 0.01",
            healthy,
            0.03,
            share=0.03,
        ),
        guarded.at_least(
            "guardrails: a harm of a fifth of a standard deviation stopped",
            harmed,
            0.95,
            share=0.95,
        ),
        *(
            broken.at_least(f"mismatch: traced to {where}", share, 0.9, share=0.9)
            for where, share in zip(
                ("one browser", "a run of hours", "no segment, being everywhere"),
                traced,
                strict=True,
            )
        ),
    ]
