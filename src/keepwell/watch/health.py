"""Health at a glance: one word for an endpoint, and what stands behind it."""

from __future__ import annotations

from typing import Literal

import msgspec

from keepwell.core.clock import Time
from keepwell.core.ports.store import Reader
from keepwell.core.records.watching import Alert, Measurement, Watermark
from keepwell.watch.alerts import OPEN, champion

State = Literal["healthy", "warning", "critical", "unknown"]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint is. ``worst`` names the monitor behind the state; times are event times."""

    endpoint: str
    state: State
    message: str
    version: int | None
    """The version that answers most; the one measured last where there is no traffic plan."""
    worst: str = ""
    window_start: Time | None = None
    window_end: Time | None = None
    watermark: Time | None = None
    monitors: int = 0
    in_alarm: tuple[str, ...] = ()
    open_alerts: tuple[Alert, ...] = ()


def health(endpoint: str, store: Reader) -> Health:
    """Say how an endpoint is: by its open alerts, then by the newest window of the version that answers.

    ``unknown`` until a window with enough rows was measured.
    """
    alerts = store.find(
        Alert, {"endpoint": endpoint, "state": OPEN, "drill": False}, order=["opened"]
    )
    mark = store.get(Watermark, endpoint)
    version = champion(endpoint, store=store)
    where: dict[str, object] = {"endpoint": endpoint}
    if version is not None:
        where["version"] = version
    newest = store.find(Measurement, where, order=["-start", "-version"], limit=1)
    version = newest[0].version if version is None and newest else version
    latest = _latest(endpoint, version, store=store) if version is not None else []
    alarms = [m for m in latest if m.state == "alarm"]
    state: State = "unknown"
    message, worst = _before_the_first(mark), ""
    if latest and all(m.state == "unknown" for m in latest):
        message = "too few rows in the last window to judge by"
    elif latest:
        state, message = "healthy", f"{len(latest)} monitors within their limits"
    if alarms:
        state, worst = "warning", alarms[0].monitor
        message = alarms[0].message
    if alerts:
        critical = [a for a in alerts if a.severity == "critical"]
        first = (critical or alerts)[0]
        state, worst, message = "critical" if critical else "warning", first.monitor, first.message
    last = max(latest, key=lambda m: m.start, default=None)
    return Health(
        endpoint=endpoint,
        state=state,
        message=message,
        version=version,
        worst=worst,
        window_start=last.start if last else None,
        window_end=last.end if last else None,
        watermark=mark.event_time if mark else None,
        monitors=len(latest),
        in_alarm=tuple(m.monitor for m in alarms),
        open_alerts=tuple(alerts),
    )


def _before_the_first(mark: Watermark | None) -> str:
    if mark is None or not mark.predictions:
        return "no decision has been seen yet"
    return (
        f"{mark.predictions:,} decisions and {mark.outcomes:,} outcomes seen;"
        " a window is measured when later decisions tell that it is over"
    )


def _latest(endpoint: str, version: int, *, store: Reader) -> list[Measurement]:
    """Give each monitor's newest measurement; labels come later, so these may be of two windows."""
    found: dict[str, Measurement] = {}
    rows = store.find(
        Measurement, {"endpoint": endpoint, "version": version}, order=["-start"], limit=500
    )
    for row in rows:
        found.setdefault(row.monitor, row)
    return sorted(found.values(), key=lambda m: m.monitor)
