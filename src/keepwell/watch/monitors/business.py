"""Business: does the model still earn more than the baseline rule would have, on the same decisions?"""

from __future__ import annotations

from keepwell.watch.clusters import cluster_sums, compare
from keepwell.watch.monitors import Monitor
from keepwell.watch.readings import Reading, View

KEPT = 0.5
"""Share of the gain that was proved at the release below which the model no longer earns what it was released for."""


def measure(view: View) -> list[Reading]:
    """Give ``value``: money per decision above the baseline's, of answered and labelled rows.

    The limit is half the reference's gain where there was one, and 0 otherwise: less than that is decay.
    """
    money = view.money
    if money is None:
        if view.declaration is None or view.declaration.kpi_function is None:
            return []
        return [
            Reading(
                monitor="value", kind="business", rows=0, value=None, message="no labelled answers"
            )
        ]
    rows = len(money.times)
    if money.problem:
        return [
            Reading(monitor="value", kind="business", rows=rows, value=None, message=money.problem)
        ]
    reference = view.reference.money if view.reference else None
    gain = money.model - money.baseline
    found = compare(cluster_sums(gain, money.times, view.grid.cluster), reference)
    low, high = found.interval()
    kept = KEPT if found.reference is not None and found.reference > 0 else 0.0
    limit = kept * (found.reference or 0.0)
    unit = view.declaration.kpi_unit if view.declaration else ""
    return [
        Reading(
            monitor="value",
            kind="business",
            rows=rows,
            value=found.mean,
            low=low,
            high=high,
            reference=found.reference,
            limit=limit,
            score=found.score(limit, weight=kept, above=False),
            message=f"{found.mean:+.4g} {unit} a decision against the baseline",
        )
    ]


MONITOR = Monitor(kind="business", part="labels", measure=measure)
