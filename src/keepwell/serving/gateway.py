"""The gateway's parent: watches the store, admits versions by their evidence, publishes editions, tends workers."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from keepwell.core.admission import admission_problems, approvals_needed
from keepwell.core.clock import Clock
from keepwell.core.digest import digest_of
from keepwell.core.errors import Corrupt, InvalidInput, KeepwellError, Unavailable
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.signing import Verifier
from keepwell.core.ports.store import Store
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import BUCKETS, Arm, Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert
from keepwell.serving.editions import Edition, EndpointEdition, Shelf
from keepwell.serving.pool import Pool
from keepwell.serving.sockets import bind, reserve
from keepwell.serving.stopping import StopSignal
from keepwell.serving.telemetry.accesslog import check_place
from keepwell.serving.telemetry.meters import SPENT, retire
from keepwell.serving.terms import Terms
from keepwell.serving.transport.gate import read_digests
from keepwell.serving.transport.tls import read_context
from keepwell.training.artefacts import check_folder, unpack_artefact

LOOK_SECONDS = 0.05
RECHECK_SECONDS = 30.0
AGAIN_SECONDS = 1.0
"""So long the parent waits before it tries again to write what could not be written."""


class Publisher:
    """Turns the store's plans into editions, leaving out every arm whose evidence does not hold."""

    def __init__(
        self, *, store: Store, blobs: Blobs, verifier: Verifier, shelf: Shelf, clock: Clock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._verifier = verifier
        self._shelf = shelf
        self._clock = clock
        self._number = shelf.read().number
        self._last: tuple[EndpointEdition, ...] | None = None

    def refresh(self) -> bool:
        """Look at all plans again, with every digest and signature; publish if anything differs from last time."""
        endpoints = tuple(self._endpoint(endpoint) for endpoint in self._store.find(Endpoint))
        if endpoints == self._last:
            return False
        self._number = max(self._number, self._shelf.generation()) + 1
        self._shelf.publish(Edition(number=self._number, endpoints=endpoints))
        self._last = endpoints
        return True

    def _endpoint(self, endpoint: Endpoint) -> EndpointEdition:
        plans = self._store.find(
            TrafficPlan, {"endpoint": endpoint.name}, order=["-revision"], limit=1
        )
        plan = plans[0] if plans else None
        refusals: list[str] = []
        arms: list[Arm] = []
        mirrors: list[Arm] = []
        for arm in plan.arms if plan else ():
            problems = self._problems(arm, answers=True)
            if problems:
                refusals.append(f"{arm.model}/{arm.version}: {'; '.join(problems)}")
                self._alert(endpoint, arm, problems)
            else:
                arms.append(arm)
        for arm in plan.mirrors if plan else ():
            problems = self._problems(arm, answers=False)
            if problems:
                self._alert(endpoint, arm, problems)
            else:
                mirrors.append(arm)
        holdout = plan.holdout if plan else None
        if holdout is not None and arms:
            problems = self._problems(holdout, answers=True) or self._misfit(holdout, arms[0])
            if problems:
                # Whom it held out is then answered by the arms like all others: nobody goes without an answer.
                self._alert(endpoint, holdout, problems)
                holdout = None
        return EndpointEdition(
            name=endpoint.name,
            model=endpoint.model,
            unit=endpoint.unit,
            time=endpoint.time,
            log=endpoint.log,
            log_share=endpoint.log_share if endpoint.log == "sampled" else 1.0,
            plan=plan.revision if plan else 0,
            salt=plan.salt if plan else "",
            fallback=plan.fallback if plan else "",
            arms=_rebalanced(arms, plan.fallback if plan else ""),
            mirrors=tuple(mirrors),
            holdout=holdout if arms else None,
            # Of a cohort whose arm is refused, the rows are assigned like all others.
            cohorts=plan.cohorts if plan else (),
            policy=plan.policy if plan else None,
            period=plan.period if plan else None,
            gap=plan.gap if plan and not plan.arms else "refuse",
            gap_seconds=plan.gap_seconds if plan else 0.0,
            refused="; ".join(refusals),
        )

    def _problems(self, arm: Arm, *, answers: bool) -> list[str]:
        version = self._store.get(ModelVersion, arm.model, arm.version)
        if version is None:
            return ["there is no such version"]
        if version.artefact != arm.artefact:
            return ["the plan names another artefact than the version has"]
        try:
            problems = admission_problems(
                version,
                approvals=approvals_needed(arm.model, store=self._store) if answers else 0,
                store=self._store,
                blobs=self._blobs,
                verifier=self._verifier,
                now=self._clock.now(),
            )
            if not problems:
                self._unpack(arm)
        except KeepwellError as error:
            return [str(error)]
        return problems

    def _misfit(self, holdout: Arm, first: Arm) -> list[str]:
        """Tell why the holdout cannot read what the arms are sent: one signature reads the requests of all."""
        found, other = (
            self._store.get(ModelVersion, arm.model, arm.version) for arm in (holdout, first)
        )
        if found is None or other is None or found.signature == other.signature:
            return []
        return [f"it is held out with another signature than that of {other.label()}"]

    def _unpack(self, arm: Arm) -> None:
        """Lay the artefact out for the workers, anew where its files are not what they were."""
        folder = self._shelf.artefact_folder(arm.artefact)
        try:
            check_folder(arm.artefact, folder)
        except Corrupt:
            unpack_artefact(arm.artefact, folder, blobs=self._blobs)

    def _alert(self, endpoint: Endpoint, arm: Arm, problems: list[str]) -> None:
        """Raise one alert for one reason, however often it is looked at."""
        identity = f"admission-{digest_of([endpoint.name, arm.artefact, problems])[7:19]}"
        now = self._clock.now()
        with self._store.transaction(actor="gateway") as transaction:
            if transaction.get(Alert, identity) is None:
                transaction.add(
                    Alert(
                        id=identity,
                        endpoint=endpoint.name,
                        model=arm.model,
                        version=arm.version,
                        monitor="admission",
                        severity="critical",
                        message=f"{arm.model}/{arm.version} is refused: {'; '.join(problems)}"[
                            :2000
                        ],
                        event_time=now,
                        opened=now,
                    )
                )


def _rebalanced(arms: list[Arm], fallback: str) -> tuple[Arm, ...]:
    """Give the buckets of refused arms to the fallback, else to the first arm with a weight, else to the first."""
    missing = BUCKETS - sum(arm.weight for arm in arms)
    if not arms or not missing:
        return tuple(arms)
    order = sorted(range(len(arms)), key=lambda i: (arms[i].name != fallback, not arms[i].weight))
    heir = order[0]
    arms[heir] = msgspec.structs.replace(arms[heir], weight=arms[heir].weight + missing)
    return tuple(arms)


def run_gateway(
    *,
    store: Store,
    blobs: Blobs,
    verifier: Verifier,
    state: Path,
    host: str,
    port: int,
    workers: int,
    clock: Clock,
    grpc_port: int | None = None,
    terms: Terms | None = None,
    ready: Callable[[int, int | None], None] | None = None,
    replaced: Callable[[Sequence[int], str], None] | None = None,
    say: Callable[[str], object] = sys.stderr.write,
) -> None:
    """Run until SIGTERM or SIGINT. ``ready`` is told the port, and that of gRPC, once they are bound.

    SIGHUP replaces all workers, so that they run the code that is on the disk now, without losing a request.
    ``replaced`` is told the ids of those that serve then, and what was wrong if the new ones did not.
    Without ``grpc_port`` there is no gRPC; 0 takes a free port. Without ``workers`` nothing listens: editions and
    runtimes are tended for the processes of an ASGI server (``keepwell.serving.asgi``).
    While the store does not answer, the workers go on with the last edition. Raises Unavailable if the
    port is taken.
    """
    if terms and terms.tokens:
        read_digests(Path(terms.tokens))  # told at the start, not by refusing everybody
    if terms and terms.tls_certificate:
        read_context(Path(terms.tls_certificate), Path(terms.tls_key))
    if terms and terms.access_log:
        check_place(terms.access_log)
    if terms and terms.traces_endpoint:
        check_traces(terms.traces_endpoint)
    ending = StopSignal()
    ending.listen()
    again = _Asked(ending)
    signal.signal(signal.SIGHUP, again.ask)
    held = _grpc_socket(host, grpc_port) if workers else None
    try:
        listening = bind(host, port) if workers else socket.socket()
    except Unavailable:
        if held is not None:
            held.close()
        raise
    shelf = Shelf(state / "editions")
    publisher = Publisher(store=store, blobs=blobs, verifier=verifier, shelf=shelf, clock=clock)
    meters = state / "run" / "meters"
    retire(meters, state / SPENT)  # counters of an earlier gateway
    grpc_bound = int(held.getsockname()[1]) if held is not None else None
    pool = Pool(
        listening,
        editions=shelf.folder,
        log=state / "log",
        meters=meters,
        workers=workers,
        grpc=_address(host, grpc_bound) if grpc_bound else "",
        terms=terms,
    )
    seen = -1
    checked = 0
    trouble = ""
    again_at = 0.0
    replacing = False
    try:
        while not ending.is_set():
            said = ""
            try:
                if time.monotonic() >= again_at:
                    version = store.version()
                    due = clock.now() - checked > RECHECK_SECONDS * 1_000_000
                    if version != seen or due:
                        publisher.refresh()
                        seen, checked = version, clock.now()
            except Unavailable:
                seen = -1
            except OSError as error:
                # A full disk, or a folder that is gone: what is served goes on being served.
                seen = -1
                again_at = time.monotonic() + AGAIN_SECONDS
                said = f"what is to be served cannot be written: {error}"
            try:
                if again.take():
                    pool.replace()
                    replacing = True
                pool.tend()
            except OSError as error:
                said = f"a worker cannot be started: {error}"
            if replacing and not pool.replacing:
                replacing = False
                if pool.problem:
                    say(f"keepwell gateway: the workers were not replaced: {pool.problem}\n")
                if replaced is not None:
                    replaced(pool.pids(), pool.problem)
            if said and said != trouble:
                say(f"keepwell gateway: {said}\n")
            trouble = said or (trouble if time.monotonic() < again_at else "")
            if ready is not None:
                ready(int(listening.getsockname()[1]) if workers else port, grpc_bound)
                ready = None
            ending.wait(LOOK_SECONDS)
    finally:
        pool.stop()
        listening.close()
        if held is not None:
            held.close()


def check_traces(endpoint: str) -> None:
    """See at the start whether traces can be sent. Raises InvalidInput, Unavailable."""
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidInput(
            f"Traces cannot go to {endpoint!r}.",
            todo="Set traces_endpoint under [server] to a URL such as http://127.0.0.1:4318/v1/traces.",
        )
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise Unavailable(
            "Traces are set by traces_endpoint, and their packages are not installed.",
            todo="Install them: pip install 'keepwell[otel]'; or take traces_endpoint out of [server].",
        )


class _Asked:
    """Remembers that the workers are to be replaced; asked by a signal."""

    def __init__(self, ending: StopSignal) -> None:
        self._ending = ending
        self._is = False

    def ask(self, *_: object) -> None:
        self._is = True
        self._ending.wake()

    def take(self) -> bool:
        was, self._is = self._is, False
        return was


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _grpc_socket(host: str, port: int | None) -> socket.socket | None:
    if port is None:
        return None
    if find_spec("grpc") is None:
        raise Unavailable(
            "gRPC is set by grpc_port, and its package is not installed.",
            todo="Install it: pip install 'keepwell[grpc]'; or take grpc_port out of [server] in keepwell.toml.",
        )
    return reserve(host, port)
