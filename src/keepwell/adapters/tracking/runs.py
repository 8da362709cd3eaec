"""Runs in SQL: the hot path of logging, and search."""

# ruff: noqa: S608 - what is put into statements is our own text; every value is a parameter

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any

import msgspec

from keepwell.adapters.tracking.database import Database, Statements, marks
from keepwell.adapters.tracking.experiments import number_of
from keepwell.adapters.tracking.pages import offset_of, token_at
from keepwell.adapters.tracking.search import runs_query
from keepwell.core.errors import Conflict, InvalidInput, KeepwellError, NotFound, Refused
from keepwell.core.paths import clean_path
from keepwell.core.records.tracking import (
    Dataset,
    DatasetInput,
    Metric,
    ModelLink,
    Run,
    RunBatch,
    RunPage,
    RunStatus,
    Stage,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepwell.adapters.tracking.files import SqlFiles
    from keepwell.core.clock import Time
    from keepwell.core.digest import Digest

CHUNK = 5_000
"""Values in one IN list; SQLite takes 32,766."""
NAME_TAG = "mlflow.runName"

_RUN = (
    "r.number, r.id, r.experiment, r.name, r.user_name, r.status, r.stage, r.started, r.ended, "
    "r.artifacts"
)
_HISTORY = (
    "INSERT INTO tracking_metrics (run, key, step, time, value, is_nan) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_LATEST = (
    "INSERT INTO tracking_latest (run, key, step, time, value, is_nan) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (run, key) DO UPDATE SET step = excluded.step, time = excluded.time, "
    "value = excluded.value, is_nan = excluded.is_nan "
    "WHERE (excluded.step, excluded.time, excluded.value) >= "
    "(tracking_latest.step, tracking_latest.time, tracking_latest.value)"
)
_TAG = (
    "INSERT INTO tracking_tags (run, key, value) VALUES (?, ?, ?) "
    "ON CONFLICT (run, key) DO UPDATE SET value = excluded.value"
)
_MEASURED = (
    "INSERT INTO tracking_model_metrics "
    "(model, key, run, dataset, dataset_digest, step, time, value, is_nan) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (model, key, run, dataset, dataset_digest, step) "
    "DO UPDATE SET time = excluded.time, value = excluded.value, is_nan = excluded.is_nan"
)


def _missing(run: str) -> NotFound:
    return NotFound(f"There is no run {run!r}.")


class SqlRuns:
    """Implements the runs of core.ports.tracking.Tracker and Runs."""

    def __init__(self, database: Database, files: SqlFiles) -> None:
        self._database = database
        self._files = files

    def start_run(
        self,
        experiment: str,
        *,
        name: str = "",
        user: str = "",
        tags: Mapping[str, str] | None = None,
        now: Time,
    ) -> Run:
        """Begin a run in the experiment with this id."""
        made = secrets.token_hex(16)
        number = number_of(experiment)
        all_tags = dict(tags or {})
        name = name or all_tags.get(NAME_TAG) or f"run-{made[:8]}"
        all_tags[NAME_TAG] = name
        with self._database.write() as sql:
            row = sql.one(
                "SELECT artifacts, stage FROM tracking_experiments WHERE number = ?", [number]
            )
            if row is None:
                raise NotFound(f"There is no experiment with the id {experiment!r}.")
            if row[1] == "deleted":
                raise Refused(f"The experiment {experiment} is deleted.", todo="Restore it first.")
            place = f"{row[0]}/{made}/artifacts"
            run = sql.one(
                "INSERT INTO tracking_runs "
                "(id, experiment, name, user_name, status, stage, started, artifacts) "
                "VALUES (?, ?, ?, ?, 'RUNNING', 'active', ?, ?) RETURNING number",
                (made, number, name, user, now, place),
            )
            if run is None:
                raise Conflict("The run was not written.", todo="Try again.")
            sql.many(_TAG, [(run[0], key, value) for key, value in all_tags.items()])
        return Run(
            id=made,
            experiment=experiment,
            name=name,
            user=user,
            status="RUNNING",
            started=now,
            artifacts=place,
            tags=all_tags,
        )

    def log(self, batch: RunBatch) -> None:
        """Log metrics, params and tags to a run, all or nothing."""
        refused = self.log_many([batch])[0]
        if refused is not None:
            raise refused

    def log_many(self, batches: Sequence[RunBatch]) -> list[KeepwellError | None]:
        """Log many batches in one durable commit; for each, None or why it was refused alone."""
        history: list[tuple[Any, ...]] = []
        latest: dict[tuple[int, str], tuple[Any, ...]] = {}
        params: dict[int, dict[str, str]] = {}
        tags: list[tuple[int, str, str]] = []
        measured: list[tuple[Any, ...]] = []
        answers: list[KeepwellError | None] = []
        with self._database.write() as sql:
            known = _numbers(sql, {batch.run for batch in batches})
            _read_params(sql, batches, known, params)
            fresh: list[tuple[int, str, str]] = []
            for batch in batches:
                refused = _refusal(batch, known, params)
                answers.append(refused)
                if refused is not None:
                    continue
                number = known[batch.run][0]
                for metric in batch.metrics:
                    nan = math.isnan(metric.value)
                    row = (
                        number,
                        metric.key,
                        metric.step,
                        metric.time,
                        0.0 if nan else metric.value,
                        int(nan),
                    )
                    history.append(row)
                    # Of several points of a metric only the newest can become the latest value.
                    before = latest.get((number, metric.key))
                    if before is None or row[2:5] >= before[2:5]:
                        latest[number, metric.key] = row
                    if metric.model:
                        measured.append(
                            (
                                metric.model,
                                metric.key,
                                batch.run,
                                metric.dataset,
                                metric.dataset_digest,
                                *row[2:],
                            )
                        )
                if batch.params:
                    mine = params[number]
                    fresh += [(number, k, v) for k, v in batch.params.items() if k not in mine]
                    mine.update(batch.params)
                tags += [(number, key, value) for key, value in batch.tags.items()]
            # A fixed order of rows keeps two writers on PostgreSQL from waiting for each other.
            sql.many(_HISTORY, sorted(history))
            sql.many(_LATEST, sorted(latest.values()))
            sql.many(
                "INSERT INTO tracking_params (run, key, value) VALUES (?, ?, ?) "
                "ON CONFLICT (run, key) DO NOTHING",
                sorted(fresh),
            )
            sql.many(_TAG, sorted({(t[0], t[1]): t for t in tags}.values()))
            sql.many(_MEASURED, measured)
            for number, key, value in tags:
                if key == NAME_TAG:
                    sql.run("UPDATE tracking_runs SET name = ? WHERE number = ?", (value, number))
        return answers

    def log_file(self, run: str, path: str, *, digest: Digest, size: int, now: Time) -> None:
        """Enter a blob in the run's files under a relative path."""
        with self._database.read() as sql:
            row = sql.one("SELECT artifacts FROM tracking_runs WHERE id = ?", [run])
        if row is None:
            raise _missing(run)
        folder = row[0].removeprefix("mlflow-artifacts:/")
        self._files.put_file(f"{folder}/{clean_path(path)}", digest=digest, size=size, now=now)

    def end_run(self, run: str, *, status: RunStatus = "FINISHED", now: Time) -> Run:
        """End a run."""
        return self.update_run(run, status=status, ended=now)

    def update_run(
        self,
        run: str,
        *,
        name: str | None = None,
        status: RunStatus | None = None,
        ended: Time | None = None,
        stage: Stage | None = None,
    ) -> Run:
        """Change what is given, and give the run."""
        given = {"name": name, "status": status, "ended": ended, "stage": stage}
        changes = {column: value for column, value in given.items() if value is not None}
        with self._database.write() as sql:
            number = _number(sql, run)
            if changes:
                assignments = ", ".join(f"{column} = ?" for column in changes)
                sql.run(
                    f"UPDATE tracking_runs SET {assignments} WHERE number = ?",
                    [*changes.values(), number],
                )
            if name is not None:
                sql.run(_TAG, (number, NAME_TAG, name))
        return self.run(run)

    def untag_run(self, run: str, key: str) -> None:
        """Remove a tag."""
        with self._database.write() as sql:
            number = _number(sql, run)
            if not sql.run("DELETE FROM tracking_tags WHERE run = ? AND key = ?", (number, key)):
                raise NotFound(f"The run {run} has no tag {key!r}.")

    def run(self, run: str) -> Run:
        """Give a run with everything logged to it but metric history."""
        with self._database.read() as sql:
            rows = sql.all(f"SELECT {_RUN} FROM tracking_runs r WHERE r.id = ?", [run])
            if not rows:
                raise _missing(run)
            return _runs(sql, rows)[0]

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
        """Find runs by MLflow's filter language, newest first unless ``order`` says otherwise."""
        search = (list(experiments), filter, list(order), stage)
        offset = offset_of(token, *search)
        query = runs_query(filter, order, sqlite=self._database.sqlite)
        numbers = [number_of(experiment) for experiment in experiments]
        if not numbers:
            return RunPage(runs=())
        query.require(f"r.experiment IN ({marks(numbers)})", *numbers)
        if stage is not None:
            query.require("r.stage = ?", stage)
        with self._database.read() as sql:
            rows = sql.all(
                f"SELECT {_RUN} FROM tracking_runs r {query.tail()} LIMIT ? OFFSET ?",
                [*query.values(), limit + 1, offset],
            )
            found = _runs(sql, rows[:limit])
        more = len(rows) > limit
        return RunPage(runs=tuple(found), token=token_at(offset + limit, *search) if more else "")

    def metric_history(
        self, run: str, key: str, *, limit: int | None = None, offset: int = 0
    ) -> list[Metric]:
        """List every value of one metric by step, then time."""
        with self._database.read() as sql:
            rows = sql.all(
                "SELECT value, is_nan, time, step FROM tracking_metrics WHERE run = ? AND key = ? "
                "ORDER BY step, time, value LIMIT ? OFFSET ?",
                (_number(sql, run), key, limit if limit is not None else 2**62, offset),
            )
        return [
            Metric(key=key, value=math.nan if nan else value, time=time, step=step)
            for value, nan, time, step in rows
        ]

    def log_inputs(
        self, run: str, *, datasets: Sequence[DatasetInput] = (), models: Sequence[ModelLink] = ()
    ) -> None:
        """Enter what a run read; entering it twice is harmless."""
        with self._database.write() as sql:
            number = _number(sql, run)
            experiment = sql.one("SELECT experiment FROM tracking_runs WHERE number = ?", [number])
            for one in datasets:
                data = one.dataset
                row = sql.one(
                    # The empty change makes RETURNING give the row that is there already.
                    "INSERT INTO tracking_datasets "
                    "(experiment, name, digest, source_type, source, schema, profile) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (experiment, name, digest) "
                    "DO UPDATE SET name = excluded.name RETURNING number",
                    (
                        experiment[0] if experiment else 0,
                        data.name,
                        data.digest,
                        data.source_type,
                        data.source,
                        data.schema,
                        data.profile,
                    ),
                )
                sql.run(
                    "INSERT INTO tracking_inputs (run, dataset, context, tags) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (run, dataset) DO NOTHING",
                    (
                        number,
                        row[0] if row else 0,
                        one.tags.get("mlflow.data.context", ""),
                        msgspec.json.encode(one.tags).decode(),
                    ),
                )
            _link(sql, number, "in", models)

    def log_outputs(self, run: str, models: Sequence[ModelLink]) -> None:
        """Enter the logged models that a run wrote."""
        with self._database.write() as sql:
            _link(sql, _number(sql, run), "out", models)

    def dataset_summaries(self, experiments: Sequence[str]) -> list[tuple[str, str, str, str]]:
        """List (experiment, dataset, digest, context) over the runs of these experiments."""
        numbers = [number_of(experiment) for experiment in experiments]
        if not numbers:
            return []
        with self._database.read() as sql:
            rows = sql.all(
                "SELECT DISTINCT d.experiment, d.name, d.digest, i.context "
                "FROM tracking_datasets d JOIN tracking_inputs i ON i.dataset = d.number "
                f"WHERE d.experiment IN ({marks(numbers)}) ORDER BY 1, 2, 3, 4 LIMIT 1000",
                numbers,
            )
        return [(str(row[0]), row[1], row[2], row[3]) for row in rows]


def _number(sql: Statements, run: str) -> int:
    row = sql.one("SELECT number FROM tracking_runs WHERE id = ?", [run])
    if row is None:
        raise _missing(run)
    number: int = row[0]
    return number


def _numbers(sql: Statements, runs: set[str]) -> dict[str, tuple[int, str]]:
    """Give number and stage of each run that exists; on PostgreSQL no one else logs to them meanwhile."""
    ids = sorted(runs)
    lock = "" if sql.sqlite else " ORDER BY number FOR NO KEY UPDATE"
    found = {}
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        for number, run, stage in sql.all(
            f"SELECT number, id, stage FROM tracking_runs WHERE id IN ({marks(some)}){lock}", some
        ):
            found[run] = (number, stage)
    return found


def _read_params(
    sql: Statements,
    batches: Sequence[RunBatch],
    known: Mapping[str, tuple[int, str]],
    params: dict[int, dict[str, str]],
) -> None:
    """Read what the runs that are about to get params have already."""
    numbers = {known[b.run][0] for b in batches if b.params and b.run in known}
    for number in sorted(numbers):
        rows = sql.all("SELECT key, value FROM tracking_params WHERE run = ?", [number])
        params[number] = dict(rows)


def _refusal(
    batch: RunBatch,
    known: Mapping[str, tuple[int, str]],
    params: Mapping[int, Mapping[str, str]],
) -> KeepwellError | None:
    if batch.run not in known:
        return _missing(batch.run)
    number, stage = known[batch.run]
    if stage == "deleted":
        return Refused(f"The run {batch.run} is deleted.", todo="Restore it first.")
    for key, value in batch.params.items():
        before = params[number].get(key)
        if before is not None and before != value:
            return InvalidInput(
                f"The param {key!r} is {before!r} already and cannot become {value!r}.",
                where=f"run {batch.run}",
                todo="Params do not change; start another run, or log a tag.",
            )
    return None


def _link(sql: Statements, run: int, role: str, models: Sequence[ModelLink]) -> None:
    sql.many(
        "INSERT INTO tracking_model_links (run, role, model, step) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (run, role, model) DO NOTHING",
        [(run, role, link.model, link.step) for link in models],
    )


def _runs(sql: Statements, rows: Sequence[Any]) -> list[Run]:
    """Complete rows of runs with one query for each kind of child, however many runs there are."""
    numbers = [row[0] for row in rows]
    metrics: dict[int, list[Metric]] = {n: [] for n in numbers}
    params: dict[int, dict[str, str]] = {n: {} for n in numbers}
    tags: dict[int, dict[str, str]] = {n: {} for n in numbers}
    inputs: dict[int, list[DatasetInput]] = {n: [] for n in numbers}
    links: dict[tuple[int, str], list[ModelLink]] = {}
    for start in range(0, len(numbers), CHUNK):
        some = numbers[start : start + CHUNK]
        among = f"WHERE run IN ({marks(some)})"
        for run, key, value, nan, time, step in sql.all(
            f"SELECT run, key, value, is_nan, time, step FROM tracking_latest {among}", some
        ):
            metrics[run].append(
                Metric(key=key, value=math.nan if nan else value, time=time, step=step)
            )
        for table, into in (("tracking_params", params), ("tracking_tags", tags)):
            for run, key, value in sql.all(f"SELECT run, key, value FROM {table} {among}", some):
                into[run][key] = value
        for row in sql.all(
            "SELECT i.run, i.tags, d.name, d.digest, d.source_type, d.source, d.schema, d.profile "
            "FROM tracking_inputs i JOIN tracking_datasets d ON d.number = i.dataset "
            f"WHERE i.run IN ({marks(some)})",
            some,
        ):
            dataset = Dataset(
                name=row[2],
                digest=row[3],
                source_type=row[4],
                source=row[5],
                schema=row[6],
                profile=row[7],
            )
            inputs[row[0]].append(DatasetInput(dataset=dataset, tags=msgspec.json.decode(row[1])))
        for run, role, model, step in sql.all(
            f"SELECT run, role, model, step FROM tracking_model_links {among}", some
        ):
            links.setdefault((run, role), []).append(ModelLink(model=model, step=step))
    return [
        Run(
            id=row[1],
            experiment=str(row[2]),
            name=row[3],
            user=row[4],
            status=row[5],
            stage=row[6],
            started=row[7],
            ended=row[8],
            artifacts=row[9],
            metrics=tuple(metrics[row[0]]),
            params=params[row[0]],
            tags=tags[row[0]],
            inputs=tuple(inputs[row[0]]),
            models_in=tuple(links.get((row[0], "in"), ())),
            models_out=tuple(links.get((row[0], "out"), ())),
        )
        for row in rows
    ]
