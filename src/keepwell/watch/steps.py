"""One step of watching: at one event time parts of windows are complete; measure them, then write it all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from keepwell.core.clock import Time
from keepwell.core.errors import Corrupt, NotFound
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.store import Reader, Store, Transaction
from keepwell.core.project import ModelDeclaration
from keepwell.core.records.models import ModelVersion, Signature, Task
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert, LedgerEntry, Measurement
from keepwell.core.settings import MonitorSettings
from keepwell.watch.alerts import close_retired, raise_alerts
from keepwell.watch.grid import Grid
from keepwell.watch.judgement import judge
from keepwell.watch.ledger import ledger_entry
from keepwell.watch.monitors import measure
from keepwell.watch.readings import Reading, View
from keepwell.watch.reference import Reference, build_reference, read_validation
from keepwell.watch.windows import EndpointWindows

Part = Literal["data", "labels"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One version's part of one window: its readings, not judged yet, and its ledger entry."""

    version: int
    start: Time
    part: Part
    answering: bool
    readings: list[Reading]
    view: View


@dataclass(frozen=True, kw_only=True)
class Step:
    """All that is complete at one event time, and how many decisions and outcomes that closes."""

    complete: Time
    measured: list[Measured]
    predictions: int = 0
    outcomes: int = 0


@dataclass(kw_only=True)
class Watched:
    """One endpoint under watch: its open windows and what its versions are held against."""

    endpoint: Endpoint
    declaration: ModelDeclaration | None
    settings: MonitorSettings
    grid: Grid
    store: Store
    blobs: Blobs
    closed: Time = 0
    windows: EndpointWindows = field(init=False)
    _versions: dict[int, ModelVersion] = field(init=False, default_factory=dict)
    _references: dict[int, Reference | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.windows = EndpointWindows(self.grid, signature_of=self.signature, closed=self.closed)

    def signature(self, version: int) -> Signature | None:
        """Give a version's signature; None for one that is not registered, or was registered without."""
        found = self._version(version)
        return found.signature if found else None

    def measure(self, complete: Time, *, cut: bool = False) -> Step:
        """Let the monitors look at everything that is complete at this event time.

        ``cut`` marks windows that are closed before their end was reached.
        """
        found: list[Measured] = []
        predictions = outcomes = 0
        for start in self._starts(complete):
            parts: list[Part] = []
            if self.grid.data_closes(start) == complete:
                parts.append("data")
            if self.grid.labels_close(start) == complete:
                parts.append("labels")
            for part in parts:
                versions = self.windows.versions(start)
                rows = {v: self.windows.rows(start, v, labels=part == "labels") for v in versions}
                held_out = self.windows.held_out(start)
                volume = held_out + sum(int(own.answered.sum()) for own in rows.values())
                predictions += held_out if part == "data" else 0
                earlier = self._earlier_volumes(start)
                for version, own in rows.items():
                    seen = View(
                        rows=own,
                        task=self._task(self.signature(version)),
                        signature=self.signature(version),
                        reference=self.reference(version),
                        declaration=self.declaration,
                        grid=self.grid,
                        settings=self.settings,
                        volume=volume,
                        # The first window of an endpoint hardly ever begins with its traffic.
                        earlier_volumes=tuple((earlier or [])[1:]),
                        whole=not cut and earlier is not None,
                    )
                    answering = bool(seen.rows.answered.any())
                    readings = measure(seen, part)
                    found.append(
                        Measured(
                            version=version,
                            start=start,
                            part=part,
                            answering=answering,
                            readings=readings,
                            view=seen,
                        )
                    )
                    if part == "data":
                        predictions += int(seen.rows.answered.sum())
                    else:
                        outcomes += int(seen.labelled.answered.sum())
        return Step(complete=complete, measured=found, predictions=predictions, outcomes=outcomes)

    def reference(self, version: int) -> Reference | None:
        """Give what a version is held against; None where its artefact has no validation rows."""
        if self._version(version) is None:
            return None  # registered later, perhaps: look again
        if version not in self._references:
            self._references[version] = self._build(version)
        return self._references[version]

    def _build(self, version: int) -> Reference | None:
        registered = self._version(version)
        if registered is None or registered.signature is None:
            return None
        try:
            frame = read_validation(registered.artefact, blobs=self.blobs)
        except (NotFound, Corrupt):
            # The gateway refuses such a version; here the windows are still counted, without a yardstick.
            return None
        if frame is None:
            return None
        return build_reference(
            frame, registered.signature, grid=self.grid, declaration=self.declaration
        )

    def _version(self, version: int) -> ModelVersion | None:
        if version not in self._versions:
            found = self.store.get(ModelVersion, self.endpoint.model, version)
            if found is None:
                return None
            self._versions[version] = found
        return self._versions[version]

    def _starts(self, complete: Time) -> list[Time]:
        length, delay = self.grid.length, self.grid.label_delay
        return sorted({complete - length - delay, complete - length})

    def _task(self, signature: Signature | None) -> Task:
        if signature is not None:
            return signature.task
        return self.declaration.task if self.declaration is not None else "regression"

    def _earlier_volumes(self, start: Time) -> list[int] | None:
        """Give the endpoint's volume by earlier window, oldest first; None if this is the first."""
        rows = self.store.find(
            Measurement,
            {"endpoint": self.endpoint.name, "monitor": "volume", "start <": start},
            order=["start"],
        )
        volumes = {row.start: int(row.value or 0) for row in rows}
        return [volumes[s] for s in sorted(volumes)] or None


def take_step(watched: Watched, step: Step, *, transaction: Transaction, now: Time) -> list[Alert]:
    """Judge a step and write its measurements, ledger entries, alerts and decisions. Gives the new alerts."""
    name = watched.endpoint.name
    in_plan = _versions_in_plan(name, store=transaction)
    opened: list[Alert] = []
    for part in step.measured:
        earlier = transaction.find(
            Measurement,
            {
                "endpoint": name,
                "version": part.version,
                "monitor": [reading.monitor for reading in part.readings],
                "start <": part.start,
            },
            order=["start"],
        )
        history: dict[str, list[Measurement]] = {}
        for row in earlier:
            history.setdefault(row.monitor, []).append(row)
        measured = judge(
            part.readings,
            history,
            version=part.version,
            endpoint=name,
            start=part.start,
            end=part.start + watched.grid.length,
            answering=part.answering,
            settings=watched.settings,
            grid=watched.grid,
            now=now,
        )
        for row in measured:
            transaction.replace(row)
        entry = _entry(part, watched, now=now)
        if entry is not None:
            transaction.replace(entry)
        if part.answering and measured and (in_plan is None or part.version in in_plan):
            window = transaction.find(
                Measurement, {"endpoint": name, "version": part.version, "start": part.start}
            )
            opened += raise_alerts(
                measured,
                model=watched.endpoint.model,
                complete=step.complete,
                window={row.monitor: row for row in window},
                settings=watched.settings,
                transaction=transaction,
                now=now,
            )
    if in_plan is not None:
        close_retired(name, answering=sorted(in_plan), transaction=transaction, now=now)
    return opened


def _entry(part: Measured, watched: Watched, *, now: Time) -> LedgerEntry | None:
    if part.part == "data":
        return None
    return ledger_entry(part.view, endpoint=watched.endpoint.name, version=part.version, now=now)


def _versions_in_plan(endpoint: str, *, store: Reader) -> set[int] | None:
    plans = store.find(TrafficPlan, {"endpoint": endpoint}, order=["-revision"], limit=1)
    return {arm.version for arm in plans[0].arms} if plans else None
