"""The stage: a candidate behind a real gateway of its own, in a fresh process, on a free loopback port."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.core.ports.blobs import Blobs
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import BUCKETS, Arm, Endpoint
from keepwell.serving.application import HttpApplication
from keepwell.serving.editions import Edition, EndpointEdition
from keepwell.serving.pool import Pool
from keepwell.serving.trials import Trial, trial

READY_SECONDS = 30.0


class StagedVersion:
    """Implements ``keepwell.core.ports.stage.Staged``."""

    def __init__(
        self, application: HttpApplication, *, endpoint: str, pool: Pool, load_seconds: float
    ) -> None:
        self._application = application
        self._endpoint = endpoint
        self._pool = pool
        self._load_seconds = load_seconds

    @property
    def load_seconds(self) -> float:
        """See ``keepwell.core.ports.stage.Staged``."""
        return self._load_seconds

    @property
    def memory_bytes(self) -> int:
        """See ``keepwell.core.ports.stage.Staged``."""
        for line in Path(f"/proc/{self._pool.pids()[0]}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise Unavailable("The staged process does not tell its memory.")

    def predict(self, rows: Sequence[dict[str, Any]]) -> list[Any]:
        """See ``keepwell.core.ports.stage.Staged``."""
        return [a["prediction"] for a in self._application.predict(self._endpoint, rows)]

    def raw(self, body: bytes) -> tuple[int, bytes]:
        """See ``keepwell.core.ports.stage.Staged``."""
        return self._application.request("POST", f"/v1/endpoints/{self._endpoint}/predict", body)


class GatewayStage:
    """Opens staged versions under a temporary folder. Implements ``keepwell.core.ports.stage.Stage``."""

    def __init__(self, *, blobs: Blobs) -> None:
        self._blobs = blobs

    @contextmanager
    def open(self, version: ModelVersion, endpoint: Endpoint) -> Iterator[StagedVersion]:
        """See ``keepwell.core.ports.stage.Stage``."""
        arm = Arm(
            name="candidate",
            model=version.model,
            version=version.version,
            artefact=version.artefact,
            weight=BUCKETS,
        )
        with trial([version.artefact], blobs=self._blobs, workers=1) as own:
            own.shelf.publish(
                Edition(
                    number=1,
                    endpoints=(
                        EndpointEdition(
                            name=endpoint.name,
                            model=endpoint.model,
                            unit=endpoint.unit,
                            # Golden rows carry no event time, so the stage does not ask for one.
                            time="",
                            log="group",
                            plan=0,
                            salt="stage",
                            fallback="",
                            arms=(arm,),
                            mirrors=(),
                        ),
                    ),
                )
            )
            began = time.monotonic()
            own.pool.tend()
            self._wait(own, version)
            yield StagedVersion(
                own.application,
                endpoint=endpoint.name,
                pool=own.pool,
                load_seconds=time.monotonic() - began,
            )

    @staticmethod
    def _wait(own: Trial, version: ModelVersion) -> None:
        deadline = time.monotonic() + READY_SECONDS
        answer = b""
        while time.monotonic() < deadline:
            try:
                status, answer = own.application.request("GET", "/ready")
            except Unavailable:
                status = 0
            if status == 200:
                return
            problem = msgspec.json.decode(answer).get("problem") if answer else ""
            if problem:
                raise InvalidInput(f"{version.label()} does not load: {problem}")
            if own.pool.tend():
                raise Unavailable(f"The process that loads {version.label()} died.")
            time.sleep(0.05)
        raise Unavailable(f"{version.label()} was not ready within {READY_SECONDS:.0f} s.")
