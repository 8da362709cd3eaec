"""Data drift: is each feature still distributed as in the reference?"""

from __future__ import annotations

import numpy as np

from keepwell.stats.drift import psi_test
from keepwell.stats.multiplicity import holm
from keepwell.watch.monitors import Monitor
from keepwell.watch.readings import Reading, View
from keepwell.watch.reference import Profile

FLOOR = 0.2
"""Least drift (nats, beyond what row numbers explain) worth a warning: the customary line of "changed" for PSI."""
NATURAL = 3.0
"""A column that moves between weeks of the reference itself must move this many times as far."""


def drift_readings(
    view: View, columns: list[tuple[str, Profile, np.ndarray]], *, kind: str
) -> list[Reading]:
    """Compare columns with their profiles; an alarm needs both size and, over the family, significance."""
    rows = len(view.rows)
    if not rows:
        return [
            Reading(monitor=name, kind=kind, rows=0, value=None, message="no rows")
            for name, _, _ in columns
        ]
    tests = [psi_test(profile.counts, profile.count(values)) for _, profile, values in columns]
    chances = holm([test.p_value for test in tests])
    level = view.settings.alpha / view.grid.windows_a_year
    # Half a week holds other weekdays and other hours than a whole one: that is no drift.
    covered = len(np.unique(view.rows.times // view.grid.cluster))
    whole = covered >= view.grid.length // view.grid.cluster - 1
    readings = []
    for (name, profile, _), test, chance in zip(columns, tests, chances, strict=True):
        limit = max(FLOOR, NATURAL * profile.natural)
        readings.append(
            Reading(
                monitor=name,
                kind=kind,
                rows=rows,
                value=test.effect,
                reference=profile.natural,
                limit=limit,
                alarm=test.effect > limit and chance < level if whole else None,
                message=f"PSI {test.effect:.2f} beyond chance (limit {limit:.2f}, p {chance:.1g})"
                + ("" if whole else f"; {covered} days are too few to judge"),
            )
        )
    return readings


def measure(view: View) -> list[Reading]:
    """Give ``drift:<feature>`` for every input of the signature."""
    if view.reference is None:
        return []
    profiles = view.reference.features
    wide = view.rows.features.shape[1] if len(view.rows) else len(profiles)
    if wide != len(profiles):
        return []
    return drift_readings(
        view,
        [
            (f"drift:{profile.name}", profile, view.rows.features[:, i])
            if len(view.rows)
            else (f"drift:{profile.name}", profile, np.empty(0))
            for i, profile in enumerate(profiles)
        ],
        kind="data",
    )


MONITOR = Monitor(kind="data", part="data", measure=measure)
