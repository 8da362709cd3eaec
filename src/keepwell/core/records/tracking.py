"""What tracking remembers of training: experiments, runs, metrics with their history, inputs and logged models.

These are values, not store records: they are written thousands of times a second and leave no audit entry.
"""

from __future__ import annotations

from typing import Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Value

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
Stage = Literal["active", "deleted"]
LoggedModelStatus = Literal["PENDING", "READY", "UPLOAD_FAILED"]


class Experiment(Value, frozen=True, kw_only=True):
    """A name under which runs are gathered."""

    id: str
    name: str
    artifacts: str
    """Where its runs' files lie, as a ``mlflow-artifacts:`` address."""
    stage: Stage = "active"
    tags: dict[str, str] = {}
    created: Time
    updated: Time


class Metric(Value, frozen=True, kw_only=True):
    """One measured value. ``value`` may be infinite or not a number."""

    key: str
    value: float
    time: Time
    step: int = 0
    model: str = ""
    """The logged model that was measured, if one was named."""
    dataset: str = ""
    dataset_digest: str = ""


class Dataset(Value, frozen=True, kw_only=True):
    """Data that a run read, as the client describes it."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str = ""
    profile: str = ""


class DatasetInput(Value, frozen=True, kw_only=True):
    """A dataset in the role that it played in a run."""

    dataset: Dataset
    tags: dict[str, str] = {}


class ModelLink(Value, frozen=True, kw_only=True):
    """A logged model that a run read or wrote."""

    model: str
    step: int = 0


class Run(Value, frozen=True, kw_only=True):
    """One execution of training code, with the latest value of each metric."""

    id: str
    experiment: str
    name: str
    user: str
    status: RunStatus
    stage: Stage = "active"
    started: Time
    ended: Time | None = None
    artifacts: str
    metrics: tuple[Metric, ...] = ()
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    inputs: tuple[DatasetInput, ...] = ()
    models_in: tuple[ModelLink, ...] = ()
    models_out: tuple[ModelLink, ...] = ()


class RunBatch(Value, frozen=True, kw_only=True):
    """What is logged to one run in one go: all of it, or nothing."""

    run: str
    metrics: tuple[Metric, ...] = ()
    params: dict[str, str] = {}
    tags: dict[str, str] = {}


class RunPage(Value, frozen=True, kw_only=True):
    """One page of a search, and the token of the next; empty on the last page."""

    runs: tuple[Run, ...]
    token: str = ""


class LoggedModel(Value, frozen=True, kw_only=True):
    """A model that a client has saved in a run, before or without being registered."""

    id: str
    experiment: str
    name: str
    kind: str = ""
    run: str = ""
    status: LoggedModelStatus = "PENDING"
    artifacts: str
    created: Time
    updated: Time
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: tuple[tuple[str, Metric], ...] = ()
    """Pairs of the run that measured and what it measured."""


class TrackedFile(Value, frozen=True, kw_only=True):
    """One file that was uploaded: its path in the tracking space and the blob with its bytes."""

    path: str
    digest: Digest
    size: int
