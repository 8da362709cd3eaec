"""The rollback drill: a gateway of its own goes from the plan in force to the one before, under load, and is timed."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

from keepwell.core.errors import KeepwellError, Unavailable
from keepwell.core.ports.blobs import Blobs
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.serving.application import HttpApplication
from keepwell.serving.editions import Edition, EndpointEdition, Shelf
from keepwell.serving.trials import Trial, trial
from keepwell.training.artefacts import read_artefact, read_package

NAME = "rollback drill"
LIMIT_SECONDS = 1.0
"""From the moment at which the plan is published to the last answer of the version that is left."""
CALLERS = 4
LOAD_SECONDS = 1.0
"""Of load before the change, and again after it."""
READY_SECONDS = 60.0


def rollback_drill(
    endpoint: Endpoint, now: TrafficPlan, back: TrafficPlan, *, blobs: Blobs, workers: int
) -> CheckResult:
    """Roll back for real, beside the live gateway: same plans, artefacts, code and number of workers.

    Callers send the champion's golden rows without a pause. It passes if every worker answers by the plan before within
    ``LIMIT_SECONDS`` and no request fails. Raises Unavailable, Corrupt, NotFound.
    """
    artefacts = [arm.artefact for plan in (now, back) for arm in (*plan.answering, *plan.mirrors)]
    with trial(artefacts, blobs=blobs, workers=workers) as own:
        rows = _golden_rows(back, blobs, own.shelf)
        callers = _Callers(own.application, endpoint.name, rows)
        try:
            own.shelf.publish(Edition(number=1, endpoints=(_edition(endpoint, now),)))
            _wait(own, workers)
            callers.start()
            time.sleep(LOAD_SECONDS)
            published = time.monotonic()
            own.shelf.publish(Edition(number=2, endpoints=(_edition(endpoint, back),)))
            time.sleep(LIMIT_SECONDS + LOAD_SECONDS)
        finally:
            callers.stop()
    return _judged(callers, published, back)


def _judged(callers: _Callers, published: float, back: TrafficPlan) -> CheckResult:
    old = [at for at, plan in callers.answers if plan != back.revision]
    after = [at for at, plan in callers.answers if plan == back.revision]
    seconds = max(max(old, default=published) - published, 0.0)
    good = bool(after) and seconds <= LIMIT_SECONDS and not callers.failures
    said = (
        f"all answers came from plan {back.revision} {seconds * 1000:.0f} ms after it was published"
    )
    if not after:
        said = f"no answer came from plan {back.revision}"
    return CheckResult(
        check=NAME,
        verdict="pass" if good else "fail",
        message=f"{said}; {len(callers.answers):,} requests, {len(callers.failures)} failed",
        measured={
            "seconds": round(seconds, 4),
            "requests": len(callers.answers) + len(callers.failures),
            "failed": len(callers.failures),
            "first_failure": callers.failures[0] if callers.failures else "",
            "version": back.arms[0].version,
        },
        limits={"seconds": LIMIT_SECONDS, "failed": 0},
    )


class _Callers:
    """Clients that ask without a pause and note by which plan they were answered, and when they had asked."""

    def __init__(
        self, application: HttpApplication, endpoint: str, rows: list[dict[str, Any]]
    ) -> None:
        self.application = application
        self.answers: list[tuple[float, int]] = []
        self.failures: list[str] = []
        self._endpoint = endpoint
        self._rows = rows
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to ask."""
        self._threads = [
            threading.Thread(target=self._ask, args=(k,), daemon=True) for k in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _ask(self, turn: int) -> None:
        while not self._stop.is_set():
            row = self._rows[turn % len(self._rows)]
            turn += CALLERS
            began = time.monotonic()
            try:
                answer = self.application.predict(self._endpoint, [row])[0]
                self.answers.append((began, int(answer["plan"])))
            except KeepwellError as error:
                self.failures.append(str(error)[:300])


def _edition(endpoint: Endpoint, plan: TrafficPlan) -> EndpointEdition:
    return EndpointEdition(
        name=endpoint.name,
        model=endpoint.model,
        unit=endpoint.unit,
        # Golden rows carry no event time.
        time="",
        log="group",
        plan=plan.revision,
        salt=plan.salt,
        fallback=plan.fallback,
        arms=plan.arms,
        mirrors=plan.mirrors,
        holdout=plan.holdout,
        cohorts=plan.cohorts,
        policy=plan.policy,
        period=plan.period,
    )


def _golden_rows(plan: TrafficPlan, blobs: Blobs, shelf: Shelf) -> list[dict[str, Any]]:
    digest = plan.arms[0].artefact
    package = read_package(read_artefact(digest, blobs=blobs), blobs=blobs)
    golden = msgspec.json.decode((shelf.artefact_folder(digest) / "golden.json").read_bytes())
    names = [column.name for column in package.signature.inputs]
    rows = [dict(zip(names, row, strict=True)) for row in golden["rows"]]
    if not rows:
        raise Unavailable(
            "The champion has no golden rows to send.", todo="Train and release it again."
        )
    return rows


def _wait(own: Trial, workers: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if own.pool.tend():
            raise Unavailable("A process of the drill's gateway died while it loaded.")
        if own.pool.serving() == workers:
            try:
                if own.application.request("GET", "/ready")[0] == 200:
                    return
            except Unavailable:
                pass
        time.sleep(0.05)
    raise Unavailable(f"The drill's gateway was not ready within {READY_SECONDS:.0f} s.")
