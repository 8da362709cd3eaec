"""``keepwell ledger``: what each version earned, what it cost, and the return on it."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import print_json, project_state, table
from keepwell.app.spending import returns
from keepwell.core.records.returns import Cost, Return
from keepwell.core.records.watching import LedgerEntry


def run(given: argparse.Namespace) -> int:
    """Show the value ledger by version."""
    state = project_state(given)
    found = returns(state)
    if given.json:
        entries = state.store.find(LedgerEntry, order=["endpoint", "version", "start"])
        print_json({"returns": found, "entries": entries})
        return 0
    if not found:
        sys.stdout.write(
            "Nothing is earned yet: the ledger counts a window when it is over and its labels are due.\n"
        )
        return 0
    rows = [
        (
            each.endpoint,
            f"v{each.version}",
            f"{each.labelled:,} of {each.decisions:,}",
            f"{each.earned:+,.0f} {each.unit} ({each.low:,.0f} to {each.high:,.0f})",
            f"the {each.against}",
            f"{each.cost:,.2f} {each.currency}" if _priced(each) else "not priced",
            rate_text(each),
        )
        for each in found
    ]
    heads = ("endpoint", "version", "labelled", "earned (95% interval)", "over", "cost", "return")
    sys.stdout.write(table(rows, heads) + "\n")
    for each in found:
        lines = [f"  {cost_text(cost, each.currency)}" for cost in each.costs]
        lines += [f"  {note}" for note in each.notes]
        sys.stdout.write(f"\n{each.model}/{each.version}\n" + "\n".join(lines) + "\n")
    return 0


def _priced(each: Return) -> bool:
    return any(cost.amount is not None for cost in each.costs)


def rate_text(each: Return) -> str:
    """Write the return, in multiples of the cost, with its interval."""
    if each.rate is None:
        return "none"
    return f"{each.rate.estimate:+,.1f} ({each.rate.low:,.1f} to {each.rate.high:,.1f})"


def cost_text(cost: Cost, currency: str) -> str:
    """Write one part of a cost: how much, at which price."""
    if cost.quantity is None:
        return f"{cost.name}: not measured"
    much = f"{cost.name}: {cost.quantity:,.6g} {cost.unit}"
    if cost.amount is None:
        return f"{much}, not priced"
    return f"{much} at {cost.price:g} = {cost.amount:,.4g} {currency}"
