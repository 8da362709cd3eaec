"""Models, their versions, and what is inside a packaged artefact."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value
from keepwell.core.records.data import Column

Task = Literal["binary", "multiclass", "regression"]
RiskTier = Literal["low", "medium", "high"]
VersionState = Literal["registered", "released", "refused", "active", "retired"]


class Signature(Value, frozen=True, kw_only=True):
    """What a model takes and gives: the input columns in order, the task, and the classes if there are any."""

    inputs: tuple[Column, ...]
    task: Task
    classes: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Tell whether every input is a number, so that rows fit one float64 matrix."""
        return all(column.dtype in {"float64", "int64", "bool"} for column in self.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """List the input names in order."""
        return tuple(column.name for column in self.inputs)


class Artefact(Value, frozen=True, kw_only=True):
    """The contents of a packaged model: each file's path and digest. Its own digest names the artefact.

    The folder holds ``package.json`` (a Package), ``golden.json`` (rows and the predictions they must
    give), ``MLmodel``, and the predictor's own files.
    """

    files: dict[str, Digest]


class Package(Value, frozen=True, kw_only=True):
    """``package.json``: what a predictor needs to know to load and to be trusted."""

    model: str
    candidate: str
    predictor: str
    """Name in the predictors' catalog: ``onnx``, ``linear``, ``native``, ``process``."""
    signature: Signature
    python: str
    requirements: tuple[str, ...]
    code: Digest
    revision: str
    """Version-control revision of the project's code, ``+dirty`` where it had changes; empty where there is none."""
    training_set: Digest
    seed: int
    params: dict[str, str | int | float | bool | None]
    own_modules: tuple[str, ...] = ()
    """The project's modules whose classes the estimator may be made of."""
    environment: str = ""
    """Name of the Python environment in which a process runs the model; empty: the gateway's own."""
    equal_rows: int = 0
    """Validation rows on which the predictor was proved equal to the fitted estimator."""
    largest_difference: float = 0.0


class Model(Record, frozen=True, kw_only=True):
    """A registered model: the name under which versions are counted."""

    TABLE = "models"
    KEY = ("name",)

    name: str
    description: str = ""
    tags: dict[str, str] = {}
    created: Time
    updated: Time
    latest: int = 0
    """The highest version number ever given; numbers are never given twice."""
    revision: int = 1


class ModelVersion(Record, frozen=True, kw_only=True):
    """One immutable artefact under a model's name, with where it came from."""

    TABLE = "model_versions"
    KEY = ("model", "version")
    INDEX: ClassVar = (("state",), ("run",))

    model: str
    version: int
    candidate: str = ""
    artefact: Digest
    """Digest of the Artefact record's blob."""
    run: str = ""
    training_set: Digest = ""
    code: Digest = ""
    signature: Signature | None = None
    author: str
    source: str = ""
    """Where a client of the tracking API said the artefact lies."""
    description: str = ""
    tags: dict[str, str] = {}
    state: VersionState = "registered"
    reason: str = ""
    """Why it was refused or retired."""
    renews: int | None = None
    """The version that this one was trained to replace."""
    created: Time
    updated: Time
    revision: int = 1

    def label(self) -> str:
        """Give ``model/version``, the way people and evidence name it."""
        return f"{self.model}/{self.version}"


class Alias(Record, frozen=True, kw_only=True):
    """A movable name for one version of a model, such as ``champion``."""

    TABLE = "aliases"
    KEY = ("model", "alias")

    model: str
    alias: str
    version: int
    revision: int = 1
