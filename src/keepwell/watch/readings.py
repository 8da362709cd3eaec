"""What goes into a monitor and what comes out: a complete window beside its reference, and readings of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from keepwell.core.errors import KeepwellError
from keepwell.core.project import ModelDeclaration
from keepwell.core.records.models import Signature, Task
from keepwell.core.settings import MonitorSettings
from keepwell.training.own import money_of
from keepwell.watch.clusters import Comparison, cluster_sums, compare
from keepwell.watch.grid import Grid
from keepwell.watch.losses import loss_table, usable
from keepwell.watch.money import baseline_of
from keepwell.watch.reference import Reference
from keepwell.watch.windows import WindowRows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Money:
    """Each labelled, answered row's worth under the model and under the baseline, shapes (n,), with its time.

    ``problem`` says why there is none: the project's function raised, or gave no money.
    """

    times: npt.NDArray[np.int64]
    model: Floats
    baseline: Floats
    problem: str = ""


@dataclass(frozen=True)
class View:
    """One version's complete window and everything that a monitor may compare it with.

    ``earlier_volumes`` are the endpoint's decisions in each earlier window, oldest first, as far as complete;
    ``volume`` its decisions in this one, all versions together; ``whole`` is False where the endpoint's first
    window began before its traffic, or the last was cut short.
    """

    rows: WindowRows
    task: Task
    signature: Signature | None
    reference: Reference | None
    declaration: ModelDeclaration | None
    grid: Grid
    settings: MonitorSettings
    volume: int = 0
    earlier_volumes: tuple[int, ...] = ()
    whole: bool = True

    @cached_property
    def labelled(self) -> WindowRows:
        """The rows whose outcome is known and can be scored."""
        return self.rows.where(usable(self.task, self.rows.labels, self.rows.outputs))

    @cached_property
    def losses(self) -> dict[str, Floats]:
        """The labelled rows' losses by name, see ``keepwell.watch.losses``."""
        calibrator = self.reference.calibrator if self.reference else None
        rows = self.labelled
        return loss_table(self.task, rows.labels, rows.outputs, calibrator)

    @cached_property
    def money(self) -> Money | None:
        """What the labelled rows earned; None without a KPI or a label. A function that raises is a ``problem``."""
        rows = self.labelled.where(self.labelled.answered)
        if self.declaration is None or self.declaration.kpi_function is None or not len(rows):
            return None
        if self.declaration.baseline_function is None or self.signature is None:
            return None
        try:
            model = money_of(self.declaration, rows.outputs, rows.labels)
            rule = baseline_of(self.declaration, rows.features, self.signature)
            baseline = money_of(self.declaration, rule, rows.labels)
        except KeepwellError as error:
            empty = np.empty(0)
            return Money(times=rows.times, model=empty, baseline=empty, problem=str(error))
        return Money(times=rows.times, model=model, baseline=baseline)

    def compared(self, values: Floats, times: npt.NDArray[np.int64], name: str) -> Comparison:
        """Compare the mean of rows with that of the reference's loss of this name, by day."""
        reference = self.reference.losses.get(name) if self.reference else None
        return compare(cluster_sums(values, times, self.grid.cluster), reference)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One monitor's number for one window.

    Either ``alarm`` says at once what it means, or ``score`` (standard errors beyond the limit, on a normal
    scale; None where there is nothing to compare with) is accumulated over windows by ``judgement``. A
    two-sided monitor is beyond its upper limit with a positive value and positive score, and beyond its
    lower one with a negative value and negative score.
    """

    monitor: str
    kind: str
    rows: int
    value: float | None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    limit: float | None = None
    score: float | None = None
    two_sided: bool = False
    alarm: bool | None = None
    message: str = ""
