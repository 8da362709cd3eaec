"""Save the model as MLflow's users do: its scikit-learn flavour, or its ONNX flavour."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import mlflow

if os.environ["MODEL_FORM"] == "native":
    mlflow.sklearn.save_model(
        pickle.loads(Path(os.environ["MODEL_PICKLE"]).read_bytes()),
        sys.argv[1],
        pyfunc_predict_fn="predict_proba",
        pip_requirements=["scikit-learn"],
        serialization_format="pickle",
    )
else:
    import onnx

    mlflow.onnx.save_model(
        onnx.load(os.environ["MODEL_ONNX"]),
        sys.argv[1],
        pip_requirements=["onnxruntime"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        onnx_execution_providers=["CPUExecutionProvider"],
    )
