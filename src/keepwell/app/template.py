"""What ``keepwell init`` writes: a small complete project on real data, meant to be edited by hand."""

from __future__ import annotations

import re
from pathlib import Path

from keepwell.core.errors import Conflict, InvalidInput, Unavailable

_SETTINGS = """\
# The values of the project; its functions are in {module}.py.
[project]
name = "{name}"
module = "{module}"

[endpoints.tumour]
model = "tumour"

# Whoever trains must not approve: give the names of the people who do.
[users.me]
roles = ["author", "operator"]

[users.colleague]
roles = ["approver"]

[policy]
approvals = 1
# A hundred validation rows tell calibration only roughly: ten bins of ten rows err by that much by chance alone.
calibration_error = 0.15

# Whoever must hear of an alarm: a file, or kind = "webhook" with a url.
[[alerts]]
kind = "file"
name = "alerts"
path = "alerts.jsonl"
"""

_MODULE = '''\
"""A first project: is a tumour malignant? Replace the source, the features, the candidates and the money by yours."""

import numpy as np
import polars as pl
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keepwell as kw

FEATURES = ["mean radius", "mean texture", "mean smoothness", "mean concavity", "mean symmetry", "worst radius"]


@kw.source(timestamp="seen", known_at="seen", key="patient")
def patients():
    """Every row is a decision: when it was seen, what was known, and (later) what came of it."""
    data = load_breast_cancer()
    rows = pl.DataFrame(data.data, schema=list(data.feature_names))
    day = pl.datetime(2024, 1, 1) + pl.duration(hours=6 * pl.int_range(pl.len()))
    return rows.with_row_index("patient").with_columns(
        day.alias("seen"),
        (day + pl.duration(days=2)).alias("diagnosed"),
        pl.Series("malignant", 1.0 - data.target),
    )


tumour = kw.model(
    "tumour", source=patients, features=FEATURES, label="malignant", label_known_at="diagnosed",
    label_delay="2d", task="binary", risk="high", owner="me@example.com", purpose="Decides who is seen first.",
)  # fmt: skip


@tumour.candidate("boosting", max_iter=60)
def boosting(X, y, params, seed):
    """Return any fitted estimator."""
    return HistGradientBoostingClassifier(random_state=seed, **params).fit(X, y)


@tumour.candidate("linear", C=1.0)
def linear(X, y, params, seed):
    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(**params)).fit(X, y)


@tumour.baseline
def by_size(X):
    """The rule in use without a model: larger is worse."""
    return 1 / (1 + np.exp(-(X["mean radius"].to_numpy() - 15) / 2))


@tumour.kpi(unit="EUR")
def value(chance, malignant):
    """An early appointment costs 80; a malignant tumour that waited costs 2,000."""
    return np.where(chance > 80 / 2000, -80.0, -2000.0 * malignant)
'''


def write_template(folder: Path) -> list[str]:
    """Write the project's files; gives their names.

    Raises Conflict if the folder holds a project already, InvalidInput for a name that cannot be a module's.
    """
    if (folder / "keepwell.toml").exists():
        raise Conflict(
            "There is a project already.", where=str(folder), todo="Choose another folder."
        )
    name = folder.resolve().name
    module = re.sub(r"\W+", "_", name.lower()).strip("_")
    if not module.isidentifier():
        raise InvalidInput(
            f"{name!r} cannot name a Python module.", todo="Begin the folder's name with a letter."
        )
    if (folder / f"{module}.py").exists():
        raise Conflict(
            f"{module}.py exists already.", where=str(folder), todo="Choose another folder."
        )
    files = {
        "keepwell.toml": _SETTINGS.format(name=name, module=module),
        f"{module}.py": _MODULE,
        ".gitignore": ".keepwell*/\n__pycache__/\nalerts.jsonl\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            if not (folder / file).exists():
                (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Unavailable(
            f"The project cannot be written: {error.strerror}.", where=str(folder)
        ) from error
    return sorted(files)
