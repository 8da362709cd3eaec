# mypy: ignore-errors
"""Saves real MLflow models; run by the interpreter that has MLflow: ``FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

CODE = '''
import mlflow
from mlflow.pyfunc import PythonModel


class Tripled(PythonModel):
    """Three times the size, and a note on standard output."""

    def predict(self, context, model_input, params=None):
        print("asked for", len(model_input), "rows")
        return model_input["size"].fillna(100.0) * 3


mlflow.models.set_model(Tripled())
'''

NAMES = ("size", "age")


def main(folder: Path) -> None:
    inputs = Schema([ColSpec("double", name, required=False) for name in NAMES])
    signature = ModelSignature(inputs=inputs, outputs=Schema([ColSpec("double")]))
    (folder / "tripled.py").write_text(CODE)
    mlflow.pyfunc.save_model(
        folder / "from_code", python_model=str(folder / "tripled.py"), signature=signature, pip_requirements=["mlflow"]
    )  # fmt: skip

    class Pickled(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input["size"]

    mlflow.pyfunc.save_model(
        folder / "pickled", python_model=Pickled(), signature=signature, pip_requirements=["mlflow"]
    )  # fmt: skip


main(Path(sys.argv[1]))
