"""Puts the parts together: the only module that names an adapter."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import keepwell
from keepwell.adapters.alerts.file import AlertFile
from keepwell.adapters.alerts.webhook import Webhook
from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.executor import ProcessExecutor
from keepwell.adapters.signing.dsse import DsseSigner, DsseVerifier, has_key, open_signer
from keepwell.adapters.stores.sql import SqlStore, open_store
from keepwell.app.config import read_project, read_settings
from keepwell.core.clock import SystemClock, Time, duration
from keepwell.core.errors import Corrupt, NotFound, Refused, near_miss
from keepwell.core.ports.alerts import Channel
from keepwell.core.ports.engine import Engine
from keepwell.core.ports.rollouts import Gain
from keepwell.core.ports.tracking import TrackingStore
from keepwell.core.project import Project
from keepwell.core.records.evidence import CheckResult, SigningKey
from keepwell.core.records.lifecycle import User
from keepwell.core.records.models import ModelVersion
from keepwell.core.settings import Settings
from keepwell.lifecycle.context import Context
from keepwell.serving.application import HttpApplication

if TYPE_CHECKING:
    import polars as pl

    from keepwell.serving.log.segments import SegmentLog
    from keepwell.serving.rollouts.controllers import Labels
    from keepwell.serving.rollouts.driver import RolloutDriver
    from keepwell.watch.watcher import Watcher


class State:
    """A project's parts, each made when it is first asked for.

    The project's own module is one of them, and what only some processes need is imported where it is used: a
    gateway and a server start, and serve, without the user's code and its libraries.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.clock = SystemClock()
        self.state = folder / settings.store.state

    @cached_property
    def project(self) -> Project:
        """What the project's module declares. Raises NotFound, InvalidInput with the user's own line."""
        return read_project(self.folder, self.settings)

    @cached_property
    def store(self) -> SqlStore:
        """The store, migrated, with the project's users and its signing key in it."""
        store = open_store(store_url(self.folder, self.settings), clock=self.clock)
        self._declare(store)
        return store

    def _declare(self, store: SqlStore) -> None:
        known = {user.name: user for user in store.find(User)}
        wanted = {
            name: User(name=name, roles=given.roles) for name, given in self.settings.users.items()
        }
        # A key is made once. One that is lost is not replaced without a word: see ``signer``.
        lost = not has_key(self.state / "keys") and store.count(SigningKey) > 0
        key = None if lost else self._own_key()
        changed = {
            name: user
            for name, user in wanted.items()
            if name not in known or known[name].roles != user.roles
        }
        # Whoever is no longer declared stays for the audit trail, and may do nothing.
        changed |= {
            name: msgspec.structs.replace(user, roles=())
            for name, user in known.items()
            if name not in wanted and user.roles
        }
        if key is not None and store.get(SigningKey, key.keyid) is not None:
            key = None
        if not changed and key is None:
            return
        with store.transaction(actor="keepwell.toml") as transaction:
            if key is not None and transaction.get(SigningKey, key.keyid) is None:
                transaction.add(key)
            for name, user in changed.items():
                before = transaction.get(User, name)
                if before is None:
                    transaction.add(user)
                elif before.roles != user.roles:
                    transaction.replace(
                        msgspec.structs.replace(
                            before, roles=user.roles, revision=before.revision + 1
                        )
                    )

    @cached_property
    def blobs(self) -> FileBlobs:
        """The blobs."""
        return FileBlobs(self.folder / self.settings.store.blobs)

    @cached_property
    def signer(self) -> DsseSigner:
        """The project's signer. Raises Corrupt if its key is lost."""
        if self.store.count(SigningKey) and not has_key(self.state / "keys"):
            raise Corrupt(
                "The project's signing key is not there any more.",
                where=str(self.state / "keys"),
                todo="Restore it from a backup, or let a new one sign from now on"
                " with 'keepwell evidence new-key'.",
            )
        return open_signer(self.state / "keys", trusted=self.store.find(SigningKey))

    def _own_key(self) -> SigningKey:
        signer = open_signer(self.state / "keys")
        return SigningKey(keyid=signer.keyid, public=signer.public, created=self.clock.now())

    def new_key(self, *, actor: str) -> SigningKey:
        """Make a key where the old one is lost. Raises Refused if it is not."""
        if has_key(self.state / "keys"):
            raise Refused(
                "The project has its signing key.",
                where=str(self.state / "keys"),
                todo="Move it away first if it must not sign any more.",
            )
        key = self._own_key()
        with self.store.transaction(actor=actor) as transaction:
            transaction.add(key, reason="the old key is lost")
        return key

    @cached_property
    def verifier(self) -> DsseVerifier:
        """Checks envelopes against the keys in the store, as an auditor without the private key would."""
        return DsseVerifier(self.store.find(SigningKey))

    @cached_property
    def tracker(self) -> TrackingStore:
        """The tracking store, on the same database."""
        from keepwell.adapters.tracking.sql import open_tracking

        self.store  # noqa: B018 - the store's opening is what migrates the database
        return open_tracking(store_url(self.folder, self.settings))

    @cached_property
    def log(self) -> SegmentLog:
        """The prediction log, to read."""
        from keepwell.serving.log.segments import SegmentLog

        return SegmentLog(self.state / "log")

    def decisions(self, endpoint: str, *, since: Time, until: Time) -> pl.DataFrame:
        """Give an endpoint's decisions with their outcomes, by its own settings. Raises NotFound, Corrupt."""
        from keepwell.serving.log.decisions import read_decisions

        given = self.settings.endpoints.get(endpoint)
        if given is None:
            raise NotFound(
                f"There is no endpoint {endpoint!r}.",
                todo=near_miss(endpoint, self.settings.endpoints),
            )
        return read_decisions(
            self.state / "log",
            endpoint,
            since,
            until,
            expires=duration(given.outcome_expires) if given.outcome_expires else None,
            default=given.default_outcome,
            now=self.clock.now(),
        )

    @property
    def gateway_token(self) -> str:
        """The token by which the project's own processes ask the gateway, where it wants one."""
        return os.environ.get("KEEPWELL_GATEWAY_TOKEN", "")

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers: what the running one has said, else what the settings say."""
        try:
            said = msgspec.json.decode((self.state / "run" / "gateway.json").read_bytes())
            return str(said["url"])
        except (OSError, KeyError, msgspec.DecodeError):
            server = self.settings.server
            scheme = "https" if server.tls_certificate else "http"
            return f"{scheme}://{server.host}:{server.gateway_port}"

    def gateway_trust(self) -> ssl.SSLContext | None:
        """Trust the gateway's certificate as its file is now; None where it has none. Raises Unavailable."""
        from keepwell.serving.transport.tls import trust

        named = self.settings.server.tls_certificate
        return trust(self.folder / named) if named else None

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """The channels that alerts go to."""
        return tuple(
            AlertFile(name=given.name, path=self.folder / given.path)
            if given.kind == "file"
            else Webhook(name=given.name, url=given.url)
            for given in self.settings.alerts
        )

    @cached_property
    def executor(self) -> ProcessExecutor:
        """Where heavy tasks run."""
        return ProcessExecutor(folder=self.folder)

    @cached_property
    def rollouts(self) -> RolloutDriver:
        """Starts and drives rollouts."""
        from keepwell.serving.rollouts.driver import RolloutDriver

        return RolloutDriver(
            store=self.store,
            blobs=self.blobs,
            signer=self.signer,
            log=self.log,
            clock=self.clock,
            gain_of=lambda model: gain_of(self.project, model, metric=self.settings.rollout.metric),
            settings=_plain(self.settings.rollout),
            strategies=self.settings.strategies,
            labels_of=self._labels_of,
            money_of=self._money_of,
        )

    def _money_of(self, model: str) -> Gain | None:
        """Give what a decision earned by the model's KPI, where it has one."""
        declared = self.project.model(model)
        if declared.kpi_function is None:
            return None
        return gain_of(self.project, model, metric="kpi")

    def _labels_of(self, endpoint: str) -> Labels:
        """Tell what a decision without an outcome counts as, and when."""
        from keepwell.serving.rollouts.controllers import Labels

        declared = self.settings.endpoints.get(endpoint)
        if declared is None or declared.default_outcome is None:
            return Labels()
        return Labels(duration(declared.outcome_expires), declared.default_outcome)

    @property
    def context(self) -> Context:
        """What releases and activations work with."""
        from keepwell.serving.stage import GatewayStage

        return Context(
            project=self.project,
            settings=self.settings,
            folder=self.folder,
            store=self.store,
            blobs=self.blobs,
            signer=self.signer,
            verifier=self.verifier,
            clock=self.clock,
            stage=GatewayStage(blobs=self.blobs),
            application=HttpApplication(
                self.gateway_url, token=self.gateway_token, trust=self.gateway_trust
            ),
            rollouts=self.rollouts,
            drills=_Drills(self),
        )

    def watcher(self) -> Watcher:
        """Make the watcher; one process at a time may run it."""
        from keepwell.watch.watcher import Watcher

        return Watcher(
            project=self.project,
            settings=self.settings,
            store=self.store,
            log=self.log,
            blobs=self.blobs,
            channels=self.channels,
            clock=self.clock,
        )

    def engine(self) -> Engine:
        """Make the engine of durable work; only the worker does, because it costs a second to import."""
        from keepwell.adapters.engine.dbos_engine import DbosEngine

        return DbosEngine(
            store=self.store, state=self.state, version=keepwell.__version__, clock=self.clock
        )


