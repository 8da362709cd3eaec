"""The values of a project: what ``keepwell.toml`` says, with defaults that are safe on one machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from keepwell.core.records.lifecycle import Role

Number = int | float
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Several = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Limit = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
"""A part of a whole, or a probability of error: neither none nor all of it."""

DURATIONS: tuple[tuple[str, str], ...] = (
    ("policy", "approval_expires"),
    ("renewal", "history"),
    ("monitors", "window"),
    ("monitors", "cooldown"),
)
"""Table and field of the values that are lengths of time; an empty one stands for none."""


class Values(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. Unknown names are refused, so that a typing error never goes unnoticed."""


class ProjectSettings(Values, frozen=True, kw_only=True):
    """The table ``[project]``."""

    name: str
    """What pages and messages call the project."""
    module: str
    """Python module or package of declarations, relative to the project's folder."""


class StoreSettings(Values, frozen=True, kw_only=True):
    """``[store]``: where state lives. Relative paths are inside the project's folder."""

    url: str = "sqlite:///.keepwell/keepwell.db"
    """Database of records: ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``."""
    blobs: str = ".keepwell/blobs"
    """Folder of artefacts, snapshots and envelopes, each file named by its SHA-256."""
    state: str = ".keepwell"
    """Folder of keys, prediction log, editions and the files of running processes."""


class ServerSettings(Values, frozen=True, kw_only=True):
    """``[server]``: addresses. Loopback unless told otherwise. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    """Address that the server and the gateway listen on."""
    port: Port = 7070
    """Control API, tracking API and dashboard."""
    gateway_port: Port = 7071
    """Predictions and outcomes."""
    gateway_workers: Count = 1
    """Processes that answer predictions, on one shared socket; 0: none, for an ASGI server does."""
    grpc_port: int | None = None
    """Open Inference Protocol over gRPC, beside the gateway's HTTP (extra ``grpc``); 0 takes a free port."""
    gateway_token_file: str = ""
    """File in the project's folder with a line ``sha256:HEX`` a token that may ask the gateway; empty: all may."""
    tls_certificate: str = ""
    """PEM file in the project's folder with the gateway's certificate and its chain; empty: no TLS."""
    tls_key: str = ""
    """PEM file with the certificate's key, not encrypted."""
    access_log: str = ""
    """File in the project's folder for a line of JSON a request at the gateway; ``-``: standard output; empty: none."""
    traces_endpoint: str = ""
    """URL that the gateway sends OpenTelemetry spans to (OTLP over HTTP, extra ``otel``); empty: none."""
    traces_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Share of the requests without a ``traceparent`` that are traced; one with it is traced if its caller is."""
    max_wait: Limit = 1.0
    """A gateway worker refuses requests (503) that more seconds of work than this are ahead of; 0: never."""
    runtime_seconds: Limit = 5.0
    """Longest time that a model in a process of its own may take for one call; 0: no limit."""
    runtime_memory: Count = 0
    """Megabytes above which such a process is replaced by a fresh one; 0: no limit."""
    runtime_processes: Several = 1
    """Processes of one such model, among which the gateway's workers are shared out."""


class UserSettings(Values, frozen=True, kw_only=True):
    """The table ``[users.NAME]``."""

    roles: tuple[Role, ...]
    """What the user may do; the page on the life cycle has the verbs of each role."""


class PolicySettings(Values, frozen=True, kw_only=True):
    """``[policy]``: the limits of a release, an activation and a renewal."""

    approvals: Count = 2
    """People other than the author who must consent before an activation goes on."""
    approval_expires: str = "90d"
    """How long an approval holds; a version that loses its approvals is not served any more."""
    beat_baseline: bool = True
    """The candidate's loss must be lower than the baseline's with its whole 95% interval."""
    worst_slice_rows: Count = 200
    """Slices with fewer validation rows than this are not judged."""
    worst_slice_calibration: Limit = 0.10
    """Largest distance between mean prediction and mean label in any slice (binary)."""
    worst_slice_loss_ratio: Limit = 1.0
    """In no slice may the loss be more than this many times the baseline's, beyond its interval."""
    calibration_error: Limit = 0.05
    """Largest expected calibration error on the validation rows (binary), a probability."""
    seed_spread: Limit = 0.02
    """Largest relative change of the loss on the validation rows when trained with another seed."""
    load_seconds: Limit = 20.0
    """Longest time in which a fresh process may load the version, in seconds."""
    memory_mb: Limit = 1024.0
    """Most memory that the process may hold with the version loaded, in MB (a million bytes)."""
    latency_ms: Limit = 250.0
    """Largest 95th percentile of the time of a request with one row, in milliseconds."""
    kpi_rows: Count = 500
    """Labelled live decisions that the activation's last step waits for."""
    kpi_floor: float = 0.0
    """The KPI's gain over the baseline, per decision, must be above this with its whole interval (release)."""
    validation_share: Share = 0.2
    """The newest share of the training set, by time, is kept for validation."""
    renewal_needs_person: bool = False
    """True: a renewal that was released waits for somebody to activate it."""


