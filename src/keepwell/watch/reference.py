"""What a version looked like when it was judged: the yardstick that monitors hold its live windows against.

Made from ``validation.parquet``, which training keeps inside the artefact, so it is as immutable as the
model itself.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from keepwell.core.digest import Digest
from keepwell.core.errors import Corrupt, KeepwellError
from keepwell.core.ports.blobs import Blobs
from keepwell.core.project import ModelDeclaration
from keepwell.core.records.models import Artefact, Signature, Task
from keepwell.data.decisions import LABEL
from keepwell.data.features import TIME
from keepwell.stats.drift import psi_test
from keepwell.stats.histogram import count, edges_from_reference
from keepwell.training.own import money_of
from keepwell.training.train import BASELINE, PREDICTION
from keepwell.watch.clusters import ClusterSums, cluster_sums
from keepwell.watch.grid import Grid
from keepwell.watch.losses import Calibrator, fit_calibrator, loss_table

Floats = npt.NDArray[np.float64]
FILE = "validation.parquet"
BINS = 10
CATEGORIES = 50
"""Most frequent texts with a bin of their own; the others share one."""
BLOCK_ROWS = 200
"""Rows below which a part of the reference says nothing of how much its bins vary from window to window."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How one column was distributed: counts by bin, shape (b,), the last bin for missing values.

    ``edges`` cut numbers, ``categories`` name texts. ``natural`` is the drift (in nats, see
    ``keepwell.stats.drift.psi_test``) between parts of the reference itself, each about as long as a window.
    """

    name: str
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    natural: float = 0.0

    def count(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Count a window's values by this column's bins, shape (b,)."""
        return _count(values, self.edges, self.categories)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The yardstick of one version. Sums are by cluster; losses by name as ``keepwell.watch.losses`` gives them.

    ``features`` and ``prediction`` profile columns, ``losses`` holds each loss's sums, ``calibrator`` what a
    probability meant, ``money`` what a decision earned over the baseline, ``missing`` the share of missing
    features, ``sample`` the rows themselves for drills.
    """

    rows: int
    features: tuple[Profile, ...]
    prediction: Profile
    losses: dict[str, ClusterSums]
    spread: float
    """Standard deviation of the labels."""
    calibrator: Calibrator | None
    money: ClusterSums | None
    missing: ClusterSums
    sample: Sample


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Validation rows as arrays: times (n,), labels (n,), outputs (n,) or (n, k), features (n, d)."""

    times: npt.NDArray[np.int64]
    labels: Floats
    outputs: Floats
    features: npt.NDArray[Any]


def read_validation(artefact: Digest, *, blobs: Blobs) -> pl.DataFrame | None:
    """Give an artefact's validation rows; None where it has none (a model that others trained).

    Raises NotFound for a missing blob, Corrupt.
    """
    try:
        files = msgspec.json.decode(blobs.get(artefact), type=Artefact).files
        if FILE not in files:
            return None
        return pl.read_parquet(io.BytesIO(blobs.get(files[FILE])))
    except (msgspec.DecodeError, pl.exceptions.PolarsError) as error:
        raise Corrupt(f"The reference cannot be read: {error}.", where=artefact) from error


