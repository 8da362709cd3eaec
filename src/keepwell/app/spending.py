"""Measures what each version has used and earned over a holdout, and gives the value ledger with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from keepwell.app.attribution import over_holdout
from keepwell.core.clock import DAY, Time
from keepwell.core.digest import Digest
from keepwell.core.errors import Corrupt, NotFound
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.returns import Return
from keepwell.core.records.traffic import Endpoint
from keepwell.core.records.watching import LedgerEntry
from keepwell.serving.telemetry.meters import SPENT, Work, model_calls
from keepwell.watch.returns import Spending, return_of

if TYPE_CHECKING:
    from keepwell.app.wiring import State

MONTH: Time = 30 * DAY
GB = 1e9
_SIZES: dict[Digest, int] = {}
"""Bytes of artefacts, by digest, which fixes them: measuring reads and checks every file."""


def returns(state: State) -> list[Return]:
    """Give every version of the ledger with what it earned, what it cost, and the return on it, by endpoint.

    Where units are held out, what versions have earned since is told against those, and not against the baseline.
    """
    store = state.store
    endpoints = store.find(Endpoint)
    models = {endpoint.name: endpoint.model for endpoint in endpoints}
    found: dict[tuple[str, int], list[LedgerEntry]] = {}
    for entry in store.find(LedgerEntry, order=["endpoint", "version", "start"]):
        found.setdefault((entry.endpoint, entry.version), []).append(entry)
    over = {
        (endpoint.name, version): earned
        for endpoint in endpoints
        for version, earned in over_holdout(state, endpoint).items()
    }
    for key in over:
        found.setdefault(key, [])
    calls = model_calls(state.state / "run" / "meters", state.state / SPENT)
    log = _gb_months(state.state / "log", now=state.clock.now())
    rows = sum(work.rows for work in calls.values())
    given = []
    for (endpoint, number), entries in found.items():
        model = models.get(endpoint, "")
        version = store.get(ModelVersion, model, number)
        work = calls.get((endpoint, number))
        share = work.rows / rows if work is not None and rows else None
        spending = _spending(state, version, work, log=None if share is None else log * share)
        given.append(
            return_of(
                entries,
                spending,
                state.settings.prices,
                model=model,
                over=over.get((endpoint, number)),
            )
        )
    return given


def _spending(
    state: State, version: ModelVersion | None, work: Work | None, *, log: float | None
) -> Spending:
    return Spending(
        training_seconds=_training_seconds(state, version),
        serving_seconds=None if work is None else (work.spent + work.failed_spent) / 1e9,
        served=0 if work is None else work.rows,
        artefact_gb_months=_artefact_gb_months(state, version),
        log_gb_months=log,
    )


def _training_seconds(state: State, version: ModelVersion | None) -> float | None:
    from keepwell.training.train import CPU_SECONDS  # brings polars, and the server starts without

    if version is None or not version.run:
        return None
    try:
        run = state.tracker.run(version.run)
    except NotFound:
        return None
    return next((metric.value for metric in run.metrics if metric.key == CPU_SECONDS), None)


def _artefact_gb_months(state: State, version: ModelVersion | None) -> float | None:
    from keepwell.training.artefacts import read_artefact

    if version is None:
        return None
    size = _SIZES.get(version.artefact)
    if size is None:
        try:
            files = read_artefact(version.artefact, blobs=state.blobs).files
            size = sum(state.blobs.path(digest).stat().st_size for digest in set(files.values()))
        except (NotFound, Corrupt):
            return None  # 'keepwell evidence verify' tells
        _SIZES[version.artefact] = size
    return size / GB * max(state.clock.now() - version.created, 0) / MONTH


def _gb_months(folder: Path, *, now: Time) -> float:
    """Sum size times age of the log's files as they are; what compaction has replaced is not in it."""
    total = 0.0
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # compacted right now
        if path.is_file():
            total += found.st_size / GB * max(now - found.st_mtime_ns // 1000, 0) / MONTH
    return total
