"""A BentoML service."""

from __future__ import annotations

import bentoml
import models
import numpy as np


@bentoml.service(workers=1)
class Model:
    def __init__(self) -> None:
        self.predictor = models.load()

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> list[float]:
        return self.predictor(np.array(rows)).tolist()
