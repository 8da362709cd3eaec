"""gRPC: calls of the Open Inference Protocol at the same desk, in the same ticks as what comes over HTTP.

Needs the extra ``grpc``. The messages themselves are in ``keepwell.serving.protocols.grpc``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import message

from keepwell.core.errors import KeepwellError, Unavailable
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.codec import JSON
from keepwell.serving.protocols import repository
from keepwell.serving.protocols.grpc import SERVICE, GrpcInference, InferRequest, message_of
from keepwell.serving.telemetry.notes import Note
from keepwell.serving.transport.floor import MAX_BODY, MAX_HEADERS, Floor, Slot
from keepwell.serving.transport.gate import DENIED
from keepwell.serving.transport.tls import Tls

MAX_STREAMS = 1024
"""Requests under way on one connection."""
MAX_DETAILS = 1000
"""Characters of an error: it travels in the trailers, which clients bound at 8 KiB."""
CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_STATUS = {"invalid_input": 400, "not_found": 404, "conflict": 409, "refused": 409}


class _Waiting:
    """One call that waits for the tick. Implements ``keepwell.serving.transport.floor.Caller``."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self.answer: asyncio.Future[tuple[int, bytes]] = floor.loop.create_future()

    def fill(self, slot: Slot, status: int, answer: bytes, *, content: bytes = JSON) -> None:
        """Wake the call, unless its client has gone."""
        del content
        if slot.note is not None:
            self._floor.noted(slot.note, status, len(answer))
        if not self.answer.done():
            self.answer.set_result((status, answer))


class Inference:
    """The service: each method takes and gives serialised messages."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor

    async def infer(self, body: bytes, context: Any) -> bytes:
        """Answer one ModelInfer in the same tick as what came by other protocols."""
        began = time.perf_counter()
        note = _noted(self._floor, context, "ModelInfer", body, began)
        await _admit(self._floor, context, note)
        request = await _parsed(self._floor, InferRequest, body, context, note)
        waiting = _Waiting(self._floor)
        ask = Ask(
            endpoint=request.model_name, body=b"", began=began, protocol=GrpcInference(request)
        )
        ask.size = len(body)
        wanted = self._floor.cohort_headers
        if wanted:
            sent = ((k.encode(), v) for k, v in context.invocation_metadata() or ())
            ask.headers = {
                k: v if isinstance(v, bytes) else v.encode() for k, v in sent if k in wanted
            }
        left = context.time_remaining()
        if left is not None:
            ask.deadline = began + max(left, 1e-6)
        self._floor.submit(ask, waiting, Slot(note=note))
        status, answer = await waiting.answer
        if status != 200:
            await _abort(self._floor, context, status, answer.decode())
        return answer

    def facts(self) -> dict[str, Callable[[Any], Any]]:
        """Give the methods that need no tick, by their names: message in, message out."""
        desk = self._floor.desk
        names = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata")
        more = (
            "ModelStatistics",
            "RepositoryIndex",
            "RepositoryModelLoad",
            "RepositoryModelUnload",
        )
        response = {name: message_of(f"{name}Response") for name in (*names, *more)}

        def loaded(request: Any) -> Any:
            repository.load(desk, request.model_name, request.parameters)
            return response["RepositoryModelLoad"]()

        return {
            "ServerLive": lambda _: response["ServerLive"](live=True),
            "ServerReady": lambda _: response["ServerReady"](ready=desk.ready),
            "ModelReady": lambda r: response["ModelReady"](
                ready=repository.model_ready(desk, r.name, r.version)
            ),
            "ServerMetadata": lambda _: response["ServerMetadata"](**repository.server()),
            "ModelMetadata": lambda r: response["ModelMetadata"](
                **repository.model(desk, r.name, r.version)
            ),
            "ModelStatistics": lambda r: response["ModelStatistics"](
                model_stats=repository.statistics(desk, r.name, r.version)
            ),
            "RepositoryIndex": lambda r: response["RepositoryIndex"](
                models=repository.index(desk, ready=r.ready)
            ),
            "RepositoryModelLoad": loaded,
            "RepositoryModelUnload": lambda r: repository.unload(desk, r.model_name),
        }


def _fact(
    floor: Floor, name: str, answer: Callable[[Any], Any]
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    kind = message_of(f"{name}Request")

    async def method(body: bytes, context: Any) -> bytes:
        note = _noted(floor, context, name, body, time.perf_counter())
        if name not in {"ServerLive", "ServerReady"}:
            await _admit(floor, context, note)
        request = await _parsed(floor, kind, body, context, note)
        try:
            written: bytes = answer(request).SerializeToString()
        except KeepwellError as error:
            await _abort(floor, context, _STATUS.get(error.code, 503), str(error), note)
            raise  # abort has raised already; mypy does not know
        if note is not None:
            floor.noted(note, 200, len(written))
        return written

    return method


def _noted(floor: Floor, context: Any, name: str, body: bytes, began: float) -> Note | None:
    if not floor.noting:
        return None
    parent = dict(context.invocation_metadata() or ()).get("traceparent", "")
    return Note(
        began,
        "POST",
        f"/{SERVICE}/{name}",
        str(context.peer()),
        len(body),
        parent if isinstance(parent, bytes) else parent.encode(),
    )


async def _admit(floor: Floor, context: Any, note: Note | None) -> None:
    if floor.gate.closed:
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not floor.gate.admits(sent if isinstance(sent, bytes) else sent.encode()):
            await _abort(floor, context, 401, DENIED, note)


async def _parsed(floor: Floor, kind: Any, body: bytes, context: Any, note: Note | None) -> Any:
    try:
        return kind.FromString(body)
    except message.DecodeError:
        await _abort(floor, context, 400, f"The request is no {kind.DESCRIPTOR.name}.", note)
        raise


async def _abort(
    floor: Floor, context: Any, status: int, said: str, note: Note | None = None
) -> None:
    """Refuse a call. ``note`` is given where its answer has not been noted yet."""
    if note is not None:
        floor.noted(note, status, len(said))
    floor.desk.meters.failed(status)
    await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), said[:MAX_DETAILS])


def _credentials(tls: Tls) -> Any:
    """Give credentials that are asked for again at every new connection."""

    def configuration() -> Any:
        certificate, key = tls.content
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration)


async def start(floor: Floor, address: str) -> Any:
    """Listen beside the other workers (SO_REUSEPORT) and give the server. Raises Unavailable."""
    service = Inference(floor)
    methods = {name: _fact(floor, name, answer) for name, answer in service.facts().items()}
    methods["ModelInfer"] = service.infer
    # Bytes in, bytes out: what cannot be parsed is then told to the caller as its mistake, not as ours.
    handlers = {name: grpc.unary_unary_rpc_method_handler(run) for name, run in methods.items()}
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", MAX_BODY),
            ("grpc.max_send_message_length", MAX_BODY),
            ("grpc.max_metadata_size", MAX_HEADERS),
            ("grpc.absolute_max_metadata_size", MAX_HEADERS),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
        ]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        if floor.tls is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, _credentials(floor.tls))
    except RuntimeError as error:
        raise Unavailable(f"gRPC cannot listen at {address}: {error}.") from error
    await server.start()
    return server
