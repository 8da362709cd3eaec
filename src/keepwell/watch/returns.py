"""What a version cost, as measured and priced, and what it returned on that: earned less cost, over cost."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from keepwell.core.records.returns import Cost, Earned, Rate, Return
from keepwell.core.records.watching import LedgerEntry
from keepwell.core.settings import PriceSettings
from keepwell.watch.totals import totals

HOUR_SECONDS = 3600.0


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """What one version has used. None: not measured."""

    training_seconds: float | None = None
    """Of all cores, by the run that made it."""
    serving_seconds: float | None = None
    """In model calls of the gateway."""
    served: int = 0
    """Rows that those calls computed."""
    artefact_gb_months: float | None = None
    log_gb_months: float | None = None
    """Its share, by rows, of the prediction log."""


def return_of(
    entries: Sequence[LedgerEntry],
    spending: Spending,
    prices: PriceSettings,
    *,
    model: str,
    over: Earned | None = None,
) -> Return:
    """Give the return of one version at one endpoint. Raises InvalidInput for no entries, or several units.

    ``over``: what it earned over a holdout, which then stands in place of what the entries say against the baseline.
    A part without a price is left out and told. A part that is priced and not measured leaves no return: it would be
    too good.
    """
    earned = over or _over_baseline(entries, model=model)
    labelled = max(sum(entry.labelled for entry in entries), earned.labelled)
    decisions = max(sum(entry.decisions for entry in entries), earned.decisions)
    currency = prices.currency or earned.unit
    costs = (
        _cost("training", "cpu hours", _hours(spending.training_seconds), prices.cpu_hour),
        _cost("serving", "cpu hours", _hours(spending.serving_seconds), prices.cpu_hour),
        _cost("artefact", "GB months", spending.artefact_gb_months, prices.gb_month),
        _cost("log", "GB months", spending.log_gb_months, prices.gb_month),
        _cost("labels", "labels", float(labelled), prices.label),
    )
    cost = sum(each.amount for each in costs if each.amount is not None)
    unpriced = [each.name for each in costs if each.price is None]
    unmeasured = [each.name for each in costs if each.price is not None and each.quantity is None]
    notes = []
    if over is not None:
        notes.append(f"Earned over the units that are held out since plan {over.since_plan}.")
        if labelled > over.labelled:
            notes.append(
                f"Of its {labelled:,} labelled decisions {labelled - over.labelled:,} are not in it: they came before,"
                " or a cohort placed them. Its cost is that of all."
            )
    if len(unpriced) == len(costs):
        notes.append("Nothing is priced: set [prices] in keepwell.toml.")
    elif unpriced:
        notes.append(f"Not priced, so not counted: {', '.join(unpriced)}.")
    if unmeasured:
        notes.append(f"Not measured: {', '.join(unmeasured)}. So there is no return.")
    if spending.serving_seconds is not None and spending.served < decisions:
        notes.append(
            f"Model calls were measured for {spending.served:,} rows of {decisions:,} decisions."
        )
    if currency != earned.unit:
        notes.append(
            f"Prices are in {currency}, what was earned in {earned.unit}. So there is no return."
        )
    rate = None
    if cost > 0 and not unmeasured and currency == earned.unit:
        rate = Rate(
            estimate=(earned.earned - cost) / cost,
            low=(earned.low - cost) / cost,
            high=(earned.high - cost) / cost,
        )
    return Return(
        **msgspec.structs.asdict(earned),
        currency=currency,
        costs=costs,
        cost=cost,
        rate=rate,
        notes=tuple(notes),
    )


def _over_baseline(entries: Sequence[LedgerEntry], *, model: str) -> Earned:
    earned = totals(entries)
    return Earned(
        endpoint=entries[0].endpoint,
        model=model,
        version=entries[0].version,
        unit=earned.unit,
        earned=earned.difference,
        low=earned.low,
        high=earned.high,
        decisions=earned.decisions,
        labelled=earned.labelled,
    )


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / HOUR_SECONDS


def _cost(name: str, unit: str, quantity: float | None, price: float | None) -> Cost:
    amount = None if quantity is None or price is None else quantity * price
    return Cost(name=name, unit=unit, quantity=quantity, price=price, amount=amount)
