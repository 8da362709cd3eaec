"""A made world whose truth is known: late or not, by one number and one text, with days that differ."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tests.databases import migrated_file

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.stores.sql import SqlStore, open_store
from keepwell.core.clock import DAY, WEEK, FixedClock, moment
from keepwell.core.digest import canonical
from keepwell.core.errors import Unavailable
from keepwell.core.ports.predictionlog import LogBatch
from keepwell.core.project import ModelDeclaration, Project
from keepwell.core.records.data import Column
from keepwell.core.records.models import Artefact, ModelVersion, Signature
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import Arm, Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert
from keepwell.core.settings import (
    EndpointSettings,
    MonitorSettings,
    ProjectSettings,
    Settings,
)
from keepwell.watch.watcher import Watcher

START = moment("2013-01-03")
"""A Thursday, where the windows of a week begin."""
SIGNATURE = Signature(
    inputs=(
        Column(name="x", dtype="float64", nullable=True),
        Column(name="z", dtype="float64", nullable=True),
        Column(name="place", dtype="string", nullable=True),
    ),
    task="binary",
)
NUMERIC = Signature(inputs=SIGNATURE.inputs[:2], task="binary")


@dataclasses.dataclass(frozen=True)
class World:
    """How rows come about. ``shift`` moves x (data drift), ``slope`` and ``intercept`` the truth (concept drift)."""

    shift: float = 0.0
    slope: float = 1.0
    intercept: float = 0.0
    wide: float = 1.0
    day_spread: float = 0.0
    """Standard deviation, in logits, of a day's own trouble that the model cannot see."""


@dataclasses.dataclass(frozen=True)
class Rows:
    times: np.ndarray
    x: np.ndarray
    z: np.ndarray
    place: np.ndarray
    p: np.ndarray
    y: np.ndarray


def model(x):
    """The model under watch: it knows the truth of the world as it was."""
    return 1 / (1 + np.exp(-(x - 1.0)))


def draw(rng, *, since, until, a_day, world=None) -> Rows:
    world = world or World()
    days = (until - since) // DAY
    n = days * a_day
    times = np.sort(rng.integers(since, until, size=n))
    x = rng.normal(size=n) * world.wide + world.shift
    trouble = rng.normal(size=days + 1) * world.day_spread
    logit = world.slope * (x - 1.0) + world.intercept + trouble[(times - since) // DAY]
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)
    place = np.array(["ewr", "jfk", "lga"])[rng.integers(0, 3, size=n)]
    return Rows(times, x, rng.normal(size=n), place, model(x), y)


def validation(rows: Rows, *, numeric: bool) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "__id": [f"v{i}" for i in range(len(rows.times))],
            "__time": rows.times,
            "__unit": ["u"] * len(rows.times),
            "__label": rows.y,
            "__prediction": rows.p,
            "__baseline": np.where(rows.x > 2.0, 1.0, 0.0),
            "x": rows.x,
            "z": rows.z,
        }
    )
    return frame if numeric else frame.with_columns(pl.Series("place", rows.place))


def predictions(rows: Rows, *, version=1, mirror=False, prefix="d", numeric=False):
    return [
        Prediction(
            id=f"{prefix}{int(t)}-{i}",
            time=int(t),
            arrived=int(t),
            endpoint="late",
            unit="u",
            arms=("a",),
            arm="a",
            propensity=1.0,
            mirror=mirror,
            plan=1,
            version=version,
            artefact="sha256:0",
            features=(x, z) if numeric else (x, z, place),
            output=p,
            latency=10,
            status="ok",
        )
        for i, (t, x, z, place, p) in enumerate(
            zip(
                rows.times.tolist(),
                rows.x.tolist(),
                rows.z.tolist(),
                rows.place.tolist(),
                rows.p.tolist(),
                strict=True,
            )
        )
    ]


