"""The control API: the store's nouns as JSON, and the verbs that change something. OpenAPI 3.1 at /openapi.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keepwell import __version__
from keepwell.app.attribution import holdouts
from keepwell.app.holding import Holding, hold_out, wanted_version
from keepwell.app.rolling import (
    appraise_version,
    need_reason,
    preview_rollout,
    start_rollout,
    steer_rollout,
)
from keepwell.app.wiring import State
from keepwell.core.auditing import audit_problems
from keepwell.core.clock import duration
from keepwell.core.errors import InvalidInput, KeepwellError, NotFound, Refused, near_miss
from keepwell.core.records.appraisals import Appraisal
from keepwell.core.records.base import Record
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.lifecycle import Activation, Approval, Release, StepResult
from keepwell.core.records.models import Model, ModelVersion
from keepwell.core.records.returns import HeldOut, Return
from keepwell.core.records.rollouts import Look, Preview, Rollout
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert, Decision, LedgerEntry, Measurement
from keepwell.core.records.work import Replay, Work
from keepwell.lifecycle.approvals import approve
from keepwell.lifecycle.roles import require
from keepwell.lifecycle.tokens import needs_token, user_of
from keepwell.watch.health import health

MAX_BODY = 64 * 1024
LIMIT = 1000

COLLECTIONS: Mapping[str, type[Record]] = {
    "models": Model,
    "versions": ModelVersion,
    "releases": Release,
    "steps": StepResult,
    "activations": Activation,
    "approvals": Approval,
    "endpoints": Endpoint,
    "plans": TrafficPlan,
    "rollouts": Rollout,
    "looks": Look,
    "measurements": Measurement,
    "alerts": Alert,
    "decisions": Decision,
    "ledger": LedgerEntry,
    "evidence": Evidence,
    "work": Work,
    "replays": Replay,
}
_STATUS = {
    "invalid_input": 422,
    "not_found": 404,
    "conflict": 409,
    "refused": 403,
    "corrupt": 500,
    "unavailable": 503,
}


Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
"""The number of a version."""


class ReleaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Ask for the release of a version."""

    model: str
    version: Number


class ApprovalRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Consent to a version, or ahead to its renewals."""

    model: str
    version: Number
    reason: str
    renewals: bool = False


class ActivationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Ask for the activation of a version."""

    model: str
    version: Number
    strategy: str = ""


class RolloutRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Ask for a rollout of one or several released and approved versions of a model."""

    model: str
    versions: list[int]
    strategy: str = ""
    rules: dict[str, Any] = {}


class AppraisalRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Ask what a version would have earned on the decisions of the log."""

    model: str
    version: Number
    since: str = "28d"
    """How far back, as in 28d or 12h."""
    endpoint: str = ""
    by: Literal["auto", "propensity", "replay"] = "auto"


class PreviewRequest(RolloutRequest, forbid_unknown_fields=True):
    """Ask how such a rollout would begin and what it would need; nothing is changed."""


class SteeringRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Steer a rollout that is under way."""

    rollout: str
    verb: Literal["pause", "resume", "promote", "rollback"]
    reason: str
    version: int | None = None


class HoldoutRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Let a version answer a random share of an endpoint's units whatever rollouts do, or end that."""

    endpoint: str
    reason: str
    verb: Literal["set", "end"] = "set"
    version: Number | None = None
    share: float = 0.0
    anew: bool = False


class RollbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Give an endpoint's traffic back."""

    endpoint: str
    reason: str


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def status_of(code: str) -> int:
    """Give the HTTP status of an error's code."""
    return _STATUS.get(code, 500)


def _error(error: KeepwellError) -> Response:
    body = {"code": error.code, "what": error.what, "where": error.where, "todo": error.todo}
    return _json({"error": body}, status_of(error.code))


