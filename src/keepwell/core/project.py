"""The user's project as declared in Python: sources, feature views, models. Functions stay the user's own.

``keepwell.source``, ``keepwell.feature_view``, ``keepwell.on_demand`` and ``keepwell.model`` fill the project
that is being loaded; nothing runs until a room asks for it.
"""

from __future__ import annotations

import inspect
import textwrap
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from keepwell.core.clock import DAY, Time, duration
from keepwell.core.digest import Digest, digest_bytes, digest_of
from keepwell.core.errors import InvalidInput, NotFound, near_miss
from keepwell.core.records.models import RiskTier, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def code_digest(*functions: Callable[..., Any]) -> Digest:
    """Name functions by their source text: any edit, even of a comment, is a new version."""
    sources = []
    for function in functions:
        try:
            sources.append(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError) as error:
            raise InvalidInput(
                f"The source code of {function!r} cannot be read.",
                todo="Define it in a file of the project, not at a prompt.",
            ) from error
    return digest_bytes("\n".join(sources).encode())


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where rows come from.

    ``load`` gives a polars DataFrame. ``timestamp`` is the column with the time an entity's row speaks of;
    ``known_at`` the column with the time from which it could have been known (default: the timestamp).
    """

    name: str
    load: Callable[[], Any]
    timestamp: str
    known_at: str
    key: tuple[str, ...] = ()
    owner: str = ""

    def code(self) -> Digest:
        """Version of the loading code."""
        return code_digest(self.load)


class FeatureView(msgspec.Struct, frozen=True, kw_only=True):
    """Features of an entity over time: ``transform`` turns the source's rows into rows of entity, time, features.

    ``timestamp`` names the column, in the result, with the time from which a row was known; None for facts
    that never change. A decision at time t sees the newest row known at or before t, if not older than ``ttl``.
    """

    name: str
    source: str
    entity: tuple[str, ...]
    transform: Callable[[Any], Any]
    timestamp: str | None
    ttl: Time | None = None
    owner: str = ""

    def code(self) -> Digest:
        """Version of the transformation."""
        return code_digest(self.transform)


class OnDemandView(msgspec.Struct, frozen=True, kw_only=True):
    """Features computed from the decision's own row: ``transform`` gives one row of features for each row."""

    name: str
    transform: Callable[[Any], Any]
    owner: str = ""

    def code(self) -> Digest:
        """Version of the transformation."""
        return code_digest(self.transform)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train a model: ``train(X, y, params, seed)`` gives a fitted estimator."""

    name: str
    train: Callable[..., Any]
    params: dict[str, Any]
    runtime: Literal["worker", "process"] = "worker"
    """Where the model computes: in the gateway's workers, or in a process of its own beside them."""
    environment: str = ""
    """Name of the Python environment of that process; empty: the one that Keepwell runs in."""