class EndpointSettings(Values, frozen=True, kw_only=True):
    """The table ``[endpoints.NAME]``."""

    model: str
    """The declared model that answers here."""
    log: Literal["sync", "group", "sampled"] = "sync"
    """When a record is on disk: before the answer (``sync``), or about 10 ms later (``group``, ``sampled``)."""
    log_share: Share = 0.1
    """The share of decisions that ``sampled`` writes down; the others are answered and leave no record."""
    time: str = ""
    """Request field with the event time; empty: time of arrival."""
    outcome_expires: str = ""
    """Time after a decision from which its outcome does not count any more where decisions are read; empty: never."""
    default_outcome: float | None = None
    """What a decision without an outcome counts as once it has expired; not set: as unknown."""


class RolloutSettings(Values, frozen=True, kw_only=True):
    """``[rollout]``: how a renewed version takes over."""

    strategy: str = "champion-challenger"
    """Name in the catalog of strategies, or several that follow one another: ``"shadow, canary, ab"``."""
    metric: Literal["loss", "kpi"] = "loss"
    """What the two are compared by: the proper loss of their probabilities, or the project's money rule."""
    alpha: Share = 0.05
    """Chance of a wrong verdict, however often the rollout is looked at."""
    min_rows: Count = 500
    """Decisions of the challenger (with their labels, where it is compared by them) before any promotion."""
    max_days: Limit = 28.0
    """A challenger that has not won by then is refused; days of event time."""


class RenewalSettings(Values, frozen=True, kw_only=True):
    """``[renewal]``: what a new version is trained on when the loop asks for one."""

    history: str = ""
    """Length of the training window that ends at the decision, ``"90d"``; empty: all since the champion's own."""


class MonitorSettings(Values, frozen=True, kw_only=True):
    """The table ``[monitors]``."""

    window: str = "7d"
    """Length of a window of event time."""
    alpha: Share = 0.01
    """False alarms allowed, per monitored series over a year of windows."""
    min_rows: Count = 500
    """Rows below which a window is measured but not judged."""
    retrain_on: tuple[str, ...] = ("performance", "business")
    """Kinds of monitors whose alarm asks for a renewal."""
    cooldown: str = "14d"
    """Event time after a renewal's decision before another may start."""


class AlertSettings(Values, frozen=True, kw_only=True):
    """The table ``[[alerts]]``."""

    kind: Literal["webhook", "file"] = "webhook"
    """Where alerts go."""
    name: str
    """What alerts and drills call the channel."""
    url: str = ""
    """Where a webhook listens."""
    path: str = ""
    """The file that alerts are appended to, inside the project's folder."""


class PriceSettings(Values, frozen=True, kw_only=True):
    """``[prices]``: what running a model costs, for the value ledger. What has no price is not counted."""

    currency: str = ""
    """Must be the unit of the KPI, or there is no return; empty: it is."""
    cpu_hour: Limit | None = None
    """Of one core, for training and for the gateway's model calls."""
    gb_month: Limit | None = None
    """Of a GB (a billion bytes) kept for 30 days: artefacts, and the prediction log."""
    label: Limit | None = None
    """Of the outcome of one decision."""


class DemoSettings(Values, frozen=True, kw_only=True):
    """``[demo]``: how ``keepwell demo`` tells the project's story: train up to a day, then replay the rest as live."""

    train_since: str
    """First day of the training window, ``"2013-01-01"``."""
    train_until: str
    """End of the training window, and the first day of the replay."""
    replay_until: str
    """End of the replay."""
    author: str
    """The user who trains."""
    approvers: tuple[str, ...]
    """The users who approve."""
    rows_a_request: Several = 1
    """Decisions in one request of the replay."""
    connections: Several = 32
    """Connections that the replay keeps open at once."""


class Settings(Values, frozen=True, kw_only=True):
    """The whole file."""

    project: ProjectSettings
    store: StoreSettings = StoreSettings()
    server: ServerSettings = ServerSettings()
    users: dict[str, UserSettings] = {}
    policy: PolicySettings = PolicySettings()
    endpoints: dict[str, EndpointSettings] = {}
    rollout: RolloutSettings = RolloutSettings()
    strategies: dict[str, dict[str, Any]] = {}
    """``[strategies.NAME]``: the rules of one strategy."""
    renewal: RenewalSettings = RenewalSettings()
    monitors: MonitorSettings = MonitorSettings()
    alerts: tuple[AlertSettings, ...] = ()
    prices: PriceSettings = PriceSettings()
    demo: DemoSettings | None = None
