"""A bare ASGI application: decode JSON, run the ONNX model, encode JSON. No log, no checks, one row a request."""

from __future__ import annotations

import os

import msgspec
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    os.environ["MODEL_ONNX"], options, providers=["CPUExecutionProvider"]
)
outputs = [session.get_outputs()[-1].name]
columns = os.environ["MODEL_COLUMNS"].split(",")
row = msgspec.defstruct("Row", [(name, float) for name in columns])
body_decoder = msgspec.json.Decoder(msgspec.defstruct("Body", [("rows", list[row])]))
encoder = msgspec.json.Encoder()


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    rows = [msgspec.structs.astuple(row) for row in body_decoder.decode(body).rows]
    answers = session.run(outputs, {"rows": np.array(rows, dtype=np.float32)})[0][:, -1]
    content = encoder.encode({"predictions": answers.tolist()})
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": content})
