"""The alert drill: a made drift goes through the real windows, monitors, judgement and channels.

An alarm that was never heard is no alarm. The drill fails if the made drift raises nothing, if the same rows
without it raise something, or if no channel acknowledges.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.clock import SECOND, Clock, duration
from keepwell.core.errors import NotFound
from keepwell.core.ports.alerts import Channel
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.store import Store
from keepwell.core.project import Project
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.models import ModelVersion, Signature
from keepwell.core.records.predictions import Outcome, Prediction
from keepwell.core.records.traffic import Endpoint
from keepwell.core.records.watching import Alert, Measurement
from keepwell.core.settings import Settings
from keepwell.watch.alerts import ACTOR, deliver
from keepwell.watch.diagnosis import diagnose
from keepwell.watch.grid import Grid
from keepwell.watch.judgement import judge
from keepwell.watch.monitors import measure
from keepwell.watch.readings import View
from keepwell.watch.reference import Reference, Sample, build_reference, read_validation
from keepwell.watch.windows import EndpointWindows, WindowRows

TRIES = 3
MOST_ROWS = 20_000
NAME = "alert drill"


def alert_drill(
    endpoint: str,
    version: ModelVersion,
    *,
    project: Project,
    settings: Settings,
    store: Store,
    blobs: Blobs,
    channels: Sequence[Channel],
    clock: Clock,
) -> CheckResult:
    """Prove that decay of this version would be noticed and heard. Raises NotFound for an unknown endpoint.

    Made from the version's own validation rows: features moved beyond their range, labels turned around. The
    alert is kept with ``drill`` set and closed at once; measurements of a drill are not kept.
    """
    declared = store.get(Endpoint, endpoint)
    if declared is None:
        raise NotFound(f"There is no endpoint {endpoint!r}.")
    signature = version.signature
    declaration = project.models.get(version.model)
    grid = Grid(length=duration(settings.monitors.window), label_delay=declared.label_delay)
    frame = read_validation(version.artefact, blobs=blobs)
    reference = (
        build_reference(frame, signature, grid=grid, declaration=declaration)
        if frame is not None and signature is not None
        else None
    )
    if reference is None or signature is None:
        return _result("fail", "The version has no labelled validation rows to make a drift from.")

    def watch(sample: Sample) -> list[Measurement]:
        view = View(
            rows=_window(sample, signature, version, declared, grid, settings.monitors.min_rows),
            task=signature.task,
            signature=signature,
            reference=reference,
            declaration=declaration,
            grid=grid,
            settings=settings.monitors,
            whole=False,
        )
        return judge(
            [*measure(view, "data"), *measure(view, "labels")],
            {},
            version=version.version,
            endpoint=endpoint,
            start=view.rows.start,
            end=view.rows.end,
            answering=True,
            settings=settings.monitors,
            grid=grid,
            now=clock.now(),
        )

    quiet = [m.monitor for m in watch(reference.sample) if m.state == "alarm"]
    if quiet:
        return _result(
            "fail", f"Without any drift the monitors raise: {', '.join(quiet)}.", false=len(quiet)
        )
    found = watch(drifted(reference, signature))
    alarms = [m for m in found if m.state == "alarm" and m.kind == "performance"]
    moved = [m for m in found if m.state == "alarm" and m.kind == "data"]
    if not alarms or not (moved or not signature.inputs):
        return _result(
            "fail",
            "A made drift of features and labels raised no alarm of both.",
            performance=len(alarms),
            data=len(moved),
        )
    now = clock.now()
    number = store.count(Alert, {"endpoint": endpoint, "drill": True}) + 1
    _, message = diagnose("performance", alarms, {m.monitor: m for m in found})
    alert = Alert(
        id=f"drill-{endpoint}-v{version.version}-{number}",
        endpoint=endpoint,
        model=version.model,
        version=version.version,
        monitor=alarms[0].monitor,
        severity="info",
        message=f"Drill, nothing is wrong: {message}",
        event_time=now,
        opened=now,
        drill=True,
    )
    with store.transaction(actor=ACTOR) as transaction:
        transaction.add(alert, reason=NAME)
    for _ in range(TRIES):
        alert = deliver(alert, channels, store=store, clock=clock, patient=False)
    heard = sorted({d.channel for d in alert.deliveries if d.ok})
    took = max((d.time for d in alert.deliveries if d.ok), default=now) - now
    with store.transaction(actor=ACTOR) as transaction:
        last = transaction.get(Alert, alert.id) or alert
        transaction.replace(
            msgspec.structs.replace(
                last, state="closed", closed=clock.now(), revision=last.revision + 1
            ),
            reason=NAME,
        )
    problems = [d.detail for d in alert.deliveries if not d.ok]
    if not heard:
        why = problems[-1] if problems else "the project declares no channel ([[alerts]])"
        return _result(
            "fail", f"The alarm was raised, but nobody heard it: {why}", raised=len(alarms)
        )
    return _result(
        "pass",
        f"A made drift raised {len(alarms) + len(moved)} alarms, and {', '.join(heard)} acknowledged the"
        f" alert after {took / SECOND:.2f} s.",
        raised=len(alarms) + len(moved),
        heard=", ".join(heard),
        attempts=len(alert.deliveries),
    )


def drifted(reference: Reference, signature: Signature) -> Sample:
    """Turn the labels around and move the features beyond their range: nobody may overlook this."""
    sample = reference.sample
    features = sample.features.copy()
    for i, column in enumerate(signature.inputs):
        if column.dtype == "string":
            features[:, i] = "(drill)"
        else:
            numbers = features[:, i].astype(np.float64)
            finite = numbers[np.isfinite(numbers)]
            far = float(finite.max() + np.ptp(finite) + 1.0) if len(finite) else 1.0
            features[:, i] = far
    if signature.task == "regression":
        labels = sample.labels + 3.0 * (reference.spread + 1.0)
    elif signature.task == "binary":
        labels = 1.0 - sample.labels
    else:
        classes = sample.outputs.shape[1]
        labels = (sample.outputs.argmax(axis=1) + 1.0) % classes
    return Sample(times=sample.times, labels=labels, outputs=sample.outputs, features=features)


def _window(
    sample: Sample,
    signature: Signature,
    version: ModelVersion,
    endpoint: Endpoint,
    grid: Grid,
    least: int,
) -> WindowRows:
    """Put a sample through the real windows as decisions and outcomes of one window, in its own order of time."""
    rows = _positions(len(sample.labels), least)
    start = grid.start_of(int(sample.times[0]))
    windows = EndpointWindows(grid, signature_of=lambda _: signature)
    times = start + (np.arange(len(rows)) * grid.length // len(rows))
    windows.add_predictions(
        Prediction(
            id=f"drill-{i}",
            time=int(time),
            arrived=int(time),
            endpoint=endpoint.name,
            unit="",
            arms=("drill",),
            arm="drill",
            propensity=1.0,
            mirror=False,
            plan=0,
            version=version.version,
            artefact=version.artefact,
            features=tuple(_plain(value) for value in sample.features[row]),
            output=_plain_output(sample.outputs[row]),
            latency=0,
            status="ok",
        )
        for i, (row, time) in enumerate(zip(rows, times, strict=True))
    )
    windows.add_outcomes(
        Outcome(
            id=f"drill-{i}", time=int(time), endpoint=endpoint.name, value=float(sample.labels[row])
        )
        for i, (row, time) in enumerate(zip(rows, times, strict=True))
    )
    return windows.rows(start, version.version, labels=True)


def _positions(have: int, least: int) -> npt.NDArray[np.int64]:
    """Choose rows, in order: all of them, repeated until there are enough to judge by, thinned if very many."""
    if have > MOST_ROWS:
        return np.linspace(0, have - 1, MOST_ROWS).astype(np.int64)
    return np.sort(np.tile(np.arange(have), -(-least // have))).astype(np.int64)


def _plain(value: object) -> object:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value


def _plain_output(output: npt.NDArray[np.float64] | np.floating) -> float | list[float]:
    return output.tolist() if isinstance(output, np.ndarray) else float(output)


def _result(verdict: str, message: str, **measured: int | str) -> CheckResult:
    return CheckResult(
        check=NAME,
        verdict="pass" if verdict == "pass" else "fail",
        message=message,
        measured=dict(measured),
    )
