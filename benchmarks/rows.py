"""One measured number beside its bar: what every study gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured `value`, the `bar` as it was applied, whether it holds, and how to repeat it.

    A bar on a number that ours is shown beside (a naive test) says that the comparison is a fair
    one: the control has to fail, else the study could not have found anything.
    """

    name: str
    value: float
    bar: str
    ok: bool
    runs: int
    seed: int


def at_most(
    name: str, value: float, bar: float, *, runs: int, seed: int, slack: float = 0.0
) -> Row:
    """Hold if the value is the bar or less. `slack` is what a shorter run may add, and is said."""
    return Row(
        name=name,
        value=float(value),
        bar=f"at most {bar:.6g}{_allowed(slack)}",
        ok=bool(value <= bar + slack),
        runs=runs,
        seed=seed,
    )


def at_least(
    name: str, value: float, bar: float, *, runs: int, seed: int, slack: float = 0.0
) -> Row:
    """Hold if the value is the bar or more. `slack` is what a shorter run may lack, and is said."""
    return Row(
        name=name,
        value=float(value),
        bar=f"at least {bar:.6g}{_allowed(slack)}",
        ok=bool(value >= bar - slack),
        runs=runs,
        seed=seed,
    )


def within(
    name: str, value: float, low: float, high: float, *, runs: int, seed: int, slack: float = 0.0
) -> Row:
    """Hold if the value lies from low to high, with `slack` on either side."""
    return Row(
        name=name,
        value=float(value),
        bar=f"{low:.6g} to {high:.6g}{_allowed(slack)}",
        ok=bool(low - slack <= value <= high + slack),
        runs=runs,
        seed=seed,
    )


def share_error(share: float, runs: int, *, errors: float = 3.0) -> float:
    """Give three standard errors of a share counted over `runs`: the slack of a shorter run."""
    return errors * math.sqrt(share * (1 - share) / runs)


def _allowed(slack: float) -> str:
    return f" (shorter run: {slack:.2g} allowed)" if slack else ""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What the rows of one simulation have in common, and how much a shorter run may miss their bars by.

    `share` says that the value is a share counted over the runs: a shorter run may miss it by three
    standard errors of this one. Another `slack` is given as it is. Full runs have none.
    """

    runs: int
    seed: int
    quick: bool

    def _slack(self, share: float, slack: float) -> float:
        if not self.quick:
            return 0.0
        return share_error(share, self.runs) if share else slack

    def at_most(
        self, name: str, value: float, bar: float, *, share: float = 0.0, slack: float = 0.0
    ) -> Row:
        """Hold if the value is the bar or less."""
        slack = self._slack(share, slack)
        return at_most(name, value, bar, runs=self.runs, seed=self.seed, slack=slack)

    def at_least(
        self, name: str, value: float, bar: float, *, share: float = 0.0, slack: float = 0.0
    ) -> Row:
        """Hold if the value is the bar or more."""
        slack = self._slack(share, slack)
        return at_least(name, value, bar, runs=self.runs, seed=self.seed, slack=slack)

    def within(
        self,
        name: str,
        value: float,
        low: float,
        high: float,
        *,
        share: float = 0.0,
        slack: float = 0.0,
    ) -> Row:
        """Hold if the value lies from low to high."""
        slack = self._slack(share, slack)
        return within(name, value, low, high, runs=self.runs, seed=self.seed, slack=slack)
