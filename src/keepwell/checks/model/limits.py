"""Does it stay within what was allowed: time, memory, size?"""

from __future__ import annotations

from keepwell.core.records.evidence import CheckResult


def at_most(check: str, value: float, limit: float, *, unit: str) -> CheckResult:
    """Is a measured number within its limit?"""
    return CheckResult(
        check=check,
        verdict="pass" if value <= limit else "fail",
        message=f"{value:,.4g} {unit}, limit {limit:,.4g} {unit}",
        measured={check: value},
        limits={check: limit},
    )
