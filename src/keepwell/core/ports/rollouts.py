"""Judging a rollout needs to know what a decision was worth; the project says so, and the wiring hands it on."""

from __future__ import annotations

from typing import Any, Protocol


class Gain(Protocol):
    """What each decision gained, by prediction and outcome: arrays of shape (n,) in, shape (n,) out."""

    def __call__(self, predictions: Any, outcomes: Any) -> Any:
        """Give the gain of each decision; larger is better."""
        ...
