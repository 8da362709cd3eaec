"""Discoveries: which further metrics differ between arms, with the share of false ones held over all of them."""

from __future__ import annotations

from typing import Any

from keepwell.core.clock import Time
from keepwell.serving.rollouts.evidence import errors_by_plan, health
from keepwell.serving.rollouts.metrics import METRICS, metric_problems, metric_worths
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import CHAMPION, State, finite
from keepwell.stats.difference_sequence import DifferenceSequence
from keepwell.stats.multiplicity import e_benjamini_hochberg
from keepwell.stats.rate_comparison import RateComparison


def discovery_problems(metrics: tuple[str, ...], state: State) -> list[str]:
    """Tell what is wrong with further metrics."""
    found = metric_problems(metrics, rule="metrics", task=state.task, money=state.money is not None)
    found += [
        f"metrics: {name} is a quantile and has no evidence that adds up with others'. Make it a guardrail."
        for name in metrics
        if name in METRICS and METRICS[name].quantile
    ]
    return found


def discover(
    metrics: tuple[str, ...],
    state: State,
    seen: Observations,
    *,
    alpha: float,
    tuned_for: float,
    attribution: Time,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Judge every metric of every challenger together, by metric and arm.

    ``discovered`` is told of a difference whose level by e-BH, over all arms and metrics, is at most ``alpha``: at any
    look, that share of them is expected to be false at most. Bounds are each metric's own. They never move traffic.
    """
    names = tuple(arm.name for arm in state.challengers)
    found: dict[str, dict[str, dict[str, Any]]] = {metric: {} for metric in metrics}
    evidence = []
    for metric in metrics:
        if metric == "error_share":
            judged = {name: _errors(seen, name, alpha=alpha) for name in names}
        else:
            judged = _by_unit(
                metric, state, seen, alpha=alpha, tuned_for=tuned_for, attribution=attribution
            )
        for name, (facts, log_evidence) in judged.items():
            found[metric][name] = facts
            evidence.append((facts, log_evidence))
    levels = e_benjamini_hochberg([log for _, log in evidence])
    for (facts, _), level in zip(evidence, levels, strict=True):
        facts |= {"level": level, "discovered": level <= alpha}
    return found


def told(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Say what was discovered, in words; nothing if nothing was."""
    said = [
        f"{metric} of {name} {facts['mean']:+.4g}"
        for metric, arms in found.items()
        for name, facts in arms.items()
        if facts["discovered"]
    ]
    return "; also different: " + ", ".join(said) if said else ""


def _by_unit(
    metric: str,
    state: State,
    seen: Observations,
    *,
    alpha: float,
    tuned_for: float,
    attribution: Time,
) -> dict[str, tuple[dict[str, Any], float]]:
    names = tuple(arm.name for arm in state.challengers)
    worth = metric_worths(
        metric,
        seen,
        (CHAMPION, *names),
        label_delay=state.label_delay,
        attribution=attribution,
        default=state.default,
        money=state.money,
    )
    found = {}
    for name in names:
        sequence = DifferenceSequence(alpha=alpha, tuned_for=max(2 * tuned_for, 2.0)).update(
            treatment=worth[name].values, control=worth[CHAMPION].values
        )
        facts = {
            "mean": sequence.estimate,
            "low": finite(sequence.lower),
            "high": finite(sequence.upper),
        }
        found[name] = facts, sequence.log_evidence()
    return found


def _errors(seen: Observations, name: str, *, alpha: float) -> tuple[dict[str, Any], float]:
    """Compare rates of errors, which are rare, by an exact test instead of an interval."""
    test = RateComparison(alpha=alpha, side="different")
    for each in errors_by_plan(seen, CHAMPION, name):
        test = test.update(
            treatment_events=each.errors,
            control_events=each.champion_errors,
            treatment_share=each.share,
        )
    mine, other = health(seen, name), health(seen, CHAMPION)
    apart = mine.errors / max(mine.requests, 1) - other.errors / max(other.requests, 1)
    return {"mean": apart}, test.log_evidence
