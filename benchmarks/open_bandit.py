"""The Open Bandit data and the estimators of `obp` 0.4.1, both as that package's wheel holds them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl

CAMPAIGNS = ("all", "men", "women")


@dataclass(frozen=True, kw_only=True)
class Log:
    """One policy's log of one campaign: 10,000 rows of a shop's recommendations, clicks as rewards."""

    arm: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    position: np.ndarray
    user: np.ndarray
    arms: int


def package() -> Path:
    """Find the folder of the package without importing it."""
    found = find_spec("obp")
    if found is None or found.origin is None:
        message = "obp is not installed; run 'make setup'"
        raise ModuleNotFoundError(message)
    return Path(found.origin).parent


def read_log(policy: str, campaign: str) -> Log:
    """Read what `policy` ("random" or "bts", a Bernoulli Thompson) logged in a campaign."""
    folder = package() / "dataset" / "obd" / policy / campaign
    rows = pl.read_csv(folder / f"{campaign}.csv")
    users = rows.select(pl.col("^user_feature_.*$")).to_dummies(drop_first=True)
    return Log(
        arm=rows["item_id"].to_numpy(),
        reward=rows["click"].to_numpy().astype(np.float64),
        propensity=rows["propensity_score"].to_numpy(),
        position=rows["position"].to_numpy(),
        user=users.to_numpy().astype(np.float64),
        arms=pl.read_csv(folder / "item_context.csv").height,
    )


def read_prior(campaign: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the Beta parameters that the shop's Thompson policy started from, by arm."""
    found: dict[str, dict[str, list[float]]] = {}
    numbers: list[float] = []
    # Three levels of a plain file: campaign, parameter, one number a line.
    for line in (package() / "policy" / "conf" / "prior_bts.yaml").read_text().splitlines():
        word = line.strip().removesuffix(":")
        if word.startswith("-"):
            numbers.append(float(word.removeprefix("-")))
        elif line.startswith(" "):
            numbers = found[list(found)[-1]].setdefault(word, [])
        elif word:
            found[word] = {}
    return np.array(found[campaign]["alpha"]), np.array(found[campaign]["beta"])


@cache
def estimators() -> ModuleType:
    """Load the package's estimators by themselves.

    The package as a whole wants torch, pandas and a plotting library. What is asked for here runs on
    numpy alone and takes from the others the names of two types, which stand in for them.
    """
    root = package()
    names = ("torch", "pandas", "obp", "obp.ope", "obp.utils", "obp.ope.estimators")
    with _only_for_now(names), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules["torch"] = _module("torch", Tensor=type("Tensor", (), {}))
        sys.modules["pandas"] = _module("pandas", DataFrame=type("DataFrame", (), {}))
        sys.modules["obp"] = _module("obp", __path__=[str(root)])
        sys.modules["obp.ope"] = _module("obp.ope", __path__=[str(root / "ope")])
        return import_module("obp.ope.estimators")


def _module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


@contextmanager
def _only_for_now(names: tuple[str, ...]) -> Iterator[None]:
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