def outcomes(rows: Rows, *, prefix="d", delay=DAY // 2):
    return [
        Outcome(id=f"{prefix}{int(t)}-{i}", time=int(t) + delay, endpoint="late", value=y)
        for i, (t, y) in enumerate(zip(rows.times.tolist(), rows.y.tolist(), strict=True))
    ]


class ListLog:
    """A prediction log in memory, in segments: real in everything but the disk."""

    def __init__(self) -> None:
        self.segments: dict[str, list[Prediction | Outcome]] = {}

    def append(self, records, *, segment="one") -> None:
        self.segments.setdefault(segment, []).extend(records)

    def read(
        self,
        cursor: Mapping[str, int],
        *,
        limit: int = 50_000,
        until: Mapping[str, int] | None = None,
    ) -> LogBatch:
        found: list[Prediction | Outcome] = []
        after = dict(cursor)
        for name in sorted(self.segments):
            place = after.get(name, 0)
            part = self.segments[name][place : place + limit - len(found)]
            after[name] = place + len(part)
            found += part
        return LogBatch(
            predictions=tuple(r for r in found if isinstance(r, Prediction)),
            outcomes=tuple(r for r in found if isinstance(r, Outcome)),
            cursor=after,
        )


class Inbox:
    """A channel that keeps what it is sent, and can be unplugged."""

    def __init__(self, name="inbox") -> None:
        self.name = name
        self.alerts: list[Alert] = []
        self.down = False

    def send(self, alert) -> str:
        if self.down:
            raise Unavailable("Nobody answers at the inbox.")
        self.alerts.append(alert)
        return "200 OK"


def kpi(predictions, outcomes):
    """A warning costs 1, a missed late one costs 5."""
    warned = np.asarray(predictions) > 0.25
    return np.where(warned, -1.0, np.where(np.asarray(outcomes) > 0.5, -5.0, 0.0))


def rule(features):
    """The baseline: warn nobody unless x is large."""
    return np.where(features["x"].to_numpy() > 2.0, 1.0, 0.0)


class Site:
    """A project with one endpoint, its store, log and watcher."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seed=0,
        reference_days=21,
        a_day=200,
        numeric=False,
        world=None,
        kpi_function=kpi,
        store: SqlStore | None = None,
        monitors=None,
    ) -> None:
        self.folder = folder or Path(tempfile.mkdtemp())
        self.rng = np.random.default_rng(seed)
        self.a_day = a_day
        self.numeric = numeric
        self.world = world or World()
        self.clock = FixedClock(moment("2026-01-01"))
        self.blobs = FileBlobs(self.folder / "blobs")
        self.store = store or open_store(
            migrated_file(self.folder / "keepwell.db"), clock=self.clock
        )
        self.log = ListLog()
        self.inbox = Inbox()
        self.project = Project(name="made")
        self.project.models["late"] = ModelDeclaration(
            name="late",
            source="s",
            features=("x", "z") if numeric else ("x", "z", "place"),
            label="y",
            label_known_at="t",
            task="binary",
            risk="low",
            label_delay=DAY,
            unit="",
            baseline_function=rule,
            kpi_function=kpi_function,
            kpi_unit="USD",
        )
        self.settings = Settings(
            project=ProjectSettings(name="made", module="made"),
            endpoints={"late": EndpointSettings(model="late")},
            monitors=monitors or MonitorSettings(),
        )
        reference = draw(
            self.rng, since=START - reference_days * DAY, until=START, a_day=a_day, world=self.world
        )
        self.now = START
        if self.store.get(Endpoint, "late") is None:
            with self.store.transaction(actor="test") as transaction:
                transaction.add(
                    Endpoint(name="late", model="late", label_delay=DAY, created=self.clock.now())
                )
            self.register(1, reference)

    def register(self, version: int, reference: Rows) -> ModelVersion:
        path = self.folder / f"validation-{version}.parquet"
        validation(reference, numeric=self.numeric).write_parquet(path)
        artefact = self.blobs.put(
            canonical(Artefact(files={"validation.parquet": self.blobs.put_file(path)}))
        )
        registered = ModelVersion(
            model="late",
            version=version,
            artefact=artefact,
            signature=NUMERIC if self.numeric else SIGNATURE,
            author="ann",
            created=self.clock.now(),
            updated=self.clock.now(),
        )
        with self.store.transaction(actor="test") as transaction:
            transaction.add(registered)
        return registered

    def plan(self, revision: int, *versions: int) -> None:
        with self.store.transaction(actor="test") as transaction:
            transaction.add(
                TrafficPlan(
                    endpoint="late",
                    revision=revision,
                    arms=tuple(
                        Arm(
                            name=f"v{v}",
                            model="late",
                            version=v,
                            artefact="sha256:0",
                            weight=10_000 // len(versions),
                        )
                        for v in versions
                    ),
                    salt="s",
                    reason="test",
                    by="test",
                    created=self.clock.now(),
                )
            )

    def watcher(self, **other) -> Watcher:
        parts: dict[str, Any] = {
            "project": self.project,
            "settings": self.settings,
            "store": self.store,
            "log": self.log,
            "blobs": self.blobs,
            "channels": [self.inbox],
            "clock": self.clock,
        }
        return Watcher(**(parts | other))

    def live(self, *, weeks=1, world=None, version=1, mirror=False, outcomes_too=True) -> Rows:
        """Let some weeks of traffic happen and their labels become known."""
        rows = draw(
            self.rng,
            since=self.now,
            until=self.now + weeks * WEEK,
            a_day=self.a_day,
            world=world or self.world,
        )
        self.now += weeks * WEEK
        self.log.append(predictions(rows, version=version, mirror=mirror, numeric=self.numeric))
        if outcomes_too:
            self.log.append(outcomes(rows))
        return rows
