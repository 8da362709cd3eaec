"""Does it earn more than the rule it replaces?"""

from __future__ import annotations

import numpy.typing as npt

from keepwell.core.records.evidence import CheckResult
from keepwell.stats.value import value_against_baseline


def kpi_gain(
    value: npt.ArrayLike,
    baseline: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike,
    unit: str,
    floor: float,
) -> CheckResult:
    """Is the gain per decision over the baseline above ``floor`` with the whole 95% interval?

    ``value`` and ``baseline`` are money per decision, shape (n,); ``clusters`` groups rows that share their luck.
    """
    found = value_against_baseline(value, baseline, clusters=clusters)
    each = found.per_decision
    return CheckResult(
        check="KPI gain",
        verdict="pass" if each.lower > floor else "fail",
        message=(
            f"{each.estimate:+.4g} {unit} a decision against the baseline"
            f" (95% interval {each.lower:.4g} to {each.upper:.4g}, {found.decisions:,} decisions)"
        ),
        measured={
            "per_decision": each.estimate,
            "low": each.lower,
            "high": each.upper,
            "decisions": found.decisions,
            "unit": unit,
        },
        limits={"low": floor},
    )
