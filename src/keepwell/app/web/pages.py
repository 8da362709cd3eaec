"""The pages: each reads rows, fills a template, and changes nothing."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from keepwell.app.rolling import waits_for
from keepwell.app.web.charts import Mark, Point, line_chart
from keepwell.app.web.rollout import (
    LOOKS,
    POLICIES,
    disagreement_of,
    drawn_otherwise,
    effects_of,
    evidence_of,
    facts_of,
    shares_of,
    spell_rule,
    turns_of,
)
from keepwell.app.wiring import State
from keepwell.core.auditing import audit_problems
from keepwell.core.clock import iso
from keepwell.core.digest import short
from keepwell.core.errors import KeepwellError, NotFound, Unavailable
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.lifecycle import (
    ACTIVATION_STEPS,
    RELEASE_STEPS,
    Activation,
    CatalogueEntry,
    Procedure,
    Release,
    StepResult,
)
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import OPEN, Look, Rollout
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert, Decision, LedgerEntry, Measurement
from keepwell.core.records.work import Replay, Work
from keepwell.core.statements import read_evidence
from keepwell.serving.rollouts.holdouts import standing_since
from keepwell.serving.rollouts.plans import describe_plan, latest_plan
from keepwell.watch.health import health

_HERE = Path(__file__).parent
PAGE = 200
_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
_METRIC = re.compile(r"^keepwell_(predictions_total|prediction_latency_seconds_sum)\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Pages:
    """All pages of one project."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
        )
        self._templates.globals.update(
            short=short,
            day=lambda at: iso(at)[:10],
            moment=lambda at: iso(at)[:19].replace("T", " "),
            describe=describe_plan,
        )

    def render(
        self, template: str, request: Request, /, *, status: int = 200, **values: Any
    ) -> Response:
        """Fill a template with what every page has and its own values."""
        endpoints = [endpoint.name for endpoint in self._state.store.find(Endpoint)]
        pages = [("/", "Overview")]
        pages += [(f"/endpoints/{e}", e) for e in endpoints]
        pages += [(f"/monitors/{e}", "Monitors") for e in endpoints]
        pages += [("/ledger", "Ledger"), ("/alerts", "Alerts"), ("/audit", "Audit")]
        html = self._templates.get_template(template).render(
            project=self._state.settings.project.name,
            pages=pages,
            here=request.url.path,
            **{"live": False, **values},
        )
        return HTMLResponse(
            html,
            status_code=status,
            headers={
                "content-security-policy": _POLICY,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "cache-control": "no-store",
            },
        )

    def overview(self, request: Request) -> Response:
        """What serves and what is under way."""
        from keepwell.watch.totals import totals

        store = self._state.store
        entries = store.find(LedgerEntry)
        endpoints = []
        for endpoint in store.find(Endpoint):
            plan = latest_plan(endpoint.name, store=store)
            endpoints.append(
                {
                    "name": endpoint.name,
                    "health": health(endpoint.name, store),
                    "plan": describe_plan(plan) if plan else "",
                }
            )
        return self.render(
            "overview.html",
            request,
            live=True,
            endpoints=endpoints,
            decisions=sum(entry.decisions for entry in entries),
            money=totals(entries) if entries else None,
            alerts=store.find(
                Alert, {"state": ["open", "delivered", "undelivered"], "drill": False}
            ),
            work=store.find(Work, {"state": ["queued", "running"]}),
            replays=store.find(Replay),
            versions=store.find(ModelVersion, order=["model", "-version"], limit=100),
            releases=store.find(Release),
            activations=store.find(Activation),
        )

    def release(self, request: Request) -> Response:
        """One release with its steps."""
        return self._procedure(request, Release, RELEASE_STEPS)

    def activation(self, request: Request) -> Response:
        """One activation with its steps."""
        return self._procedure(request, Activation, ACTIVATION_STEPS)

    def _procedure(
        self, request: Request, kind: type[Procedure], names: tuple[str, ...]
    ) -> Response:
        found = self._state.store.get(kind, request.path_params["id"])
        if found is None:
            raise NotFound(f"There is no {kind.__name__.lower()} {request.path_params['id']!r}.")
        steps = self._state.store.find(StepResult, {"procedure": found.id})
        return self.render(
            "procedure.html",
            request,
            live=found.state in {"running", "waiting"},
            noun=kind.__name__,
            p=found,
            names=names,
            steps={step.step: step for step in steps},
        )

    def model(self, request: Request) -> Response:
        """One model with its versions, their lineage, and its card."""
        store = self._state.store
        name = request.path_params["name"]
        versions = store.find(ModelVersion, {"model": name}, order=["-version"])
        if not versions:
            raise NotFound(f"There is no model {name!r}.")
        entry = store.get(CatalogueEntry, name)
        # The catalogue's card is of the version last proposed; readers ask about the one that serves.
        shown = next((v for v in versions if v.state == "active"), versions[0])
        return self.render(
            "model.html",
            request,
            name=name,
            versions=versions,
            entry=entry,
            shown=shown,
            card=self._card(shown),
            sets={t.content: t for t in store.find(TrainingSet, {"model": name})},
        )

    def _card(self, version: ModelVersion) -> str:
        """Read the card that the version's own activation put into the catalogue; before one, there is none."""
        which = {"model": version.model, "version": version.version, "step": ACTIVATION_STEPS[0]}
        for step in self._state.store.find(StepResult, which, order=["-started"], limit=1):
            for result in step.results:
                if "card" in result.measured:
                    return self._state.blobs.get(str(result.measured["card"])).decode()
        return ""

    def endpoint(self, request: Request) -> Response:
        """One endpoint: live traffic, rollouts, and what served when."""
        store = self._state.store
        name = request.path_params["name"]
        found = store.get(Endpoint, name)
        if found is None:
            raise NotFound(f"There is no endpoint {name!r}.")
        traffic, trouble = self._traffic(name)
        return self.render(
            "endpoint.html",
            request,
            live=True,
            e=found,
            traffic=traffic,
            trouble=trouble,
            rollouts=store.find(Rollout, {"endpoint": name}, order=["-started"]),
            plans=store.find(TrafficPlan, {"endpoint": name}, order=["-revision"], limit=PAGE),
            held=standing_since(store.find(TrafficPlan, {"endpoint": name})),
        )

    def rollout(self, request: Request) -> Response:
        """One rollout: its plan over time, its evidence with the interval as it grows, what comes next."""
        store = self._state.store
        found = self._state.rollouts.named(request.path_params["id"])
        looks = store.find(Look, {"rollout": found.id}, order=["number"])
        plan = latest_plan(found.endpoint, store=store)
        under_way = found.state in OPEN
        return self.render(
            "rollout.html",
            request,
            live=under_way,
            r=found,
            looks=looks,
            foretold=found.forecast,
            under_way=under_way,
            waits=waits_for(found, looks[-1]) if looks else "",
            shares=shares_of(
                looks,
                found.ended or self._state.clock.now(),
                by_policy=found.settings.get(found.strategy, {}).get("algorithm") in POLICIES,
            ),
            otherwise=drawn_otherwise(found, plan),
            turns=turns_of(plan, looks) if under_way else "",
            evidence=evidence_of(looks, found.way),
            shown=LOOKS,
            facts=facts_of(looks[-1]) if looks else [],
            apart=disagreement_of(looks[-1]) if looks else None,
            effects=effects_of(looks[-1]) if looks else [],
            spell_rule=spell_rule,
        )

    def _traffic(self, endpoint: str) -> tuple[list[dict[str, Any]], str]:
        """Read the gateway's own counters; the page says so where it does not answer."""
        try:
            token = self._state.gateway_token
            asked = urllib.request.Request(  # noqa: S310 - our own address
                f"{self._state.gateway_url}/metrics",
                headers={"authorization": f"Bearer {token}"} if token else {},
            )
            with urllib.request.urlopen(  # noqa: S310 - as above
                asked, timeout=1, context=self._state.gateway_trust()
            ) as answer:
                text = answer.read().decode()
        except (OSError, urllib.error.URLError, Unavailable):
            return [], "The gateway does not answer. Start it with 'keepwell up'."
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for line in text.splitlines():
            matched = _METRIC.match(line)
            if not matched:
                continue
            labels = dict(_LABEL.findall(matched[2]))
            if labels.get("endpoint") != endpoint or "arm" not in labels:
                continue
            row = rows.setdefault(
                (labels["arm"], labels["version"]),
                {
                    "arm": labels["arm"],
                    "version": labels["version"],
                    "count": 0,
                    "failed": 0,
                    "sum": 0.0,
                },
            )
            value = float(matched[3])
            if matched[1] == "predictions_total":
                row["count"] += int(value)
                row["failed"] += int(value) if labels["status"] != "ok" else 0
            elif matched[1] == "prediction_latency_seconds_sum":
                row["sum"] += value
        for row in rows.values():
            row["mean_ms"] = 1000 * row["sum"] / max(row["count"], 1)
        return list(rows.values()), ""

    def _marks(self, endpoint: str) -> list[Mark]:
        store = self._state.store
        marks = [
            Mark(alert.event_time, "alert", "alert")
            for alert in store.find(
                Alert, {"endpoint": endpoint, "severity": "critical", "drill": False}
            )
            if alert.monitor != "admission"
        ]
        marks += [
            Mark(rollout.since, f"v{rollout.challenger} {rollout.state}", "renewal")
            for rollout in store.find(Rollout, {"endpoint": endpoint})
            if rollout.champion is not None
        ]
        return marks

    def monitors(self, request: Request) -> Response:
        """All monitors of an endpoint over time."""
        name = request.path_params["name"]
        if self._state.store.get(Endpoint, name) is None:
            raise NotFound(f"There is no endpoint {name!r}.")
        plans = self._state.store.find(TrafficPlan, {"endpoint": name})
        answering = {arm.version for plan in plans for arm in plan.arms}
        by_monitor: dict[str, list[Measurement]] = {}
        for measured in self._state.store.find(
            Measurement, {"endpoint": name}, order=["start", "version"]
        ):
            if measured.value is not None and measured.version in answering:
                by_monitor.setdefault(measured.monitor, []).append(measured)
        marks = self._marks(name)
        order = {"performance": 0, "business": 1, "estimate": 2, "prediction": 3, "traffic": 4}
        charts: list[tuple[str, Markup, str]] = []
        drifts: list[tuple[str, Markup, str]] = []
        for monitor, series in sorted(
            by_monitor.items(), key=lambda item: (order.get(item[1][-1].kind, 9), item[0])
        ):
            points = [
                Point(m.end, m.value or 0.0, m.low, m.high, m.state == "alarm") for m in series
            ]
            chart = line_chart(
                points, label=f"{monitor} over time", reference=series[-1].reference, marks=marks
            )
            drift = monitor.startswith("drift:")
            (drifts if drift else charts).append((monitor, chart, series[-1].message))
        return self.render("monitors.html", request, name=name, charts=charts, drifts=drifts)

    def ledger(self, request: Request) -> Response:
        """What was earned, and what it cost."""
        from keepwell.app.attribution import holdouts
        from keepwell.app.spending import returns
        from keepwell.watch.totals import totals

        entries = self._state.store.find(LedgerEntry, order=["start", "version"])
        points = [Point(e.end, e.difference, e.low, e.high) for e in entries]
        return self.render(
            "ledger.html",
            request,
            entries=entries,
            returns=returns(self._state),
            held=holdouts(self._state),
            total=totals(entries) if entries else None,
            chart=line_chart(points, label="Gain over the baseline per window", reference=0.0),
        )

    def alerts(self, request: Request) -> Response:
        """Alerts and decisions."""
        store = self._state.store
        return self.render(
            "alerts.html",
            request,
            live=True,
            alerts=store.find(Alert, order=["-opened"], limit=PAGE),
            decisions=store.find(Decision, order=["-event_time"], limit=PAGE),
        )

    def audit(self, request: Request) -> Response:
        """The audit trail, newest first, and its proof on demand."""
        store = self._state.store
        given = request.query_params.get("before", "")
        newest = sum(1 for _ in store.audit()) if not given.isdigit() else int(given) - 1
        entries = list(store.audit(after=max(0, newest - PAGE), limit=PAGE))
        entries = [entry for entry in entries if entry.seq <= newest]
        return self.render(
            "audit.html",
            request,
            entries=list(reversed(entries)),
            older=entries[0].seq if entries and entries[0].seq > 1 else 0,
            problems=audit_problems(store) if request.query_params.get("verify") else None,
        )

    def evidence(self, request: Request) -> Response:
        """One signed statement, opened only if its signature holds."""
        row = self._state.store.get(Evidence, request.path_params["digest"])
        if row is None:
            raise NotFound(f"There is no evidence {request.path_params['digest']!r}.")
        statement = read_evidence(row, blobs=self._state.blobs, verifier=self._state.verifier)
        return self.render(
            "text.html",
            request,
            title=f"Evidence: {row.subject}, {row.step}",
            lead=f"Signed by {short(row.signer)} at {iso(row.created)}; the signature holds.",
            text=msgspec.json.format(msgspec.json.encode(statement), indent=2).decode(),
        )

    def trouble(self, request: Request, error: Exception) -> Response:
        """Say what is wrong, as a page."""
        assert isinstance(error, KeepwellError)
        status = 404 if isinstance(error, NotFound) else 500
        return self.render("text.html", request, status=status, title=str(error), lead="", text="")


def routes(state: State) -> list[Route | Mount]:
    """Give the dashboard's routes."""
    pages = Pages(state)
    return [
        Route("/", pages.overview),
        Route("/releases/{id}", pages.release),
        Route("/activations/{id}", pages.activation),
        Route("/models/{name}", pages.model),
        Route("/endpoints/{name}", pages.endpoint),
        Route("/rollouts/{id}", pages.rollout),
        Route("/monitors/{name}", pages.monitors),
        Route("/ledger", pages.ledger),
        Route("/alerts", pages.alerts),
        Route("/audit", pages.audit),
        Route("/evidence/{digest}", pages.evidence),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
