"""How MLflow's clients are spoken to: bodies in, JSON out, errors by MLflow's codes, one table of operations."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from keepwell.core.clock import Clock, Time
from keepwell.core.errors import (
    Conflict,
    Corrupt,
    InvalidInput,
    KeepwellError,
    NotFound,
    Refused,
    Unavailable,
)
from keepwell.core.ports.blobs import Blobs
from keepwell.core.ports.store import Store
from keepwell.core.ports.tracking import TrackingStore

if TYPE_CHECKING:
    from starlette.requests import Request

    from keepwell.app.api.mlflow.batching import GroupCommit

# Status of each MLflow error code, as MLflow's clients know them.
CODES: tuple[tuple[type[KeepwellError], str, int], ...] = (
    (InvalidInput, "INVALID_PARAMETER_VALUE", 400),
    (NotFound, "RESOURCE_DOES_NOT_EXIST", 404),
    (Conflict, "RESOURCE_ALREADY_EXISTS", 400),
    (Refused, "RESOURCE_CONFLICT", 409),
    (Corrupt, "DATA_LOSS", 500),
    (Unavailable, "TEMPORARILY_UNAVAILABLE", 503),
)
LARGEST_MS = 9_000_000_000_000_000 // 1000
"""Milliseconds whose microseconds still fit 64 bits with room to spare (the year 287,000)."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The largest inputs that are accepted, in bytes."""

    body: int = 16 * 1024 * 1024
    artifact: int = 8 * 1024 * 1024 * 1024


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What the operations work on."""

    tracker: TrackingStore
    store: Store
    blobs: Blobs
    clock: Clock
    limits: Limits
    commits: GroupCommit
    actor: Callable[[Request], str]


class Call(msgspec.Struct, frozen=True):
    """One request as its operation sees it."""

    services: Services
    path: dict[str, str]
    actor: str


class Body(msgspec.Struct, kw_only=True, rename=None):
    """A request body; unknown fields are let pass, as newer clients send them."""


class Pair(Body):
    """A key and its value, of a param or a tag."""

    key: str
    value: str = ""


class Searching(Body):
    """What searches have in common; how many they give, each says itself."""

    filter: str = ""
    order_by: tuple[str, ...] = ()
    page_token: str = ""


def paged(name: str, found: Sequence[Any], token: str) -> dict[str, Any]:
    """Write one page of what was found, and where the next one begins; an empty token says that there is none."""
    answer: dict[str, Any] = {name: found}
    return answer | ({"next_page_token": token} if token else {})


def tagged(tags: Mapping[str, str], key: str, value: str) -> dict[str, str]:
    """Give tags with one more. Raises InvalidInput."""
    text = check_text(value, "The tag", 100_000)
    return {**tags, check_key(key): text}


def untagged(tags: Mapping[str, str], key: str) -> dict[str, str]:
    """Give tags with one less; one that is not there is no error."""
    return {name: value for name, value in tags.items() if name != key}


Work = Callable[[Call, Any], Any]


class Operation(msgspec.Struct, frozen=True):
    """One endpoint. ``slow`` ones run in a thread; the others are faster than a change of threads."""

    method: str
    path: str
    body: type[Body]
    work: Work | Callable[[Call, Any], Awaitable[Any]]
    slow: bool = False


def error(code: str, message: str, status: int) -> Response:
    """Make MLflow's form of an error."""
    content = msgspec.json.encode({"error_code": code, "message": message})
    return Response(content, status_code=status, media_type="application/json")


def refusal(problem: KeepwellError) -> Response:
    """Say a Keepwell error in MLflow's words."""
    for kind, code, status in CODES:
        if isinstance(problem, kind):
            return error(code, str(problem), status)
    return error("INTERNAL_ERROR", str(problem), 500)


def answer(value: Any) -> Response:
    """Encode an answer."""
    content = b"{}" if value is None else msgspec.json.encode(value)
    return Response(content, media_type="application/json")