class _Drills:
    """Runs drills with this project's own channels."""

    def __init__(self, state: State) -> None:
        self._state = state

    def alert(self, endpoint: str, version: ModelVersion) -> CheckResult:
        from keepwell.watch.drills import alert_drill

        state = self._state
        return alert_drill(
            endpoint,
            version,
            project=state.project,
            settings=state.settings,
            store=state.store,
            blobs=state.blobs,
            channels=state.channels,
            clock=state.clock,
        )


def _plain(settings: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = msgspec.to_builtins(settings)
    return plain


def gain_of(project: Project, model: str, *, metric: str) -> Gain:
    """Give what a decision gains: by the project's KPI in money, or by the proper loss that probabilities earn."""
    import numpy as np

    from keepwell.checks.model.validation import loss_rows
    from keepwell.training.own import money_of

    declared = project.model(model)

    def by_loss(predictions: Any, outcomes: Any) -> Any:
        return -loss_rows(declared.task, np.asarray(outcomes), np.asarray(predictions))

    def by_kpi(predictions: Any, outcomes: Any) -> Any:
        return money_of(declared, np.asarray(predictions), np.asarray(outcomes))

    return by_kpi if metric == "kpi" else by_loss


def store_url(folder: Path, settings: Settings) -> str:
    """Give the store's URL with a relative SQLite path put inside the project's folder."""
    url = settings.store.url
    if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        return f"sqlite:///{(folder / url.removeprefix('sqlite:///')).resolve()}"
    return url


def open_state(folder: Path) -> State:
    """Open the project in a folder. Raises NotFound, InvalidInput for what is wrong with its settings."""
    return State(folder, read_settings(folder))
