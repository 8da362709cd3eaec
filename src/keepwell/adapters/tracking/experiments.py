"""Experiments and logged models in SQL."""

# ruff: noqa: S608 - what is put into statements is our own text; every value is a parameter

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import msgspec

from keepwell.adapters.tracking.database import Database, Statements, marks
from keepwell.adapters.tracking.pages import offset_of, token_at
from keepwell.adapters.tracking.search import experiments_query
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Refused
from keepwell.core.filters import holds, known_key, read_filter, read_order
from keepwell.core.records.tracking import Experiment, LoggedModel, LoggedModelStatus, Metric, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepwell.core.clock import Time

_COLUMNS = "e.number, e.name, e.artifacts, e.stage, e.created, e.updated"


def number_of(experiment: str) -> int:
    """Read an experiment's id. Raises NotFound for what cannot be one."""
    if not (experiment.isascii() and experiment.isdigit() and len(experiment) < 19):
        raise NotFound(f"There is no experiment with the id {experiment!r}.")
    return int(experiment)


class SqlExperiments:
    """Implements core.ports.tracking.Experiments."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def experiment(self, name: str, *, now: Time) -> Experiment:
        """Give the experiment of this name, made if there is none."""
        found = self.find_experiment(name)
        if found is None:
            try:
                return self.create_experiment(name, now=now)
            except Conflict:
                # Somebody else made it between the look and the insert.
                found = self.find_experiment(name)
        if found is None or found.stage == "deleted":
            raise Conflict(
                f"The experiment {name!r} was deleted.", todo="Restore it or take another name."
            )
        return found

    def create_experiment(
        self, name: str, *, artifacts: str = "", tags: Mapping[str, str] | None = None, now: Time
    ) -> Experiment:
        """Make one."""
        with self._database.write() as sql:
            # One statement claims the name, so that two creators cannot both think that it is free.
            row = sql.one(
                "INSERT INTO tracking_experiments (name, artifacts, stage, created, updated) "
                "VALUES (?, ?, 'active', ?, ?) ON CONFLICT (name) DO NOTHING RETURNING number",
                (name, artifacts, now, now),
            )
            if row is None:
                raise Conflict(
                    f"There is an experiment {name!r} already.", todo="Take another name."
                )
            number = row[0]
            place = artifacts or f"mlflow-artifacts:/{number}"
            sql.run(
                "UPDATE tracking_experiments SET artifacts = ? WHERE number = ?", (place, number)
            )
            sql.many(
                "INSERT INTO tracking_experiment_tags (experiment, key, value) VALUES (?, ?, ?)",
                [(number, key, value) for key, value in (tags or {}).items()],
            )
        return Experiment(
            id=str(number),
            name=name,
            artifacts=place,
            tags=dict(tags or {}),
            created=now,
            updated=now,
        )

    def get_experiment(self, experiment: str) -> Experiment:
        """Give one by id."""
        with self._database.read() as sql:
            found = self._experiments(
                sql,
                f"SELECT {_COLUMNS} FROM tracking_experiments e WHERE e.number = ?",
                [number_of(experiment)],
            )
        if not found:
            raise NotFound(f"There is no experiment with the id {experiment!r}.")
        return found[0]

    def find_experiment(self, name: str) -> Experiment | None:
        """Give one by name, or None."""
        with self._database.read() as sql:
            found = self._experiments(
                sql, f"SELECT {_COLUMNS} FROM tracking_experiments e WHERE e.name = ?", [name]
            )
        return found[0] if found else None

    def update_experiment(
        self, experiment: str, *, name: str | None = None, stage: Stage | None = None, now: Time
    ) -> None:
        """Rename, delete (with its runs) or restore one."""
        number = number_of(experiment)
        with self._database.write() as sql:
            row = sql.one("SELECT name FROM tracking_experiments WHERE number = ?", [number])
            if row is None:
                raise NotFound(f"There is no experiment with the id {experiment!r}.")
            if name is not None and name != row[0]:
                if sql.one("SELECT 1 FROM tracking_experiments WHERE name = ?", [name]):
                    raise Conflict(
                        f"There is an experiment {name!r} already.", todo="Take another name."
                    )
                sql.run("UPDATE tracking_experiments SET name = ? WHERE number = ?", (name, number))
            if stage is not None:
                sql.run(
                    "UPDATE tracking_experiments SET stage = ? WHERE number = ?", (stage, number)
                )
                sql.run("UPDATE tracking_runs SET stage = ? WHERE experiment = ?", (stage, number))
            sql.run("UPDATE tracking_experiments SET updated = ? WHERE number = ?", (now, number))

    def tag_experiment(self, experiment: str, key: str, value: str | None, *, now: Time) -> None:
        """Set a tag, or remove it with None."""
        number = number_of(experiment)
        with self._database.write() as sql:
            if not sql.run(
                "UPDATE tracking_experiments SET updated = ? WHERE number = ?", (now, number)
            ):
                raise NotFound(f"There is no experiment with the id {experiment!r}.")
            sql.run(
                "DELETE FROM tracking_experiment_tags WHERE experiment = ? AND key = ?",
                (number, key),
            )
            if value is not None:
                sql.run(
                    "INSERT INTO tracking_experiment_tags (experiment, key, value) VALUES (?, ?, ?)",
                    (number, key, value),
                )

    def search_experiments(
        self,
        *,
        filter: str = "",
        order: Sequence[str] = (),
        stage: Stage | None = "active",
        limit: int = 1000,
        token: str = "",
    ) -> tuple[list[Experiment], str]:
        """Find experiments, and give the token of the next page."""
        query = experiments_query(filter, order, sqlite=self._database.sqlite)
        if stage is not None:
            query.require("e.stage = ?", stage)
        search = (filter, list(order), stage)
        offset = offset_of(token, *search)
        with self._database.read() as sql:
            found = self._experiments(
                sql,
                f"SELECT {_COLUMNS} FROM tracking_experiments e {query.tail()} LIMIT ? OFFSET ?",
                [*query.values(), limit + 1, offset],
            )
        more = len(found) > limit
        return found[:limit], token_at(offset + limit, *search) if more else ""

    def _experiments(self, sql: Statements, text: str, values: Sequence[Any]) -> list[Experiment]:
        rows = sql.all(text, values)
        tags: dict[int, dict[str, str]] = {row[0]: {} for row in rows}
        numbers = list(tags)
        for start in range(0, len(numbers), 5_000):
            some = numbers[start : start + 5_000]
            for number, key, value in sql.all(
                "SELECT experiment, key, value FROM tracking_experiment_tags "
                f"WHERE experiment IN ({marks(some)}) ORDER BY key",
                some,
            ):
                tags[number][key] = value
        return [
            Experiment(
                id=str(row[0]),
                name=row[1],
                artifacts=row[2],
                stage=row[3],
                created=row[4],
                updated=row[5],
                tags=tags[row[0]],
            )
            for row in rows
        ]


_MODEL = "id, experiment, name, kind, run, status, artifacts, params, tags, created, updated"
_ATTRIBUTES = {
    name: name
    for name in (
        "name",
        "model_id",
        "model_type",
        "source_run_id",
        "status",
        "experiment_id",
        "creation_time",
        "creation_timestamp",
        "creation_timestamp_ms",
        "last_updated_timestamp",
        "last_updated_timestamp_ms",
    )
}


class SqlLoggedModels:
    """Implements core.ports.tracking.LoggedModels."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        """Make one in state PENDING."""
        number = number_of(experiment)
        made = "m-" + secrets.token_hex(16)
        with self._database.write() as sql:
            row = sql.one(
                "SELECT artifacts, stage FROM tracking_experiments WHERE number = ?", [number]
            )
            if row is None:
                raise NotFound(f"There is no experiment with the id {experiment!r}.")
            if row[1] == "deleted":
                raise Refused(f"The experiment {experiment} is deleted.", todo="Restore it first.")
            model = LoggedModel(
                id=made,
                experiment=experiment,
                name=name or made[:14],
                kind=kind,
                run=run,
                artifacts=f"{row[0]}/models/{made}/artifacts",
                created=now,
                updated=now,
                params=dict(params or {}),
                tags=dict(tags or {}),
            )
            sql.run(
                f"INSERT INTO tracking_logged_models ({_MODEL}, stage) "
                f"VALUES ({marks(range(11))}, 'active')",
                (
                    model.id,
                    number,
                    model.name,
                    model.kind,
                    model.run,
                    model.status,
                    model.artifacts,
                    _json(model.params),
                    _json(model.tags),
                    now,
                    now,
                ),
            )
        return model

    def get_logged_model(self, model: str) -> LoggedModel:
        """Give one by id."""
        with self._database.read() as sql:
            found = self._models(sql, "WHERE id = ? AND stage = 'active'", [model])
        if not found:
            raise NotFound(f"There is no logged model {model!r}.")
        return found[0]

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
        """Change what is given; a tag of None is removed."""
        with self._database.write() as sql:
            row = sql.one(
                "SELECT params, tags, status, stage FROM tracking_logged_models "
                f"WHERE id = ?{'' if sql.sqlite else ' FOR UPDATE'}",
                [model],
            )
            if row is None or row[3] == "deleted":
                raise NotFound(f"There is no logged model {model!r}.")
            merged = {**msgspec.json.decode(row[1]), **(tags or {})}
            kept = {key: value for key, value in merged.items() if value is not None}
            sql.run(
                "UPDATE tracking_logged_models SET params = ?, tags = ?, status = ?, stage = ?, "
                "updated = ? WHERE id = ?",
                (
                    _json({**msgspec.json.decode(row[0]), **(params or {})}),
                    _json(kept),
                    status or row[2],
                    stage or row[3],
                    now,
                    model,
                ),
            )

    def search_logged_models(
        self,
        experiments: Sequence[str],
        *,
        filter: str = "",
        order: Sequence[str] = (),
        limit: int = 100,
        token: str = "",
    ) -> tuple[list[LoggedModel], str]:
        """Find logged models, and give the token of the next page."""
        conditions = read_filter(filter)
        for condition in conditions:
            if condition.entity == "attribute":
                known_key(condition.key, _ATTRIBUTES)
        orders = [read_order(text) for text in order]
        search = (list(experiments), filter, list(order))
        offset = offset_of(token, *search)
        numbers = [number_of(experiment) for experiment in experiments]
        if not numbers:
            return [], ""
        with self._database.read() as sql:
            found = self._models(
                sql,
                f"WHERE experiment IN ({marks(numbers)}) AND stage = 'active' "
                "ORDER BY created DESC, id",
                numbers,
            )
        fitting = [
            model
            for model in found
            if all(holds(c, _value(model, c.entity, c.key)) for c in conditions)
        ]
        for one in reversed(orders):
            has = [m for m in fitting if _value(m, one.entity, one.key) is not None]
            lacks = [m for m in fitting if _value(m, one.entity, one.key) is None]
            has.sort(
                key=lambda m: _value(m, one.entity, one.key),  # type: ignore[arg-type, return-value]
                reverse=one.descending,
            )
            fitting = has + lacks
        more = len(fitting) > offset + limit
        return (
            fitting[offset : offset + limit],
            token_at(offset + limit, *search) if more else "",
        )

    def _models(self, sql: Statements, tail: str, values: Sequence[Any]) -> list[LoggedModel]:
        rows = sql.all(f"SELECT {_MODEL} FROM tracking_logged_models {tail}", values)
        measured: dict[str, list[tuple[str, Metric]]] = {row[0]: [] for row in rows}
        ids = list(measured)
        for start in range(0, len(ids), 5_000):
            some = ids[start : start + 5_000]
            for row in sql.all(
                "SELECT model, run, key, value, is_nan, time, step, dataset, dataset_digest "
                f"FROM tracking_model_metrics WHERE model IN ({marks(some)}) ORDER BY key, step",
                some,
            ):
                metric = Metric(
                    key=row[2],
                    value=float("nan") if row[4] else row[3],
                    time=row[5],
                    step=row[6],
                    model=row[0],
                    dataset=row[7],
                    dataset_digest=row[8],
                )
                measured[row[0]].append((row[1], metric))
        return [
            LoggedModel(
                id=row[0],
                experiment=str(row[1]),
                name=row[2],
                kind=row[3],
                run=row[4],
                status=row[5],
                artifacts=row[6],
                params=msgspec.json.decode(row[7]),
                tags=msgspec.json.decode(row[8]),
                created=row[9],
                updated=row[10],
                metrics=tuple(measured[row[0]]),
            )
            for row in rows
        ]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _value(model: LoggedModel, entity: str, key: str) -> str | float | None:
    if entity == "metric":
        values = [metric.value for _, metric in model.metrics if metric.key == key]
        return values[-1] if values else None
    if entity == "param":
        return model.params.get(key)
    if entity == "tag":
        return model.tags.get(key)
    if entity == "dataset":
        raise InvalidInput("Logged models are not searched by dataset.")
    attributes: dict[str, str | float] = {
        "name": model.name,
        "model_id": model.id,
        "model_type": model.kind,
        "source_run_id": model.run,
        "status": model.status,
        "experiment_id": model.experiment,
        "creation_time": model.created // 1000,
        "last_updated_timestamp": model.updated // 1000,
    }
    if key.startswith("creation_timestamp"):
        return model.created // 1000
    if key.startswith("last_updated_timestamp"):
        return model.updated // 1000
    known_key(key, _ATTRIBUTES)
    return attributes[key]
