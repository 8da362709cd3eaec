"""A small project with every kind of declaration, over frames that a test can change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

import keepwell as kw
from keepwell.core.project import Project, collecting

START = datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def micros(hours: float) -> int:
    return round((at(hours) - datetime(1970, 1, 1)).total_seconds() * 1_000_000)


def orders(count: int = 120) -> pl.DataFrame:
    """Decisions an hour apart; the label is known two days later."""
    return pl.DataFrame(
        {
            "id": [f"o{n}" for n in range(count)],
            "placed": [at(n) for n in range(count)],
            "closed": [at(n + 48) for n in range(count)],
            "shop": [("a", "b", "c")[n % 3] for n in range(count)],
            "price": [float(n % 7) for n in range(count)],
            "returned": [float((n * 7) % 5 < 2) for n in range(count)],
        },
        schema_overrides={"placed": pl.Datetime("us"), "closed": pl.Datetime("us")},
    )


def readings(count: int = 60) -> pl.DataFrame:
    """What was measured in each shop every three hours, published an hour after."""
    return pl.DataFrame(
        {
            "shop": [("a", "b")[n % 2] for n in range(count)],
            "seen": [at(3 * (n // 2)) for n in range(count)],
            "published": [at(3 * (n // 2) + 1) for n in range(count)],
            "crowd": [float(n) for n in range(count)],
        },
        schema_overrides={"seen": pl.Datetime("us"), "published": pl.Datetime("us")},
    )


def project(frames: dict[str, Any], *, ttl: str | None = "12h", key: str = "id") -> Project:
    """Declare the project over ``frames``: ``orders`` and ``readings``."""
    with collecting(Project(name="shop", sources={}, views={}, on_demand={}, models={})) as made:

        @kw.source(name="orders", timestamp="placed", known_at="closed", key=key)
        def load_orders() -> Any:
            return frames["orders"]

        @kw.source(name="readings", timestamp="seen", known_at="published")
        def load_readings() -> Any:
            return frames["readings"]

        @kw.feature_view(source=load_readings, entity="shop", timestamp="published", ttl=ttl)
        def crowding(rows: pl.DataFrame) -> pl.DataFrame:
            return rows.select("shop", "published", "crowd")

        @kw.on_demand
        def prices(rows: pl.DataFrame) -> pl.DataFrame:
            return rows.select((pl.col("price") * 2).alias("double_price"))

        kw.model(
            "returns", source=load_orders, features=["price", "double_price", "crowd"], label="returned",
            unit="shop", slices=["shop"],
        )  # fmt: skip
    return made
