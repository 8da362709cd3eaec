"""Estimators that misbehave, as a user's own module could hold them; loaded by workers under their full name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
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


class Saved:
    """Twice the first column plus what its file says; its class knows how to save and load itself, as frameworks do."""

    def __init__(self, extra: float = 0.0) -> None:
        self.extra = extra

    def save(self, folder: Path) -> None:
        (folder / "weights.txt").write_text(str(self.extra))

    @classmethod
    def load(cls, folder: Path) -> Any:
        return cls(float((folder / "weights.txt").read_text()))

    def predict(self, frame: Any) -> Floats:
        return np.asarray(frame["x"].to_numpy() * 2 + self.extra)


class Unruly(Saved):
    """Does by its first column what a model must not: -1 raises, -2 hangs, -3 kills its process, -4 prints, -5 leaks, -6 takes 0.2 s a row."""

    held: list[bytearray] = []

    def predict(self, frame: Any) -> Floats:
        first = set(frame["x"].to_list())
        if -1.0 in first:
            raise ValueError("minus one is not understood")
        if -2.0 in first:
            time.sleep(600)
        if -3.0 in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if -4.0 in first:
            print("noise " * 400_000)
        if -5.0 in first:
            self.held.append(bytearray(b"x") * 20_000_000)
        if -6.0 in first:
            time.sleep(0.2 * len(frame))
        return super().predict(frame)


class Counted:
    """Says which process answered."""

    def save(self, folder: Path) -> None:
        (folder / "nothing").write_text("")

    @classmethod
    def load(cls, folder: Path) -> Any:
        return cls()

    def predict(self, frame: Any) -> Floats:
        return np.full(len(frame), 0.0 if frame["x"][0] == 1.0 else float(os.getpid()))


class Worded(Saved):
    """Length of the word plus the number; a missing word counts 100."""

    def predict(self, frame: Any) -> Floats:
        return Lengths().predict(frame)


class SpinningSaved(Saved):
    """Holds the interpreter for a millisecond a call, as models in plain Python do."""

    def predict(self, frame: Any) -> Floats:
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        return super().predict(frame)
