"""Metrics that a rollout must not harm, each with its own margin and its own chance of error."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy.typing as npt

from keepwell.stats import _arrays
from keepwell.stats.difference_sequence import DifferenceSequence

Verdict = Literal["harmed", "safe", "open"]
"""Harm beyond the margin shown; shown to be within it; not shown yet."""


@dataclass(frozen=True, kw_only=True)
class Guardrail:
    """A guardrail metric: whether treatment harms it by more than `margin`, at any look.

    The bounds of treatment's mean less control's hold at all looks together. Harm is shown when
    all that lies between them is worse than the margin, and safety when all is better; the first
    of the two that is seen stays (`verdict`), whatever later looks say. Its `alpha` is its own: a
    main metric keeps what it was given, and `false_alarm_chance` adds up the guardrails'.

    Weak at: as `DifferenceSequence` (rare events: use `rate_comparison` for errors); a margin of 0
    can show harm, but safety only by being better.

    name: of the metric. worse: "higher" (latency, cost) or "lower" (revenue, clicks). margin: the
    harm that is accepted, >= 0, in the metric's unit. alpha: chance ever to call wrongly.
    tuned_for: units of both arms at which a verdict is hoped for.
    Raises ValueError for parameters outside these domains.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021 (2103.06476); Schuirmann 1987 for
    testing against a margin; Schultzberg, Ankargren and Frånberg 2024 (2402.11609), Risk-aware
    product decisions in A/B tests with multiple metrics.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> latency = Guardrail(name="latency ms", worse="higher", margin=2.0, alpha=0.01,
    ...                     tuned_for=2000)
    >>> latency.update(treatment=rng.normal(36, 10, 1000), control=rng.normal(30, 10, 1000)).verdict
    'harmed'
    """

    name: str
    worse: Literal["higher", "lower"]
    margin: float
    alpha: float
    tuned_for: float
    difference: DifferenceSequence | None = None
    verdict: Verdict = "open"

    def __post_init__(self) -> None:
        """Refuse parameters outside their domain."""
        _arrays.one_of("worse", self.worse, ("higher", "lower"))
        _arrays.at_least("margin", self.margin, 0)
        DifferenceSequence(alpha=self.alpha, tuned_for=self.tuned_for)

    def update(
        self,
        *,
        treatment: npt.ArrayLike,
        control: npt.ArrayLike,
        treatment_covariate: npt.ArrayLike | None = None,
        control_covariate: npt.ArrayLike | None = None,
    ) -> Self:
        """Add units of both arms; looks once, after them. As `DifferenceSequence.update`."""
        before = self.difference or DifferenceSequence(alpha=self.alpha, tuned_for=self.tuned_for)
        after = replace(
            self,
            difference=before.update(
                treatment=treatment,
                control=control,
                treatment_covariate=treatment_covariate,
                control_covariate=control_covariate,
            ),
        )
        least, most = after.harm
        if after.verdict == "open" and least > self.margin:
            return replace(after, verdict="harmed")
        if after.verdict == "open" and most < self.margin:
            return replace(after, verdict="safe")
        return after

    @property
    def harm(self) -> tuple[float, float]:
        """Least and greatest harm that the evidence allows now, in the metric's unit."""
        found = self.difference or DifferenceSequence(alpha=self.alpha, tuned_for=self.tuned_for)
        if self.worse == "higher":
            return found.lower, found.upper
        return -found.upper, -found.lower


@dataclass(frozen=True, kw_only=True)
class GuardrailReport:
    """What the guardrails say together: names by verdict, and the chance of any false alarm.

    `stop` when any is harmed; `clear` when all are safe.
    """

    harmed: tuple[str, ...]
    open: tuple[str, ...]
    safe: tuple[str, ...]
    false_alarm_chance: float

    @property
    def stop(self) -> bool:
        """Whether any metric is harmed."""
        return bool(self.harmed)

    @property
    def clear(self) -> bool:
        """Whether all metrics are shown to be safe."""
        return not self.harmed and not self.open


def judge_guardrails(guardrails: Iterable[Guardrail]) -> GuardrailReport:
    """Gather verdicts; if nothing is harmed, any alarm has at most the sum of the alphas.

    Weak at: many guardrails of a large alpha each: the sum is what a healthy rollout risks.

    guardrails: with distinct names. Raises ValueError for two of one name.
    Source: Bonferroni 1936 for the sum.

    >>> errors = Guardrail(name="errors", worse="higher", margin=0.0, alpha=0.01, tuned_for=100)
    >>> judge_guardrails([errors]).open
    ('errors',)
    """
    known = list(guardrails)
    names = [guardrail.name for guardrail in known]
    if len(set(names)) < len(names):
        message = f"guardrails must have distinct names, received {names}"
        raise ValueError(message)
    by = {
        verdict: tuple(guardrail.name for guardrail in known if guardrail.verdict == verdict)
        for verdict in ("harmed", "open", "safe")
    }
    return GuardrailReport(
        harmed=by["harmed"],
        open=by["open"],
        safe=by["safe"],
        false_alarm_chance=min(1.0, sum(guardrail.alpha for guardrail in known)),
    )