class ModelDeclaration(msgspec.Struct, kw_only=True):
    """A model as the project declares it, and the decorators that complete it."""

    name: str
    source: str
    """The source whose rows are the decisions."""
    features: tuple[str, ...]
    label: str
    label_known_at: str
    task: Task
    risk: RiskTier
    label_delay: Time
    unit: str
    """Column that identifies whom a decision is about; assignment sticks to it."""
    owner: str = ""
    purpose: str = ""
    slices: tuple[str, ...] = ()
    """Columns of the decision row by which results are also judged."""
    candidates: dict[str, Candidate] = {}
    baseline_function: Callable[[Any], Any] | None = None
    kpi_function: Callable[[Any, Any], Any] | None = None
    kpi_unit: str = ""

    def candidate(
        self,
        name: str,
        *,
        runtime: Literal["worker", "process"] = "worker",
        environment: str = "",
        **params: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare a way to train: a function of ``(X, y, params, seed)`` that returns a fitted estimator.

        ``X`` is a polars DataFrame of the declared features, ``y`` a numpy array. With ``runtime="process"`` the
        estimator may be any object of the project's own classes, or the path of an MLflow model's folder; it is
        served by a process of its own, in the named ``environment`` if there is one.
        """
        if runtime not in ("worker", "process"):
            raise InvalidInput(
                f"The runtime {runtime!r} is unknown.",
                where=f"candidate {name!r} of model {self.name!r}",
                todo=near_miss(runtime, ["worker", "process"]),
            )
        if environment and runtime != "process":
            raise InvalidInput(
                f"The environment {environment!r} is for a process, and the candidate has none.",
                where=f"candidate {name!r} of model {self.name!r}",
                todo='Declare runtime="process" as well.',
            )

        def declare(train: Callable[..., Any]) -> Callable[..., Any]:
            if name in self.candidates:
                raise InvalidInput(
                    f"The candidate {name!r} is declared twice.", where=f"model {self.name!r}"
                )
            self.candidates[name] = Candidate(
                name=name, train=train, params=params, runtime=runtime, environment=environment
            )
            return train

        return declare

    def baseline(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Declare the rule that a model must beat: takes the features' DataFrame, gives predictions, no learning."""
        self.baseline_function = function
        return function

    def kpi(self, *, unit: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare what a decision is worth: ``(predictions, outcomes) -> money per decision``, numpy arrays."""

        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            self.kpi_function = function
            self.kpi_unit = unit
            return function

        return declare

    def code(self) -> Digest:
        """Version of all the functions of this model."""
        functions = [candidate.train for candidate in self.candidates.values()]
        functions += [f for f in (self.baseline_function, self.kpi_function) if f is not None]
        return code_digest(*functions)


class Project(msgspec.Struct, kw_only=True):
    """All declarations of one project."""

    name: str
    sources: dict[str, Source] = {}
    views: dict[str, FeatureView] = {}
    on_demand: dict[str, OnDemandView] = {}
    models: dict[str, ModelDeclaration] = {}

    def source(self, name: str) -> Source:
        """Give a source. Raises NotFound."""
        found: Source = self._one("source", self.sources, name)
        return found

    def model(self, name: str) -> ModelDeclaration:
        """Give a model. Raises NotFound."""
        found: ModelDeclaration = self._one("model", self.models, name)
        return found

    def code(self, model: str) -> Digest:
        """Version of everything that decides what a model is: its functions, features and their views."""
        declared = self.model(model)
        return digest_of(
            {
                "model": declared.code(),
                "features": declared.features,
                "label": declared.label,
                "source": self.source(declared.source).code(),
                "views": {view.name: view.code() for view in self.views.values()},
                "on_demand": {view.name: view.code() for view in self.on_demand.values()},
            }
        )

    def _one(self, kind: str, among: dict[str, Any], name: str) -> Any:
        if name not in among:
            raise NotFound(
                f"The project declares no {kind} {name!r}.",
                where=self.name,
                todo=near_miss(name, among),
            )
        return among[name]


_loading: ContextVar[Project | None] = ContextVar("keepwell_project", default=None)


@contextmanager
def collecting(project: Project) -> Iterator[Project]:
    """Let declarations made inside the block belong to this project."""
    token = _loading.set(project)
    try:
        yield project
    finally:
        _loading.reset(token)


def _current() -> Project:
    project = _loading.get()
    if project is None:
        # A module of declarations may be imported on its own, in a notebook or a test.
        project = Project(name="unnamed")
        _loading.set(project)
    return project


def _add(kind: str, among: dict[str, Any], name: str, declared: Any) -> None:
    if name in among:
        raise InvalidInput(f"The {kind} {name!r} is declared twice.", where=_current().name)
    among[name] = declared


def source(
    *,
    timestamp: str,
    known_at: str | None = None,
    key: str | tuple[str, ...] = (),
    name: str | None = None,
    owner: str = "",
) -> Callable[[Callable[[], Any]], Source]:
    """Declare a source: decorates a function without arguments that gives a polars DataFrame."""

    def declare(load: Callable[[], Any]) -> Source:
        project = _current()
        declared = Source(
            name=name or load.__name__,
            load=load,
            timestamp=timestamp,
            known_at=known_at or timestamp,
            key=(key,) if isinstance(key, str) else tuple(key),
            owner=owner,
        )
        _add("source", project.sources, declared.name, declared)
        return declared

    return declare


def feature_view(
    *,
    source: Source,
    entity: str | tuple[str, ...],
    timestamp: str | None = None,
    ttl: str | None = None,
    name: str | None = None,
    owner: str = "",
) -> Callable[[Callable[[Any], Any]], FeatureView]:
    """Declare features of an entity: decorates a function from the source's rows to rows of entity, time, features."""

    def declare(transform: Callable[[Any], Any]) -> FeatureView:
        project = _current()
        declared = FeatureView(
            name=name or transform.__name__,
            source=source.name,
            entity=(entity,) if isinstance(entity, str) else tuple(entity),
            transform=transform,
            timestamp=timestamp,
            ttl=duration(ttl) if ttl else None,
            owner=owner,
        )
        _add("feature view", project.views, declared.name, declared)
        return declared

    return declare


def on_demand(transform: Callable[[Any], Any]) -> OnDemandView:
    """Declare features computed from the decision's own row; row i of the result belongs to row i."""
    declared = OnDemandView(name=transform.__name__, transform=transform)
    _add("on-demand view", _current().on_demand, declared.name, declared)
    return declared


def model(
    name: str,
    *,
    source: Source,
    features: list[str] | tuple[str, ...],
    label: str,
    label_known_at: str | None = None,
    task: Task = "binary",
    risk: RiskTier = "medium",
    label_delay: str = "0s",
    unit: str = "",
    owner: str = "",
    purpose: str = "",
    slices: list[str] | tuple[str, ...] = (),
) -> ModelDeclaration:
    """Declare a model over the rows of a source; complete it with ``candidate``, ``baseline`` and ``kpi``.

    ``label`` is a column of the source, missing where it will never be known; ``label_known_at`` the column
    with the time it became known (default: the source's ``known_at``). ``label_delay`` is how long one
    usually waits for it.
    """
    project = _current()
    if task not in ("binary", "multiclass", "regression"):
        raise InvalidInput(
            f"The task {task!r} is unknown.",
            where=f"model {name!r}",
            todo=near_miss(task, ["binary", "multiclass", "regression"]),
        )
    if risk not in ("low", "medium", "high"):
        raise InvalidInput(
            f"The risk {risk!r} is unknown.",
            where=f"model {name!r}",
            todo=near_miss(risk, ["low", "medium", "high"]),
        )
    given: Any = features
    if isinstance(given, str) or not given:
        raise InvalidInput(
            "The model has no features." if not features else "The features are one text.",
            where=f"model {name!r}",
            todo="Write features=[...], the names of the columns that it may see.",
        )
    repeated = sorted({one for one in features if list(features).count(one) > 1})
    if repeated:
        raise InvalidInput(f"The feature {repeated[0]!r} is named twice.", where=f"model {name!r}")
    declared = ModelDeclaration(
        name=name,
        source=source.name,
        features=tuple(features),
        label=label,
        label_known_at=label_known_at or source.known_at,
        task=task,
        risk=risk,
        label_delay=duration(label_delay) if label_delay else DAY,
        unit=unit,
        owner=owner,
        purpose=purpose,
        slices=tuple(slices),
        candidates={},
    )
    _add("model", project.models, name, declared)
    return declared
