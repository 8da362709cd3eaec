"""A LitServe server, with its batching on: it loses without it."""

from __future__ import annotations

import sys

import litserve
import models
import numpy as np


class Model(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002 - the framework's own name
        self.predictor = models.load()

    def decode_request(self, request):
        return request["row"]

    def batch(self, inputs):
        return np.array(inputs)

    def predict(self, rows):
        return self.predictor(rows)

    def unbatch(self, output):
        return output.tolist()

    def encode_response(self, output):
        return {"prediction": output}


if __name__ == "__main__":
    api = Model(max_batch_size=32, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", log_level="warning", generate_client_file=False
    )
