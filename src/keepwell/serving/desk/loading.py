"""Loading: what an edition names, in memory, warm and tested, endpoint by endpoint ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from keepwell.core.errors import Corrupt, KeepwellError, Unavailable
from keepwell.core.records.models import Package
from keepwell.core.records.traffic import BUCKETS, Arm
from keepwell.serving.desk.assign import Assignment
from keepwell.serving.desk.codec import Codec, encode
from keepwell.serving.editions import Edition, EndpointEdition, Shelf
from keepwell.serving.log.batches import Answerer
from keepwell.serving.runtimes.links import Links
from keepwell.training.artefacts import check_folder
from keepwell.training.predictors import (
    Predictor,
    golden_problem,
    load_predictor,
    read_package_file,
)

PROCESS = "process"
"""The kind of predictor whose calls are answered later: no tick waits for it."""


class Loaded(msgspec.Struct, frozen=True):
    """One arm with its predictor in memory."""

    arm: Arm
    predictor: Predictor
    beside: bool = False
    """It computes in a runtime, not in this process."""


class Serving(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """One endpoint, ready to answer: itself alone is equal to it, so that others may keep what belongs to it."""

    edition: EndpointEdition
    codec: Codec | None
    arms: tuple[Loaded, ...]
    """Those that may answer; a holdout is the last."""
    mirrors: tuple[Loaded, ...]
    names: tuple[str, ...]
    answerers: tuple[Answerer, ...]
    """The arms, and behind them each cohort's arm once more."""
    tails: tuple[bytes, ...]
    """What an answer's JSON ends with, by arm."""
    assignment: Assignment
    fallback: int | None = None
    """Place of the arm that answers where another fails."""
    left_out: tuple[str, ...] = ()
    """Mirrors that could not be loaded, and why: nobody waits for their answers."""
    beside: bool = False
    """An arm computes in a runtime."""


class Loader:
    """Loads what an edition names, keeping what is loaded already. Runs beside the event loop."""

    def __init__(self, shelf: Shelf, links: Links | None = None) -> None:
        self._shelf = shelf
        self._links = links
        self._loaded: dict[str, tuple[Predictor, Any]] = {}

    def load(self, edition: Edition) -> dict[str, Serving]:
        """Load, warm and self-test every arm. Raises Corrupt, Refused, naming the version."""
        needed: set[str] = set()
        endpoints: dict[str, Serving] = {}
        for endpoint in edition.endpoints:
            arms = tuple(self._arm(arm, needed) for arm in endpoint.answering)
            mirrors: list[Loaded] = []
            left_out: list[str] = []
            for arm in endpoint.mirrors:
                try:
                    mirrors.append(self._arm(arm, needed))
                except KeepwellError as error:
                    left_out.append(str(error))
            codec = None
            signature = None
            if arms:
                package = self._loaded[arms[0].arm.artefact][1]
                signature = package.signature
                codec = Codec(signature, unit=endpoint.unit, time=endpoint.time)
            assignment = Assignment(endpoint, signature)
            endpoints[endpoint.name] = Serving(
                edition=endpoint,
                codec=codec,
                arms=arms,
                mirrors=tuple(mirrors),
                names=tuple(arm.name for arm in endpoint.answering),
                answerers=(
                    *_answerers(endpoint),
                    *(
                        Answerer(arm.name, arm.version, arm.artefact, BUCKETS, cohort.label)
                        for cohort in assignment.cohorts
                        for arm in endpoint.arms
                        if arm.name == cohort.arm
                    ),
                ),
                assignment=assignment,
                tails=tuple(
                    b","
                    + encode({"version": arm.version, "plan": endpoint.plan, "arm": arm.name})[1:]
                    for arm in endpoint.answering
                ),
                fallback=next(
                    (k for k, arm in enumerate(endpoint.arms) if arm.name == endpoint.fallback),
                    None,
                ),
                left_out=tuple(left_out),
                beside=any(loaded.beside for loaded in arms),
            )
        for digest in set(self._loaded) - needed:
            del self._loaded[digest]
        return endpoints

    def _arm(self, arm: Arm, needed: set[str]) -> Loaded:
        needed.add(arm.artefact)
        if arm.artefact not in self._loaded:
            folder = self._shelf.artefact_folder(arm.artefact)
            try:
                check_folder(arm.artefact, folder)
                predictor, package = self._load(arm.artefact, folder)
                problem = _problem(predictor, package, folder)
            except KeepwellError:
                raise
            except Exception as error:
                # Unpickling and the golden rows run the user's classes.
                raise Corrupt(
                    f"{arm.model}/{arm.version} is not served: it raised"
                    f" {type(error).__name__}: {error}"[:400]
                ) from error
            if problem:
                raise Corrupt(f"{arm.model}/{arm.version} is not served: {problem}.")
            self._loaded[arm.artefact] = (predictor, package)
        predictor, package = self._loaded[arm.artefact]
        return Loaded(arm=arm, predictor=predictor, beside=package.predictor == PROCESS)

    def _load(self, artefact: str, folder: Path) -> tuple[Predictor, Package]:
        package = read_package_file(folder)
        if package.predictor != PROCESS:
            return load_predictor(folder)
        if self._links is None:
            raise Unavailable("A model with a process of its own is served by gateways only.")
        return self._links.open(artefact), package


def _answerers(endpoint: EndpointEdition) -> list[Answerer]:
    """List who may answer by chance, each with its share of all units: in whole numbers, so that they add up to 1."""
    held = endpoint.holdout
    if held is None:
        return [Answerer(arm.name, arm.version, arm.artefact, arm.weight) for arm in endpoint.arms]
    left = BUCKETS - held.weight
    return [
        Answerer(
            arm.name,
            arm.version,
            arm.artefact,
            arm.weight * (BUCKETS if arm is held else left),
            out_of=BUCKETS**2,
        )
        for arm in endpoint.answering
    ]


def _problem(predictor: Predictor, package: Package, folder: Path) -> str:
    try:
        return golden_problem(predictor, folder, numeric=package.signature.numeric)
    except Unavailable:
        # A runtime answers its golden rows itself before it is ready, whenever it begins; that it ended since must
        # not keep a worker from serving everything else.
        if package.predictor != PROCESS:
            raise
        return ""
