"""Guardrails: metrics that must not get worse by more than a margin, each with a chance of error of its own."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keepwell.core.clock import Time
from keepwell.core.settings import Limit, Share, Values
from keepwell.serving.log.batches import FALLBACK
from keepwell.serving.rollouts.evidence import health
from keepwell.serving.rollouts.metrics import METRICS, Worse, metric_problems, metric_worths
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import CHAMPION, State, finite
from keepwell.stats.guardrail import Guardrail, Verdict
from keepwell.stats.quantile_sequence import quantile_difference
from keepwell.stats.rate_limit import RateLimitTest

LEAST_ALPHA = 1e-6


class GuardrailRule(Values, frozen=True, kw_only=True):
    """One metric that must not get worse."""

    metric: str
    """A name of ``keepwell.serving.rollouts.metrics``."""
    margin: Limit = 0.0
    """So much worse is accepted, in the metric's unit."""
    alpha: Share = 0.01
    """Chance of ever calling a challenger worse that is not."""
    then: Literal["roll back", "block"] = "roll back"
    """``roll back``: shown harm ends it. ``block``: there is no promotion before the metric is shown to be safe."""
    worse: Worse = ""
    """Which way the metric gets worse, where that is not plain."""

    @property
    def direction(self) -> Worse:
        """Say which way it gets worse."""
        return self.worse or METRICS[self.metric].worse


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """What the guardrails say of all challengers."""

    harmed: dict[str, str] = {}
    """By challenger: what a guardrail found that rolls back, in words."""
    blocked: dict[str, str] = {}
    """By challenger: what keeps it from being promoted, in words."""
    refuted: frozenset[str] = frozenset()
    """Blocked ones that will never be promoted, because harm was shown."""
    measured: dict[str, dict[str, Any]] = {}
    """By challenger and metric: verdict, least and greatest harm."""


def guardrail_problems(rules: tuple[GuardrailRule, ...], state: State) -> list[str]:
    """Tell what is wrong with guardrails."""
    found = metric_problems(
        tuple(rule.metric for rule in rules),
        rule="guardrails",
        task=state.task,
        money=state.money is not None,
    )
    for rule in rules:
        if rule.metric in METRICS and not rule.direction:
            found.append(
                f"guardrails: {rule.metric} may get worse either way. Say worse = 'higher' or 'lower'."
            )
    return found


def guard(
    rules: tuple[GuardrailRule, ...],
    state: State,
    seen: Observations,
    *,
    tuned_for: float,
    parts: int,
    attribution: Time = 0,
) -> Guarded:
    """Judge all guardrails of all challengers. ``parts``: looks that share each alpha, such as arms or steps.

    Latencies are compared by decision, the share of errors by decision and exactly, everything else by unit. Where
    nobody stays with an arm each decision is a unit.
    """
    if not rules:
        return Guarded()
    if not state.unit:
        seen = msgspec.structs.replace(seen, unit=seen.decision)
    drawn = seen.pick(~seen.mirror & ~seen.placed)
    harmed: dict[str, str] = {}
    blocked: dict[str, str] = {}
    refuted = set()
    measured: dict[str, dict[str, Any]] = {arm.name: {} for arm in state.challengers}
    for rule in rules:
        alpha = max(rule.alpha / parts, LEAST_ALPHA)
        harms = _harms(
            rule, state, drawn, alpha=alpha, tuned_for=tuned_for, attribution=attribution
        )
        for name, (least, most) in harms.items():
            verdict: Verdict = (
                "harmed" if least > rule.margin else "safe" if most < rule.margin else "open"
            )
            measured[name][rule.metric] = {
                "verdict": verdict,
                "margin": rule.margin,
                "least_harm": finite(least),
                "most_harm": finite(most),
            }
            told = f"{name}: {rule.metric} is worse by {least:.4g} to {most:.4g}"
            if verdict == "harmed" and rule.then == "roll back":
                harmed.setdefault(name, f"{told}, {rule.margin:.4g} is accepted")
            elif verdict != "safe" and rule.then == "block":
                blocked.setdefault(name, f"{told}, not shown to be within {rule.margin:.4g}")
                refuted |= {name} if verdict == "harmed" else set()
    return Guarded(harmed=harmed, blocked=blocked, refuted=frozenset(refuted), measured=measured)


def _harms(
    rule: GuardrailRule,
    state: State,
    drawn: Observations,
    *,
    alpha: float,
    tuned_for: float,
    attribution: Time,
) -> dict[str, tuple[float, float]]:
    """Bound how much worse each challenger is than the champion: least and greatest harm."""
    names = tuple(arm.name for arm in state.challengers)
    metric = METRICS[rule.metric]
    if metric.quantile:
        answered = drawn.pick(drawn.status <= FALLBACK)
        latency = answered.latency * 1e3
        control = latency[answered.of(CHAMPION)]
        found = {}
        for name in names:
            between = quantile_difference(
                latency[answered.of(name)],
                control,
                metric.quantile,
                alpha=alpha,
                tuned_for=max(tuned_for, 2),
            )
            found[name] = (between.lower, between.upper)
        return found
    if rule.metric == "error_share":
        return {name: _error_harm(drawn, name, alpha=alpha) for name in names}
    worth = metric_worths(
        rule.metric,
        drawn,
        (CHAMPION, *names),
        label_delay=state.label_delay,
        attribution=attribution,
        default=state.default,
        money=state.money,
    )
    return {
        name: Guardrail(
            name=rule.metric,
            worse="higher" if rule.direction == "higher" else "lower",
            margin=rule.margin,
            alpha=alpha,
            tuned_for=max(2 * tuned_for, 2),
        )
        .update(treatment=worth[name].values, control=worth[CHAMPION].values)
        .harm
        for name in names
    }


def _error_harm(drawn: Observations, name: str, *, alpha: float) -> tuple[float, float]:
    """Bound the difference of two error rates by bounds of each: exact, and wider than one test would be."""
    low, high = zip(
        *(
            rate_bounds(each.errors, each.requests, alpha=alpha / 2)
            for each in (health(drawn, name), health(drawn, CHAMPION))
        ),
        strict=True,
    )
    return low[0] - high[1], high[0] - low[1]


def rate_bounds(events: int, trials: int, *, alpha: float) -> tuple[float, float]:
    """Bound a rate at all looks together: every limit that ``RateLimitTest`` does not find exceeded, either way."""
    return (
        _exceeded(events, trials, alpha=alpha / 2),
        1 - _exceeded(trials - events, trials, alpha=alpha / 2),
    )


def _exceeded(events: int, trials: int, *, alpha: float) -> float:
    """Find the greatest limit that is exceeded."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        test = RateLimitTest(limit=middle, alpha=alpha).update(events=events, trials=trials)
        low, high = (middle, high) if test.exceeded else (low, middle)
    return low