def build_reference(
    frame: pl.DataFrame,
    signature: Signature,
    *,
    grid: Grid,
    declaration: ModelDeclaration | None = None,
) -> Reference | None:
    """Profile validation rows; None if no row has a label. The declaration's KPI tells what they earned.

    Raises Corrupt if a column is missing. A KPI function that raises leaves ``money`` out: the live windows
    will say why.
    """
    names = [column.name for column in signature.inputs]
    missing = [c for c in (TIME, LABEL, PREDICTION, BASELINE, *names) if c not in frame.columns]
    if missing:
        raise Corrupt(f"The reference has no column {missing[0]!r}.", where=FILE)
    frame = frame.filter(pl.col(LABEL).is_not_null()).sort(TIME, maintain_order=True)
    if frame.is_empty():
        return None
    times = frame.get_column(TIME).to_numpy().astype(np.int64)
    labels = frame.get_column(LABEL).cast(pl.Float64).to_numpy()
    outputs = _outputs(frame.get_column(PREDICTION))
    features = np.empty((len(times), len(names)), dtype=np.float64 if signature.numeric else object)
    for i, column in enumerate(signature.inputs):
        series = frame.get_column(column.name)
        if column.dtype == "string":
            features[:, i] = series.cast(pl.String).to_list()
        else:
            features[:, i] = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    calibrator = fit_calibrator(labels, outputs) if signature.task == "binary" else None
    losses = loss_table(signature.task, labels, outputs, calibrator)
    earned: ClusterSums | None = None
    if declaration is not None and declaration.kpi_function is not None:
        try:
            gain = money_of(declaration, outputs, labels) - money_of(
                declaration, _outputs(frame.get_column(BASELINE)), labels
            )
            earned = cluster_sums(gain, times, grid.cluster)
        except KeepwellError:
            earned = None
    return Reference(
        rows=len(times),
        features=tuple(
            profile(column.name, features[:, i], times, text=column.dtype == "string", grid=grid)
            for i, column in enumerate(signature.inputs)
        ),
        prediction=profile(
            "prediction", scores(signature.task, outputs), times, text=False, grid=grid
        ),
        losses={name: cluster_sums(rows, times, grid.cluster) for name, rows in losses.items()},
        spread=float(labels.std()),
        calibrator=calibrator,
        money=earned,
        missing=cluster_sums(missing_share(features), times, grid.cluster),
        sample=Sample(times=times, labels=labels, outputs=outputs, features=features),
    )


def scores(task: Task, outputs: Floats) -> Floats:
    """Give one number a prediction: the value or probability itself, the likeliest class of several."""
    if task == "multiclass" and outputs.ndim == 2:
        return np.asarray(outputs.argmax(axis=1), dtype=np.float64)
    return outputs


def missing_share(features: npt.NDArray[Any]) -> Floats:
    """Give each row's share of missing features, shape (n,); 0 where there are no features."""
    if not features.size:
        return np.zeros(len(features))
    if features.dtype == object:
        absent = np.array([[_is_missing(v) for v in row] for row in features], dtype=bool)
    else:
        absent = np.isnan(features)
    return np.asarray(absent.mean(axis=1))


def profile(
    name: str,
    values: npt.NDArray[Any],
    times: npt.NDArray[np.int64],
    *,
    text: bool,
    grid: Grid,
) -> Profile:
    """Profile one column of the reference, shape (n,), in the order of time."""
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    if text:
        present, often = np.unique(
            [str(v) for v in values if not _is_missing(v)], return_counts=True
        )
        most = np.argsort(-often, kind="stable")[:CATEGORIES]
        categories = tuple(sorted(str(present[i]) for i in most))
    else:
        numbers = values.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        edges = edges_from_reference(finite, BINS) if len(finite) else (0.0,)
    counts = _count(values, edges, categories)
    # Whole windows only, counted back from the newest row: a part of a week differs for other reasons.
    blocks = (times[-1] - times) // grid.length
    whole = np.isin(blocks, np.arange((times[-1] - times[0] + grid.cluster) // grid.length))
    if len(np.unique(blocks[whole])) < 2:
        blocks = (np.arange(len(times)) >= len(times) / 2).astype(np.int64)
        whole = np.ones(len(times), dtype=bool)
    found = []
    for block in np.unique(blocks[whole]):
        inside = _count(values[blocks == block], edges, categories)
        if min(inside.sum(), counts.sum() - inside.sum()) >= BLOCK_ROWS:
            found.append(psi_test(counts - inside, inside).effect)
    return Profile(
        name=name,
        edges=edges,
        categories=categories,
        counts=counts,
        natural=float(np.mean(found)) if found else 0.0,
    )


def _count(
    values: npt.NDArray[Any], edges: tuple[float, ...], categories: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    if edges:
        histogram = count(values.astype(np.float64), edges)
        return np.array([*histogram.counts, histogram.missing], dtype=np.int64)
    place = {category: i for i, category in enumerate(categories)}
    other, missing = len(categories), len(categories) + 1
    found = [missing if _is_missing(v) else place.get(str(v), other) for v in values]
    return np.bincount(found, minlength=missing + 1).astype(np.int64)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _outputs(series: pl.Series) -> Floats:
    return np.array(series.to_list(), dtype=np.float64)
