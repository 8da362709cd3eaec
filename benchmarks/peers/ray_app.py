"""A Ray Serve deployment of one replica."""

from __future__ import annotations

import sys
import time

import models
import numpy as np
import ray
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class Model:
    def __init__(self):
        self.predictor = models.load()

    async def __call__(self, request):
        rows = (await request.json())["rows"]
        return {"predictions": self.predictor(np.array(rows)).tolist()}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Model.bind(), route_prefix="/predict")
    while True:
        time.sleep(1)
