"""Alerts: opened beside the decision they cause, brought to people afterwards, tried again until somebody has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from keepwell.core.clock import MINUTE, SECOND, Clock, Time, duration
from keepwell.core.errors import Conflict, Unavailable
from keepwell.core.ports.alerts import Channel
from keepwell.core.ports.store import Reader, Store, Transaction
from keepwell.core.records.traffic import TrafficPlan
from keepwell.core.records.watching import Alert, Decision, Delivery, Measurement, Severity
from keepwell.core.settings import MonitorSettings
from keepwell.watch.diagnosis import diagnose

ACTOR = "keepwell"
CRITICAL = frozenset({"performance", "business"})
OPEN = ("open", "delivered", "undelivered")
MOST_ATTEMPTS = 20
"""Attempts at one channel; at the longest spacing that is a quarter of an hour of an absent receiver."""
FIRST_WAIT: Time = 1 * SECOND
LONGEST_WAIT: Time = 1 * MINUTE


def open_alerts(endpoint: str, version: int, *, store: Reader) -> dict[str, Alert]:
    """Give the alerts of a version that are not closed, by kind of monitor."""
    found = {}
    where = {"endpoint": endpoint, "version": version, "state": OPEN, "drill": False}
    for alert in store.find(Alert, where):
        kinds = store.find(
            Measurement,
            {"endpoint": endpoint, "version": version, "monitor": alert.monitor},
            limit=1,
        )
        if kinds:
            found[kinds[0].kind] = alert
    return found


def raise_alerts(
    measured: Sequence[Measurement],
    *,
    model: str,
    complete: Time,
    window: Mapping[str, Measurement],
    settings: MonitorSettings,
    transaction: Transaction,
    now: Time,
) -> list[Alert]:
    """Open, keep or close one version's alerts after a window, and decide on a renewal where one is due.

    One alert a kind and version is open at a time. ``complete`` is the event time at which the evidence was
    complete; ``window`` all of the window's measurements by monitor. Gives the alerts that are new.
    """
    endpoint, version = measured[0].endpoint, measured[0].version
    standing = open_alerts(endpoint, version, store=transaction)
    opened = []
    for kind in sorted({m.kind for m in measured}):
        own = [m for m in measured if m.kind == kind]
        alarms = sorted((m for m in own if m.state == "alarm"), key=_weight)
        alert = standing.get(kind)
        if not alarms:
            if alert is not None and any(m.state == "ok" for m in own):
                _close(alert, "back within its limits", transaction=transaction, now=now)
            continue
        if alert is None:
            _, message = diagnose(kind, alarms, window)
            alert = Alert(
                id=f"alert-{endpoint}-v{version}-{kind}-{complete // SECOND}",
                endpoint=endpoint,
                model=model,
                version=version,
                monitor=alarms[0].monitor,
                severity=_severity(kind),
                message=message,
                event_time=complete,
                opened=now,
            )
            transaction.add(alert, reason=message)
            opened.append(alert)
        if kind in settings.retrain_on:
            _decide(alert, complete, settings=settings, transaction=transaction, now=now)
    return opened


def close_retired(
    endpoint: str, *, answering: Sequence[int], transaction: Transaction, now: Time
) -> None:
    """Close the alerts of versions that no longer answer."""
    for alert in transaction.find(Alert, {"endpoint": endpoint, "state": OPEN, "drill": False}):
        if alert.version not in answering:
            _close(alert, "the version no longer answers", transaction=transaction, now=now)


def champion(endpoint: str, *, store: Reader) -> int | None:
    """Give the version that answers most by the newest traffic plan; None without a plan."""
    plans = store.find(TrafficPlan, {"endpoint": endpoint}, order=["-revision"], limit=1)
    if not plans or not plans[0].arms:
        return None
    return max(plans[0].arms, key=lambda arm: arm.weight).version


def _decide(
    alert: Alert,
    complete: Time,
    *,
    settings: MonitorSettings,
    transaction: Transaction,
    now: Time,
) -> None:
    """Ask for a renewal, unless one was asked for lately or the version is no longer the one to renew."""
    answering = champion(alert.endpoint, store=transaction)
    if answering is not None and answering != alert.version:
        return
    recent = {
        "endpoint": alert.endpoint,
        "kind": "retrain",
        "event_time >": complete - duration(settings.cooldown),
    }
    unanswered = {"endpoint": alert.endpoint, "kind": "retrain", "state": "open"}
    if transaction.count(Decision, recent) or transaction.count(Decision, unanswered):
        return
    transaction.add(
        Decision(
            id=f"retrain-{alert.endpoint}-v{alert.version}-{complete // SECOND}",
            endpoint=alert.endpoint,
            model=alert.model,
            version=alert.version,
            kind="retrain",
            alert=alert.id,
            reason=alert.message,
            event_time=complete,
            made=now,
        ),
        reason=alert.message,
    )


def deliver(
    alert: Alert, channels: Sequence[Channel], *, store: Store, clock: Clock, patient: bool = True
) -> Alert:
    """Try every channel that has not acknowledged yet and is due again, and record each attempt.

    An alert counts as delivered once any channel has acknowledged it; the others are still tried, at most
    twenty times with growing waits. With ``patient`` false the waits are left out. Sending happens outside
    any transaction; after a crash between sending and recording a channel may be sent an alert twice.
    """
    attempts = []
    for channel in channels:
        if patient and not is_due(alert, channel.name, clock.now()):
            continue
        if not patient and has_acknowledged(alert, channel.name):
            continue
        try:
            detail, ok = channel.send(alert), True
        except Unavailable as error:
            detail, ok = str(error), False
        attempts.append(
            Delivery(channel=channel.name, time=clock.now(), ok=ok, detail=detail[:500])
        )
    if not attempts:
        return alert
    for _ in range(3):
        stored = store.get(Alert, alert.id) or alert
        reached = any(d.ok for d in (*stored.deliveries, *attempts))
        state = stored.state
        if state != "closed":
            state = "delivered" if reached else "undelivered"
        updated = msgspec.structs.replace(
            stored,
            deliveries=(*stored.deliveries, *attempts),
            state=state,
            revision=stored.revision + 1,
        )
        try:
            with store.transaction(actor=ACTOR) as transaction:
                transaction.replace(updated, reason=f"delivery: {state}")
        except (
            Conflict
        ):  # closed meanwhile, by a person perhaps: the attempts belong to what is there now
            continue
        return updated
    return alert


def has_acknowledged(alert: Alert, channel: str) -> bool:
    """Tell whether a channel has this alert."""
    return any(d.ok for d in alert.deliveries if d.channel == channel)


def is_due(alert: Alert, channel: str, now: Time) -> bool:
    """Tell whether a channel should be tried (again) now."""
    attempts = [d for d in alert.deliveries if d.channel == channel]
    if any(d.ok for d in attempts) or len(attempts) >= MOST_ATTEMPTS:
        return False
    if not attempts:
        return True
    wait = min(FIRST_WAIT * 2 ** (len(attempts) - 1), LONGEST_WAIT)
    return bool(now >= attempts[-1].time + wait)


def is_settled(alert: Alert, channels: Sequence[Channel]) -> bool:
    """Tell whether nothing more will be tried."""
    return all(
        has_acknowledged(alert, channel.name)
        or sum(d.channel == channel.name for d in alert.deliveries) >= MOST_ATTEMPTS
        for channel in channels
    )


def _close(alert: Alert, why: str, *, transaction: Transaction, now: Time) -> None:
    transaction.replace(
        msgspec.structs.replace(alert, state="closed", closed=now, revision=alert.revision + 1),
        reason=why,
    )


def _severity(kind: str) -> Severity:
    return "critical" if kind in CRITICAL else "warning"


def _weight(measured: Measurement) -> tuple[float, str]:
    distance = measured.score
    if distance is None:
        distance = (measured.value or 0.0) / (measured.limit or 1.0)
    return -abs(distance), measured.monitor
