"""The watcher: reads the prediction log, keeps windows, and writes what the monitors find into the store.

It writes measurements, ledger entries, alerts and decisions, and acts on none. A window's results, its
alerts and the place to read on from change in one transaction, so it may die at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keepwell.core.clock import Clock, Time, duration
from keepwell.core.errors import NotFound
from keepwell.core.ports.alerts import Channel
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.predictionlog import PredictionLog
from keepwell.core.ports.store import Store
from keepwell.core.project import Project
from keepwell.core.records.traffic import Endpoint
from keepwell.core.records.watching import Alert, Watermark
from keepwell.core.settings import Settings
from keepwell.watch.alerts import ACTOR, deliver, is_settled
from keepwell.watch.grid import Grid
from keepwell.watch.positions import Positions, oldest
from keepwell.watch.steps import Watched, take_step
from keepwell.watch.windows import EndpointWindows

BATCH = 50_000
MOST = 1_000_000
"""Records read before windows are closed: everything acknowledged, but for a log far behind."""


class Watcher:
    """Watches all endpoints of one project over one prediction log. Not safe from several threads at once."""

    def __init__(
        self,
        *,
        project: Project,
        settings: Settings,
        store: Store,
        log: PredictionLog,
        blobs: Blobs,
        channels: Sequence[Channel],
        clock: Clock,
    ) -> None:
        self._project = project
        self._settings = settings
        self._store = store
        self._log = log
        self._blobs = blobs
        self._channels = tuple(channels)
        self._clock = clock
        self._watched: dict[str, Watched] = {}
        self._undelivered: dict[str, Alert] = {}
        self._saved: dict[str, Watermark] = {mark.endpoint: mark for mark in store.find(Watermark)}
        self._positions = Positions(oldest(mark.cursor for mark in self._saved.values()))
        for alert in store.find(Alert, {"drill": False}):
            self._wait_for(alert)

    def tick(self) -> bool:
        """Read what is new, close the windows that are complete, deliver alerts. Says whether it read anything.

        Windows close only after everything acknowledged so far was read (up to a million records), so the
        segments of several writers may be read one after the other.
        """
        read = self._read()
        self._close(dict.fromkeys(self._watched))
        self._deliver()
        return read

    def settle(self, endpoint: str | None = None) -> None:
        """Close all windows as they are, of one endpoint or all: the end of a replay, where nothing more comes.

        What arrives later for these windows counts as late. A window that is cut short so is judged by the
        rows it has; its volume is not.
        """
        self._read()
        names = list(self._watched) if endpoint is None else [endpoint]
        unknown = [name for name in names if name not in self._watched]
        if unknown:
            raise NotFound(f"The endpoint {unknown[0]!r} has not been watched.", where="settle")
        self._close({name: self._watched[name].windows.last_close() for name in names})
        self._deliver()

    def windows(self, endpoint: str) -> EndpointWindows | None:
        """Give the open windows of an endpoint, to look at."""
        watched = self._watched.get(endpoint)
        return watched.windows if watched else None

    def _read(self) -> bool:
        count = 0
        while count < MOST:
            batch = self._log.read(self._positions.cursor, limit=BATCH)
            records = len(batch.predictions) + len(batch.outcomes)
            if not records and dict(batch.cursor) == self._positions.cursor:
                break
            needed: dict[str, Time] = {}
            for name, predictions in _by_endpoint(batch.predictions).items():
                watched = self._watch(name)
                if watched is not None:
                    needed[name] = watched.windows.add_predictions(predictions)
            for name, outcomes in _by_endpoint(batch.outcomes).items():
                watched = self._watch(name)
                if watched is not None:
                    until = watched.windows.add_outcomes(outcomes)
                    needed[name] = max(needed.get(name, 0), until)
            self._positions.read(batch.cursor, needed)
            count += records
        return count > 0

    def _watch(self, name: str) -> Watched | None:
        """Begin to watch an endpoint at its first record; None for one that nobody declared."""
        if name in self._watched:
            return self._watched[name]
        endpoint = self._store.get(Endpoint, name)
        if endpoint is None:
            return None
        grid = Grid(
            length=duration(self._settings.monitors.window), label_delay=endpoint.label_delay
        )
        saved = self._saved.get(name)
        watched = Watched(
            endpoint=endpoint,
            declaration=self._project.models.get(endpoint.model),
            settings=self._settings.monitors,
            grid=grid,
            store=self._store,
            blobs=self._blobs,
            closed=saved.event_time if saved else 0,
        )
        self._watched[name] = watched
        return watched

    def _close(self, until: dict[str, Time | None]) -> None:
        for name, limit in until.items():
            watched = self._watched[name]
            cut = limit is not None
            for complete in watched.windows.due(limit):
                step = watched.measure(complete, cut=cut and complete > watched.windows.watermark)
                closed = {n: w.windows.closed for n, w in self._watched.items()}
                cursor = self._positions.safe(closed | {name: complete})
                saved = self._saved.get(name)
                mark = Watermark(
                    endpoint=name,
                    event_time=complete,
                    cursor=cursor,
                    predictions=(saved.predictions if saved else 0) + step.predictions,
                    outcomes=(saved.outcomes if saved else 0) + step.outcomes,
                    updated=self._clock.now(),
                    revision=saved.revision + 1 if saved else 1,
                )
                with self._store.transaction(actor=ACTOR) as transaction:
                    if saved is None:
                        transaction.add(mark)
                    else:
                        transaction.replace(mark)
                    opened = take_step(
                        watched, step, transaction=transaction, now=self._clock.now()
                    )
                self._saved[name] = mark
                watched.windows.close(complete)
                self._positions.forget(closed | {name: complete})
                for alert in opened:
                    self._wait_for(alert)

    def _wait_for(self, alert: Alert) -> None:
        closed = alert.state == "closed" and any(d.ok for d in alert.deliveries)
        if not closed and not is_settled(alert, self._channels):
            self._undelivered[alert.id] = alert

    def _deliver(self) -> None:
        for id in list(self._undelivered):
            alert = self._store.get(Alert, id)
            if alert is not None:
                alert = deliver(alert, self._channels, store=self._store, clock=self._clock)
            if alert is None or is_settled(alert, self._channels):
                del self._undelivered[id]


def _by_endpoint(records: Sequence[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for record in records:
        groups.setdefault(record.endpoint, []).append(record)
    return groups
