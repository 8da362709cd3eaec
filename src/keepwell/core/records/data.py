"""Data as Keepwell keeps it: snapshots of sources and point-in-time training sets, named by content."""

from __future__ import annotations

from typing import ClassVar, Literal

from keepwell.core.clock import Time
from keepwell.core.digest import Digest
from keepwell.core.records.base import Record, Value

Dtype = Literal["float64", "int64", "bool", "string", "datetime"]


class Column(Value, frozen=True, kw_only=True):
    """One column of a table: its name, type, and what was seen in it."""

    name: str
    dtype: Dtype
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()


class Snapshot(Record, frozen=True, kw_only=True):
    """An immutable dataset: the rows of a source that were known at ``as_of``, as a Parquet blob."""

    TABLE = "snapshots"
    KEY = ("content",)
    INDEX: ClassVar = (("source", "created"),)

    content: Digest
    """Digest of the Parquet blob."""
    source: str
    as_of: Time
    since: Time | None = None
    until: Time | None = None
    rows: int
    columns: tuple[Column, ...]
    code: Digest
    expectations: Digest
    """Blob of the data tests inferred from this snapshot, as JSON."""
    created: Time


class TrainingSet(Record, frozen=True, kw_only=True):
    """Decision rows joined with features as they were known at each decision, as a Parquet blob."""

    TABLE = "training_sets"
    KEY = ("content",)
    INDEX: ClassVar = (("model", "created"),)

    content: Digest
    """Digest of the Parquet blob."""
    model: str
    snapshots: dict[str, Digest]
    views: dict[str, Digest]
    """Feature views by name, with the digest of their source code."""
    as_of: Time
    since: Time | None = None
    until: Time | None = None
    rows: int
    columns: tuple[Column, ...]
    created: Time
