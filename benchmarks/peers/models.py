"""The two forms of the model, for the peers' applications."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np


def load():
    """Give a function from rows, shape (n, d), to probabilities: the pickled estimator or its ONNX form."""
    if os.environ["MODEL_FORM"] == "native":
        estimator = pickle.loads(Path(os.environ["MODEL_PICKLE"]).read_bytes())
        return lambda rows: estimator.predict_proba(rows)[:, 1]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        os.environ["MODEL_ONNX"], options, providers=["CPUExecutionProvider"]
    )
    outputs = [session.get_outputs()[-1].name]
    return lambda rows: session.run(outputs, {"rows": np.asarray(rows, dtype=np.float32)})[0][:, -1]
