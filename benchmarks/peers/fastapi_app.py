"""The same work by FastAPI, as its documentation shows it: a pydantic model in, a dictionary out."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import pydantic
from fastapi import FastAPI

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    os.environ["MODEL_ONNX"], options, providers=["CPUExecutionProvider"]
)
outputs = [session.get_outputs()[-1].name]
columns = os.environ["MODEL_COLUMNS"].split(",")
Row = pydantic.create_model("Row", **dict.fromkeys(columns, (float, ...)))
Body = pydantic.create_model("Body", rows=(list[Row], ...))
app = FastAPI()


async def predict(body: Body):
    rows = [[getattr(row, name) for name in columns] for row in body.rows]
    answers = session.run(outputs, {"rows": np.array(rows, dtype=np.float32)})[0][:, -1]
    return {"predictions": answers.tolist()}


predict.__annotations__["body"] = Body
app.post("/predict")(predict)