class Control:
    """The operations."""

    def __init__(self, state: State) -> None:
        self._state = state

    def actor(self, request: Request) -> str:
        """Name who calls: by bearer token, or by the header X-Keepwell-User for a user who has no token."""
        store = self._state.store
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            if scheme.lower() != "bearer":
                raise Refused(
                    "The way of authorization is unknown.",
                    todo="Send 'Authorization: Bearer TOKEN'.",
                )
            return user_of(token.strip(), store=store, now=self._state.clock.now())
        name = request.headers.get("x-keepwell-user", "")
        if not name:
            raise Refused(
                "Nobody is named.",
                todo="Send 'Authorization: Bearer TOKEN', or 'X-Keepwell-User: NAME' without one.",
            )
        if needs_token(name, store=store):
            raise Refused(
                f"{name} must prove who they are.", todo="Send 'Authorization: Bearer TOKEN'."
            )
        return name

    def version(self, model: str, number: int) -> ModelVersion:
        """Give a version. Raises NotFound."""
        found = self._state.store.get(ModelVersion, model, number)
        if found is None:
            raise NotFound(f"There is no version {model}/{number}.")
        return found

    def release(self, request: Request, body: ReleaseRequest) -> Any:
        """Start a release."""
        from keepwell.lifecycle.release import start_release

        version = self.version(body.model, body.version)  # before the project's own code is loaded
        return start_release(self._state.context, version, actor=self.actor(request))

    def approval(self, request: Request, body: ApprovalRequest) -> Any:
        """Approve."""
        state = self._state
        return approve(
            body.model,
            body.version,
            by=self.actor(request),
            reason=body.reason,
            expires_in=state.settings.policy.approval_expires,
            scope="renewals" if body.renewals else "version",
            store=state.store,
            blobs=state.blobs,
            signer=state.signer,
            clock=state.clock,
        )

    def activation(self, request: Request, body: ActivationRequest) -> Any:
        """Start an activation."""
        from keepwell.lifecycle.activation import start_activation

        version = self.version(body.model, body.version)
        return start_activation(
            self._state.context,
            version,
            actor=self.actor(request),
            strategy=body.strategy,
        )

    def rollout(self, request: Request, body: RolloutRequest) -> Any:
        """Start a rollout."""
        if not body.versions:
            raise InvalidInput("No version is named.", where="body: versions")
        return start_rollout(
            self._state,
            [self.version(body.model, number) for number in body.versions],
            actor=self.actor(request),
            strategy=body.strategy,
            rules=body.rules,
        )

    def preview(self, request: Request, body: PreviewRequest) -> Any:
        """Tell how a rollout would begin and what it would need."""
        if not body.versions:
            raise InvalidInput("No version is named.", where="body: versions")
        _, found = preview_rollout(
            self._state,
            [self.version(body.model, number) for number in body.versions],
            actor=self.actor(request),
            strategy=body.strategy,
            rules=body.rules,
        )
        return found

    def steering(self, request: Request, body: SteeringRequest) -> Any:
        """Steer a rollout."""
        return steer_rollout(
            self._state,
            body.rollout,
            body.verb,
            actor=self.actor(request),
            reason=body.reason,
            version=body.version,
        )

    def appraisal(self, request: Request, body: AppraisalRequest) -> Any:
        """Tell what a version would have earned. Nothing changes, but a model is run: who asks must be known."""
        require(self.actor(request), "rollout", store=self._state.store)
        return appraise_version(
            self._state,
            self.version(body.model, body.version),
            length=duration(body.since),
            endpoint=body.endpoint,
            way=None if body.by == "auto" else body.by,
        )

    def holdout(self, request: Request, body: HoldoutRequest) -> Any:
        """Hold units out, or end that."""
        wanted = Holding(
            endpoint=body.endpoint,
            version=wanted_version(body.version) if body.verb == "set" else None,
            share=body.share,
            reason=body.reason,
            anew=body.anew,
        )
        return hold_out(self._state, wanted, actor=self.actor(request))

    def held_out(self, request: Request) -> Any:
        """Give every holdout with its units, decisions and money."""
        del request
        return holdouts(self._state)

    def rollback(self, request: Request, body: RollbackRequest) -> Any:
        """Roll back."""
        who = self.actor(request)
        require(who, "rollback", store=self._state.store)
        need_reason(body.reason)
        return self._state.rollouts.roll_back(body.endpoint, actor=who, reason=body.reason)

    def listing(self, kind: type[Record], request: Request) -> Any:
        """List records, filtered by columns in the query."""
        where: dict[str, Any] = {}
        limit = LIMIT
        for name, given in request.query_params.items():
            if name == "limit":
                limit = min(_number(name, given), LIMIT)
            else:
                where[name] = _value_of(kind, name, given)
        return self._state.store.find(kind, where, limit=limit)

    def status(self, request: Request) -> Any:
        """Give the state of every endpoint."""
        del request
        store = self._state.store
        return {
            "version": __version__,
            "project": self._state.settings.project.name,
            "endpoints": {e.name: health(e.name, store) for e in store.find(Endpoint)},
            "gateway": self._state.gateway_url,
        }

    def returns(self, request: Request) -> Any:
        """Give every version of the ledger with its cost and return."""
        from keepwell.app.spending import returns

        del request
        return returns(self._state)

    def audit(self, request: Request) -> Any:
        """List audit entries after a sequence number, or prove the chain."""
        after = _number("after", request.query_params.get("after", "0"))
        if request.query_params.get("verify"):
            return {"problems": audit_problems(self._state.store)}
        return list(self._state.store.audit(after=after, limit=LIMIT))


