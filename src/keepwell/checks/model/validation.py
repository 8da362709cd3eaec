"""The rows on which a model is judged: labels, its own and the baseline's predictions, days, slices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from keepwell.core.clock import DAY
from keepwell.core.errors import InvalidInput
from keepwell.core.records.models import Task
from keepwell.stats.performance import log_loss_rows, squared_error_rows

Floats = npt.NDArray[np.float64]


class ValidationRows:
    """Arrays of equal length n: the validation part of a training set, as the artefact keeps it.

    ``time`` in microseconds; ``label`` and the predictions as numbers (probability of the positive class,
    regression value, or shape (n, k) class probabilities); ``slices`` maps a column to text values.
    """

    def __init__(
        self,
        *,
        task: Task,
        time: npt.NDArray[np.int64],
        label: Floats,
        prediction: Floats,
        baseline: Floats,
        slices: Mapping[str, npt.NDArray[np.object_]],
    ) -> None:
        if not len(label):
            raise InvalidInput("There are no validation rows to judge by.")
        self.task = task
        self.time = time
        self.label = label
        self.prediction = prediction
        self.baseline = baseline
        self.slices = slices

    def __len__(self) -> int:
        return len(self.label)

    @property
    def days(self) -> npt.NDArray[np.int64]:
        """The day of each row: rows of one day share weather and trouble, so intervals cluster by it.

        Rows without any spread of time (fewer than five days) count as independent.
        """
        days = self.time // DAY
        return days if len(np.unique(days)) >= 5 else np.arange(len(days))

    def loss(self, predictions: Floats) -> Floats:
        """Give the loss of each row, shape (n,): log loss for classes, squared error for numbers."""
        return loss_rows(self.task, self.label, predictions)


def loss_rows(task: Task, labels: Floats, predictions: Floats) -> Floats:
    """Give the proper loss of each prediction: log loss for classes, squared error for numbers."""
    if task == "binary":
        return np.asarray(log_loss_rows(labels, np.clip(predictions, 0.0, 1.0)))
    if task == "multiclass":
        own = np.asarray(predictions)[np.arange(len(labels)), labels.astype(np.int64)]
        return np.asarray(-np.log(np.clip(own, 1e-15, 1.0)))
    return np.asarray(squared_error_rows(labels, predictions))
