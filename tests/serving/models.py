"""Estimators that misbehave, as a user's own module could hold them; loaded by workers under their full name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Doubling:
    """Twice the first column."""

    def predict(self, rows: Floats) -> Floats:
        return rows[:, 0] * 2


class FailingOnNegative(Doubling):
    """Raises for a whole batch if one row is below zero."""

    def predict(self, rows: Floats) -> Floats:
        if (rows[:, 0] < 0).any():
            raise RuntimeError("negative rows are not understood")
        return super().predict(rows)


class TooFew(Doubling):
    """Loses rows where a row is below zero."""

    def predict(self, rows: Floats) -> Floats:
        return super().predict(rows)[rows[:, 0] >= 0]