def routes(state: State) -> list[Route]:
    """Give the control API's routes."""
    control = Control(state)
    found = [
        Route("/api/v1/status", _reading(control.status)),
        Route("/api/v1/audit", _reading(control.audit)),
        Route("/api/v1/returns", _reading(control.returns)),
        Route("/openapi.json", _reading(lambda _: openapi())),
    ]
    for name in dict.fromkeys((*COLLECTIONS, *VERBS)):
        read = write = None
        if name in COLLECTIONS:
            read = _reading(partial(control.listing, COLLECTIONS[name]))
        elif name == "holdouts":
            read = _reading(control.held_out)
        if name in VERBS:
            write = _writing(getattr(control, name.rstrip("s")), VERBS[name][0])
        methods = [method for method, by in (("GET", read), ("POST", write)) if by]
        found.append(Route(f"/api/v1/{name}", _by_method(read, write), methods=methods))
    return found


def _by_method(
    read: Callable[[Request], Any] | None, write: Callable[[Request], Any] | None
) -> Callable[[Request], Any]:
    """Put both behind one route: two would each know of its own method only, and say so in ``Allow``."""

    async def answer(request: Request) -> Response:
        by = write if request.method == "POST" else read
        assert by is not None
        answered: Response = await by(request)
        return answered

    return answer


VERBS: Mapping[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]] = {
    "releases": (ReleaseRequest, Release),
    "approvals": (ApprovalRequest, Approval),
    "activations": (ActivationRequest, Activation),
    "rollouts": (RolloutRequest, Rollout),
    "previews": (PreviewRequest, Preview),
    "steerings": (SteeringRequest, Rollout),
    "appraisals": (AppraisalRequest, Appraisal),
    "holdouts": (HoldoutRequest, TrafficPlan),
    "rollbacks": (RollbackRequest, TrafficPlan),
}


