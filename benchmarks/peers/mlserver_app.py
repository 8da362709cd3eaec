"""A runtime of MLServer's for the ONNX form; the native form is served by its own scikit-learn runtime."""

from __future__ import annotations

import models
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self.predictor = models.load()
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("predict_proba", self.predictor(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])