async def read_body(request: Request, *, limit: int) -> bytes:
    """Read a whole body of at most ``limit`` bytes. Raises InvalidInput beyond it."""
    too_large = InvalidInput(
        f"The request body is larger than {limit} bytes.", todo="Send it in smaller batches."
    )
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limit:
        raise too_large
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def perform(
    services: Services, operation: Operation, path: dict[str, str], request: Request
) -> Response:
    """Decode, do and encode one operation, and turn what it raises into MLflow's errors."""
    try:
        raw = await read_body(request, limit=services.limits.body)
        body = _decode(operation.body, raw, request)
        call = Call(services, path, services.actor(request))
        if operation.slow:
            result = await asyncio.to_thread(operation.work, call, body)
        else:
            result = operation.work(call, body)
            if isinstance(result, Awaitable):
                result = await result
        return answer(result)
    except KeepwellError as problem:
        return refusal(problem)


def _decode(kind: type[Body], raw: bytes, request: Request) -> Body:
    try:
        if raw.strip():
            # Lax, because proto's JSON may write 64-bit numbers and NaN as texts.
            return msgspec.json.decode(raw, type=kind, strict=False)
        query = request.query_params
        lists = {
            field.name for field in msgspec.structs.fields(kind) if field.name in _repeated(kind)
        }
        found = {k: query.getlist(k) if k in lists else query[k] for k in query}
        return msgspec.convert(found, type=kind, strict=False)
    except (
        msgspec.DecodeError,
        msgspec.ValidationError,
        UnicodeDecodeError,
        RecursionError,
    ) as fault:
        raise InvalidInput(
            f"The request cannot be read: {fault}.", where=request.url.path
        ) from fault


def _repeated(kind: type[Body]) -> set[str]:
    return {
        field.name for field in msgspec.structs.fields(kind) if str(field.type).startswith("tuple[")
    }


def milliseconds(at: Time) -> int:
    """Give a time as MLflow does."""
    return at // 1000


def microseconds(at: int, what: str) -> Time:
    """Take a time as MLflow gives it. Raises InvalidInput for one that no clock shows."""
    if not -LARGEST_MS <= at <= LARGEST_MS:
        raise InvalidInput(f"{what} is {at}; it is milliseconds since 1970.")
    return at * 1000


def number(value: float) -> float | str:
    """Write a value as proto's JSON does: what JSON has no number for is a text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def pairs(values: dict[str, str]) -> list[dict[str, str]]:
    """Write params or tags."""
    return [{"key": key, "value": value} for key, value in values.items()]


def unpair(given: tuple[Pair, ...]) -> dict[str, str]:
    """Take params or tags."""
    return {check_key(pair.key): pair.value for pair in given}


def check_key(key: str) -> str:
    """Refuse a key that is empty or longer than MLflow allows. Raises InvalidInput."""
    if not key or len(key) > 250 or "\0" in key:
        raise InvalidInput(
            f"{key[:300]!r} is not a key.", todo="Use 1 to 250 characters without NUL."
        )
    return key


def check_text(value: str, what: str, most: int) -> str:
    """Refuse a text that is too long or holds NUL, which databases cannot keep. Raises InvalidInput."""
    if len(value) > most or "\0" in value:
        raise InvalidInput(
            f"{what} has {len(value)} characters.", todo=f"Use at most {most}, without NUL."
        )
    return value


def check_page(limit: int, most: int) -> int:
    """Refuse a page size out of range. Raises InvalidInput."""
    if not 1 <= limit <= most:
        raise InvalidInput(f"max_results is {limit}.", todo=f"Ask for 1 to {most}.")
    return limit


def needed(value: str, name: str) -> str:
    """Refuse an empty required field. Raises InvalidInput."""
    if not value:
        raise InvalidInput(f"The field {name!r} is missing.", todo="Give it a value.")
    return value