def _reading(function: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        try:
            return _json(await run_in_threadpool(function, request))
        except KeepwellError as error:
            return _error(error)

    return answer


def _writing(
    function: Callable[[Request, Any], Any], body: type[msgspec.Struct]
) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        try:
            content = bytearray()
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    raise InvalidInput(f"The body is larger than {MAX_BODY:,} bytes.")
            try:
                given = msgspec.json.decode(content, type=body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidInput(f"{error}.", where="body") from error
            return _json(await run_in_threadpool(function, request, given), 201)
        except KeepwellError as error:
            return _error(error)

    return answer


def openapi() -> dict[str, Any]:
    """Give the OpenAPI 3.1 document, made from the same tables as the routes."""
    kinds = [
        *COLLECTIONS.values(),
        Return,
        HeldOut,
        Preview,
        *(body for body, _ in VERBS.values()),
        Appraisal,
    ]
    _, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {
        "/api/v1/status": {"get": _operation("The state of every endpoint", {"type": "object"})},
        "/api/v1/audit": {
            "get": _operation(
                "Audit entries after a sequence number, or what is wrong with the chain",
                {"type": ["array", "object"]},
                query={"after": _NUMBER, "verify": {"type": "string"}},
            )
        },
    }
    items: dict[str, Any] = {"type": "array", "items": {"$ref": "#/components/schemas/Return"}}
    paths["/api/v1/returns"] = {
        "get": _operation("What each version earned, what it cost, and the return on it", items)
    }
    items = {"type": "array", "items": {"$ref": "#/components/schemas/HeldOut"}}
    paths["/api/v1/holdouts"] = {
        "get": _operation("Who is held out where, and what was earned over them", items)
    }
    for name, kind in COLLECTIONS.items():
        items = {"type": "array", "items": {"$ref": f"#/components/schemas/{kind.__name__}"}}
        fields = {field.name: _filter(field.type) for field in msgspec.structs.fields(kind)}
        columns = {column: schema for column, schema in fields.items() if schema}
        paths[f"/api/v1/{name}"] = {
            "get": _operation(
                f"List {name}, filtered by columns", items, query={**columns, "limit": _NUMBER}
            )
        }
    for name, (body, result) in VERBS.items():
        answer = {"$ref": f"#/components/schemas/{result.__name__}"}
        operation = _operation(str(body.__doc__), answer, status="201")
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
            },
        }
        paths.setdefault(f"/api/v1/{name}", {})["post"] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Keepwell control API", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**components, "Error": _ERROR}},
    }


_MOST = 2**63 - 1
"""The largest whole number that a database holds."""
_NUMBER = {"type": "integer", "minimum": 0, "maximum": _MOST}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "what", "where", "todo"],
            "properties": {name: {"type": "string"} for name in ("code", "what", "where", "todo")},
        }
    },
}


def _operation(
    summary: str,
    schema: dict[str, Any],
    *,
    status: str = "200",
    query: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            status: {"description": "Done", "content": {"application/json": {"schema": schema}}},
            "default": {
                "description": "An error with code, what, where and todo",
                "content": error,
            },
        },
    }
    if query:
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": kind} for name, kind in query.items()
        ]
    return operation


def _filter(kind: Any) -> dict[str, Any]:
    """Describe what may be asked of a column; nothing where a query cannot say it (lists and maps)."""
    schema: dict[str, Any] = msgspec.json.schema(kind)
    choices: list[dict[str, Any]] = schema.get("anyOf", [schema])
    if not all("enum" in each or each.get("type") in _SIMPLE for each in choices):
        return {}
    for each in choices:
        if each.get("type") == "integer":
            each.setdefault("minimum", -_MOST - 1)
            each.setdefault("maximum", _MOST)
    return schema


_SIMPLE = {"string", "integer", "number", "boolean", "null"}


def _number(name: str, given: str) -> int:
    """Read a whole number that is not negative. Raises InvalidInput."""
    if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= _MOST):
        raise InvalidInput(f"{name}={given[:80]!r} is not a number from 0 to {_MOST}.")
    return int(given)


def _value_of(kind: type[Record], name: str, given: str) -> Any:
    """Read a filter's value by its column's type, so that a text of digits stays a text. Raises InvalidInput."""
    columns = {field.name: field.type for field in msgspec.structs.fields(kind)}
    if name not in columns:
        raise InvalidInput(
            f"{kind.__name__} has no column {name!r}.", todo=near_miss(name, columns)
        )
    try:
        return msgspec.convert(given, columns[name], strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{name}={given!r}: {error}.") from None
