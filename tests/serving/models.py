"""Estimators that misbehave, as a user's own module could hold them; loaded by workers under their full name."""

from __future__ import annotations

import time
from typing import Any

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


class Lengths:
    """Length of the word plus the number; a missing word counts 100, a missing number 1000."""

    def predict(self, frame: Any) -> Floats:
        words = frame["word"].str.len_chars().fill_null(100).to_numpy()
        numbers = frame["number"].fill_nan(1000).to_numpy()
        return np.asarray(words + numbers, dtype=np.float64)


class Three:
    """Three classes; the first column says how likely the first is."""

    def predict_proba(self, rows: Floats) -> Floats:
        first = rows[:, 0]
        return np.column_stack([first, (1 - first) / 2, (1 - first) / 2])


class TooFew(Doubling):
    """Loses rows where a row is below zero."""

    def predict(self, rows: Floats) -> Floats:
        return super().predict(rows)[rows[:, 0] >= 0]


class NanOnNegative(Doubling):
    """Has no number for a row below zero."""

    def predict(self, rows: Floats) -> Floats:
        return np.where(rows[:, 0] < 0, np.nan, super().predict(rows))


class SlowByRow(Doubling):
    """Takes 10 ms a row."""

    def predict(self, rows: Floats) -> Floats:
        time.sleep(0.01 * len(rows))
        return super().predict(rows)


class SlowByCall(Doubling):
    """Takes 50 ms a call, however many rows there are."""

    def predict(self, rows: Floats) -> Floats:
        time.sleep(0.05)
        return super().predict(rows)
