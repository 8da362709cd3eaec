"""Tracking, as five small ports: for training code, and for the server that speaks to remote clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keepwell.core.clock import Time
    from keepwell.core.digest import Digest
    from keepwell.core.errors import KeepwellError
    from keepwell.core.records.tracking import (
        DatasetInput,
        Experiment,
        LoggedModel,
        LoggedModelStatus,
        Metric,
        ModelLink,
        Run,
        RunBatch,
        RunPage,
        RunStatus,
        Stage,
        TrackedFile,
    )


class Tracker(Protocol):
    """Logs runs. Safe from any thread and process; what a call wrote is durable when it returns."""

    def experiment(self, name: str, *, now: Time) -> Experiment:
        """Give the experiment of this name, made if there is none. Raises Conflict if it was deleted."""
        ...

    def start_run(
        self,
        experiment: str,
        *,
        name: str = "",
        user: str = "",
        tags: Mapping[str, str] | None = None,
        now: Time,
    ) -> Run:
        """Begin a run in the experiment with this id. Raises NotFound, Refused if the experiment is deleted."""
        ...

    def log(self, batch: RunBatch) -> None:
        """Log metrics, params and tags to a run, all or nothing.

        The same metric point twice is kept once, so a caller may try again. Raises NotFound, Refused if the
        run is deleted, InvalidInput if a param has another value already.
        """
        ...

    def log_file(self, run: str, path: str, *, digest: Digest, size: int, now: Time) -> None:
        """Enter a blob in the run's files under a relative path. Raises NotFound, InvalidInput."""
        ...

    def end_run(self, run: str, *, status: RunStatus = "FINISHED", now: Time) -> Run:
        """End a run. Raises NotFound."""
        ...

    def run(self, run: str) -> Run:
        """Give a run with everything logged to it but metric history. Raises NotFound."""
        ...

    def search_runs(
        self,
        experiments: Sequence[str],
        *,
        filter: str = "",
        order: Sequence[str] = (),
        stage: Stage | None = "active",
        limit: int = 1000,
        token: str = "",
    ) -> RunPage:
        """Find runs by MLflow's filter language, newest first unless ``order`` says otherwise.

        ``stage`` None finds deleted ones too. Raises InvalidInput.
        """
        ...

    def metric_history(
        self, run: str, key: str, *, limit: int | None = None, offset: int = 0
    ) -> list[Metric]:
        """List every value of one metric by step, then time. Raises NotFound."""
        ...


class Experiments(Protocol):
    """Keeps experiments."""

    def create_experiment(
        self, name: str, *, artifacts: str = "", tags: Mapping[str, str] | None = None, now: Time
    ) -> Experiment:
        """Make one. Raises Conflict if the name is taken, by a deleted experiment too."""
        ...

    def get_experiment(self, experiment: str) -> Experiment:
        """Give one by id. Raises NotFound."""
        ...

    def find_experiment(self, name: str) -> Experiment | None:
        """Give one by name, or None."""
        ...

    def update_experiment(
        self, experiment: str, *, name: str | None = None, stage: Stage | None = None, now: Time
    ) -> None:
        """Rename, delete (with its runs) or restore one. Raises NotFound, Conflict."""
        ...

    def tag_experiment(self, experiment: str, key: str, value: str | None, *, now: Time) -> None:
        """Set a tag, or remove it with None. Raises NotFound."""
        ...

    def search_experiments(
        self,
        *,
        filter: str = "",
        order: Sequence[str] = (),
        stage: Stage | None = "active",
        limit: int = 1000,
        token: str = "",
    ) -> tuple[list[Experiment], str]:
        """Find experiments, and give the token of the next page. Raises InvalidInput."""
        ...


class Runs(Protocol):
    """Changes runs beyond what training code does, for remote clients."""

    def log_many(self, batches: Sequence[RunBatch]) -> list[KeepwellError | None]:
        """Log many batches in one durable commit; for each, None or why it was refused alone."""
        ...

    def update_run(
        self,
        run: str,
        *,
        name: str | None = None,
        status: RunStatus | None = None,
        ended: Time | None = None,
        stage: Stage | None = None,
    ) -> Run:
        """Change what is given, and give the run. Raises NotFound."""
        ...

    def untag_run(self, run: str, key: str) -> None:
        """Remove a tag. Raises NotFound."""
        ...

    def log_inputs(
        self, run: str, *, datasets: Sequence[DatasetInput] = (), models: Sequence[ModelLink] = ()
    ) -> None:
        """Enter what a run read; entering it twice is harmless. Raises NotFound."""
        ...

    def log_outputs(self, run: str, models: Sequence[ModelLink]) -> None:
        """Enter the logged models that a run wrote. Raises NotFound."""
        ...

    def dataset_summaries(self, experiments: Sequence[str]) -> list[tuple[str, str, str, str]]:
        """List (experiment, dataset, digest, context) over the runs of these experiments."""
        ...


class LoggedModels(Protocol):
    """Keeps logged models."""

    def create_logged_model(
        self,
        experiment: str,
        *,
        name: str = "",
        kind: str = "",
        run: str = "",
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        now: Time,
    ) -> LoggedModel:
        """Make one in state PENDING. Raises NotFound."""
        ...

    def get_logged_model(self, model: str) -> LoggedModel:
        """Give one by id. Raises NotFound, also when it was deleted."""
        ...

    def update_logged_model(
        self,
        model: str,
        *,
        status: LoggedModelStatus | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str | None] | None = None,
        stage: Stage | None = None,
        now: Time,
    ) -> None:
        """Change what is given; a tag of None is removed. Raises NotFound."""
        ...

    def search_logged_models(
        self,
        experiments: Sequence[str],
        *,
        filter: str = "",
        order: Sequence[str] = (),
        limit: int = 100,
        token: str = "",
    ) -> tuple[list[LoggedModel], str]:
        """Find logged models, and give the token of the next page. Raises InvalidInput."""
        ...


class TrackedFiles(Protocol):
    """The index from uploaded paths to blobs. Paths are clean: relative, ``/`` between parts, no ``..``."""

    def put_file(self, path: str, *, digest: Digest, size: int, now: Time) -> None:
        """Enter a file, in place of one of the same path. Raises InvalidInput if a folder has this path."""
        ...

    def get_file(self, path: str) -> TrackedFile | None:
        """Give the file at this path, or None."""
        ...

    def list_files(self, folder: str) -> list[tuple[str, TrackedFile | None]]:
        """List the names directly in a folder, each with its file, or None for a folder."""
        ...

    def files_under(self, folder: str) -> list[TrackedFile]:
        """List every file at any depth below a folder."""
        ...

    def remove_files(self, path: str) -> int:
        """Remove a file or everything below a folder from the index, and count. Blobs stay."""
        ...

    def tracked_digests(self) -> Iterator[Digest]:
        """List the blobs that the index stands on, for garbage collection."""
        ...


class TrackingStore(Tracker, Experiments, Runs, LoggedModels, TrackedFiles, Protocol):
    """All five, as one database implements them."""
