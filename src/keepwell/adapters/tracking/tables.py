"""Tables of tracking; the migrations make them, a test holds the two equal.

Child rows carry a run's number, not its 32-digit id, so that indexes stay small. ``latest`` holds the newest
value of each metric and is updated in place: searches never touch the history.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects import postgresql

metadata = MetaData()

# SQLite numbers rows by itself only where the type is INTEGER.
_Number = BigInteger().with_variant(Integer(), "sqlite")
# Paths are read by range, which needs the order of bytes and not of a language.
_Path = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# A whole value may be longer than an index entry can be (2,700 bytes on PostgreSQL).
PREFIX = 100

experiments = Table(
    "tracking_experiments",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("artifacts", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
)
experiment_tags = Table(
    "tracking_experiment_tags",
    metadata,
    Column("experiment", BigInteger, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
runs = Table(
    "tracking_runs",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("experiment", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("ended", BigInteger),
    Column("artifacts", Text, nullable=False),
    Index("tracking_runs_by_time", "experiment", "stage", "started", "id"),
)
metrics = Table(
    "tracking_metrics",
    metadata,
    Column("run", BigInteger, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("time", BigInteger, primary_key=True),
    Column("value", Double, primary_key=True),
    Column("is_nan", SmallInteger, primary_key=True),
    sqlite_with_rowid=False,
)
latest = Table(
    "tracking_latest",
    metadata,
    Column("run", BigInteger, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Double, nullable=False),
    Column("is_nan", SmallInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time", BigInteger, nullable=False),
    Index("tracking_latest_by_value", "key", "is_nan", "value", "run"),
    sqlite_with_rowid=False,
)
params = Table(
    "tracking_params",
    metadata,
    Column("run", BigInteger, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index(
    "tracking_params_by_value",
    params.c.key,
    func.substr(params.c.value, text("1"), text("100")),
    params.c.run,
)
tags = Table(
    "tracking_tags",
    metadata,
    Column("run", BigInteger, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index(
    "tracking_tags_by_value",
    tags.c.key,
    func.substr(tags.c.value, text("1"), text("100")),
    tags.c.run,
)
datasets = Table(
    "tracking_datasets",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("experiment", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("source_type", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("schema", Text, nullable=False),
    Column("profile", Text, nullable=False),
    UniqueConstraint("experiment", "name", "digest"),
)
inputs = Table(
    "tracking_inputs",
    metadata,
    Column("run", BigInteger, primary_key=True),
    Column("dataset", BigInteger, primary_key=True),
    Column("context", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Index("tracking_inputs_by_dataset", "dataset"),
)
links = Table(
    "tracking_model_links",
    metadata,
    Column("run", BigInteger, primary_key=True),
    Column("role", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("step", BigInteger, nullable=False),
)
models = Table(
    "tracking_logged_models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("experiment", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("artifacts", Text, nullable=False),
    Column("params", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Index("tracking_logged_models_by_experiment", "experiment", "stage", "created"),
    Index("tracking_logged_models_by_run", "run"),
)
model_metrics = Table(
    "tracking_model_metrics",
    metadata,
    Column("model", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("run", Text, primary_key=True),
    Column("dataset", Text, primary_key=True),
    Column("dataset_digest", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    Column("is_nan", SmallInteger, nullable=False),
)
files = Table(
    "tracking_files",
    metadata,
    Column("path", _Path, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("tracking_files_by_digest", "digest"),
)
