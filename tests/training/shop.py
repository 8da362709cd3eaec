"""A project whose candidates cover every kind of predictor, over rows with gaps and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from tests.data.flights_like import at

import keepwell as kw
from keepwell.core.project import Project, collecting

ROWS = 600


def visits() -> pl.DataFrame:
    """Decisions a quarter of an hour apart; a tenth of the numbers is missing."""
    draw = np.random.default_rng(7)
    size, age = draw.normal(50, 20, ROWS), draw.normal(0, 1, ROWS)
    chance = 1 / (1 + np.exp(-(size - 50) / 10 - age))
    gaps = draw.random((2, ROWS)) < 0.1
    return pl.DataFrame(
        {
            "id": [f"v{n}" for n in range(ROWS)],
            "came": [at(n / 4) for n in range(ROWS)],
            "size": pl.Series(
                [None if g else v for v, g in zip(size, gaps[0], strict=True)], dtype=pl.Float64
            ),
            "age": pl.Series(
                [None if g else v for v, g in zip(age, gaps[1], strict=True)], dtype=pl.Float64
            ),
            "member": draw.random(ROWS) < 0.5,
            "town": draw.choice(["x", "y", "z"], ROWS),
            "bought": (draw.random(ROWS) < chance).astype(float),
            "spent": size * 2 + draw.normal(0, 1, ROWS),
            "group": draw.integers(0, 3, ROWS),
        },
        schema_overrides={"came": pl.Datetime("us")},
    )


class Own:
    """An estimator of the project's own module."""

    def fit(self, X: Any, y: Any) -> Own:
        self.mean = float(np.mean(y))
        return self

    def predict_proba(self, X: Any) -> Any:
        p = np.full(len(X), self.mean)
        return np.column_stack([1 - p, p])


class Kept(Own):
    """Knows how to save and load itself, as models of any framework can be made to."""

    def save(self, folder: Path) -> None:
        (folder / "mean.txt").write_text(repr(self.mean))

    @classmethod
    def load(cls, folder: Path) -> Kept:
        made = cls()
        made.mean = float((folder / "mean.txt").read_text())
        return made


class Unsaved(Kept):
    """Forgets to save anything."""

    mean = 0.5

    def save(self, folder: Path) -> None:
        pass


class Raising(Unsaved):
    """Fails while it saves."""

    def save(self, folder: Path) -> None:
        raise ZeroDivisionError("no luck")


def kept(X: Any, y: Any, params: Any, seed: int) -> Any:
    return Kept().fit(X, y)


def boosting(X: Any, y: Any, params: Any, seed: int) -> Any:
    return HistGradientBoostingClassifier(max_iter=8, random_state=seed, **params).fit(X, y)


def forest(X: Any, y: Any, params: Any, seed: int) -> Any:
    steps = SimpleImputer(), RandomForestClassifier(n_estimators=5, max_depth=4, random_state=seed)
    return make_pipeline(*steps).fit(X, y)


def linear(X: Any, y: Any, params: Any, seed: int) -> Any:
    steps = SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(**params)
    return make_pipeline(*steps).fit(X, y)


def bayes(X: Any, y: Any, params: Any, seed: int) -> Any:
    return make_pipeline(SimpleImputer(), GaussianNB()).fit(X, y)


def own(X: Any, y: Any, params: Any, seed: int) -> Any:
    return Own().fit(X, y)


def ridge(X: Any, y: Any, params: Any, seed: int) -> Any:
    return make_pipeline(SimpleImputer(), StandardScaler(), Ridge(**params)).fit(X, y)


def by_town(X: Any, y: Any, params: Any, seed: int) -> Any:
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["town"]), (SimpleImputer(), ["size", "age"])
    )
    return make_pipeline(columns, LogisticRegression(max_iter=500)).fit(X, y)


def raising(X: Any, y: Any, params: Any, seed: int) -> Any:
    raise ZeroDivisionError("no luck")


def nothing(X: Any, y: Any, params: Any, seed: int) -> Any:
    return None


def half(X: Any) -> Any:
    return np.full(X.height, 0.5)


def thirds(X: Any) -> Any:
    return np.full((X.height, 3), 1 / 3)


def project() -> Project:
    """Declare all of it."""
    with collecting(Project(name="shop", sources={}, views={}, on_demand={}, models={})) as made:
        source = kw.source(timestamp="came", key="id")(visits)
        numbers = ["size", "age", "member"]
        buys = kw.model("buys", source=source, features=numbers, label="bought", slices=["town"])
        buys.baseline(half)
        for train in (boosting, forest, linear, bayes, own, raising, nothing):
            buys.candidate(train.__name__)(train)
        towns = kw.model("towns", source=source, features=["town", *numbers[:2]], label="bought")
        towns.baseline(half)
        towns.candidate("by_town")(by_town)
        spends = kw.model(
            "spends", source=source, features=numbers, label="spent", task="regression"
        )
        spends.baseline(half)
        spends.candidate("ridge", alpha=0.5)(ridge)
        groups = kw.model(
            "groups", source=source, features=numbers, label="group", task="multiclass"
        )
        groups.baseline(thirds)
        for train in (boosting, bayes):
            groups.candidate(train.__name__)(train)
    return made
