"""What the tests of training do not import."""

from __future__ import annotations

# Run by the interpreter that has MLflow, never imported here.
collect_ignore = ["mlflow_models.py"]
