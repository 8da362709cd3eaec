"""The Open Inference Protocol v2 over gRPC: the same desk, the same ticks, another wire.

Needs the extra ``grpc``. The messages come from ``inference.binpb`` into a pool of their own, so that a model
which is itself a client of some inference server may bring its own messages of the same names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from keepwell.core.errors import InvalidInput, KeepwellError, Unavailable
from keepwell.serving.desk.codec import Decoded
from keepwell.serving.desk.desk import Ask, Serving
from keepwell.serving.log.batches import Answers
from keepwell.serving.protocols import JSON, repository, tensors
from keepwell.serving.telemetry.notes import Note
from keepwell.serving.transport.gate import DENIED
from keepwell.serving.transport.http import MAX_BODY, MAX_HEADERS, Floor, Slot
from keepwell.serving.transport.tls import Tls

SERVICE = "inference.GRPCInferenceService"
GRPC = b"application/grpc"
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


def _messages() -> Callable[[str], Any]:
    content = resources.files(__package__ or "").joinpath("inference.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"inference.{name}")
    )


message_of = _messages()
"""Gives the class of a message by its name in ``inference.proto``."""

InferRequest = message_of("ModelInferRequest")
InferResponse = message_of("ModelInferResponse")

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcInference:
    """One ModelInfer call. Implements ``WireProtocol``; what it writes is a ModelInferResponse, an error is text."""

    bad_input = 400

    def __init__(self, request: Any) -> None:
        self._request = request
        self._wanted: tuple[str, ...] = ()

    def decode(self, serving: Serving, body: bytes, headers: Mapping[bytes, bytes]) -> Decoded:
        """See ``WireProtocol``. The message was parsed when it came, for the endpoint's name is inside."""
        del body, headers
        request = self._request
        self._wanted = tuple(one.name for one in request.outputs)
        tensors.check_outputs(self._wanted)
        for one in request.outputs:
            if one.parameters:
                asked = {*one.parameters} & {"classification", "shared_memory_region"}
                if asked:
                    raise InvalidInput(
                        f"The output {one.name!r} asks for {min(asked)}, which is not served here."
                    )
        raws = request.raw_input_contents
        if not request.inputs:
            raise InvalidInput("The request has no inputs.")
        if raws and len(raws) != len(request.inputs):
            raise InvalidInput(
                f"There are {len(raws)} raw_input_contents for {len(request.inputs)} inputs."
            )
        made = [_tensor(one, raws[k] if raws else None) for k, one in enumerate(request.inputs)]
        parameters = {key: _parameter(value) for key, value in request.parameters.items()}
        return tensors.decoded(serving, made, parameters, version=request.model_version)

    def encode(self, serving: Serving, ask: Ask, answers: Answers) -> tuple[bytes, bytes]:
        """See ``WireProtocol``. Raw bytes are answered with raw bytes, contents with contents."""
        made, version, parameters = tensors.outputs(serving, answers, self._wanted)
        response = InferResponse(
            model_name=serving.edition.name, model_version=version, id=self._request.id
        )
        response.parameters["plan"].int64_param = parameters["plan"]
        if ask.rows is not None and ask.rows.probe:
            response.parameters["probe"].bool_param = True
        raw = bool(self._request.raw_input_contents)
        for one in made:
            line = response.outputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
            if raw:
                response.raw_output_contents.append(tensors.raw_bytes(one))
            elif one.datatype == "BYTES":
                line.contents.bytes_contents.extend(text.encode() for text in one.values)
            else:
                flat = one.values.reshape(-1).tolist()
                getattr(line.contents, _CONTENTS[one.datatype]).extend(flat)
        written: bytes = response.SerializeToString()
        return written, GRPC

    def error(self, status: int, message: str) -> bytes:
        """See ``WireProtocol``."""
        del status
        return message.encode()


def _tensor(one: Any, raw: bytes | None) -> tensors.Tensor:
    if "shared_memory_region" in one.parameters:
        raise InvalidInput(
            f"The input {one.name!r} is in shared memory, which is not read here.",
            todo="Send its data in the request.",
        )
    if raw is not None:
        if one.HasField("contents"):
            raise InvalidInput(f"The input {one.name!r} has both contents and raw_input_contents.")
        return tensors.from_raw(one.name, one.datatype, one.shape, raw)
    tensors.sized(one.name, one.datatype, one.shape)
    field = _CONTENTS.get(one.datatype)
    if field is None:
        raise InvalidInput(
            f"The input {one.name!r} is {one.datatype}, which has no contents.",
            todo="Send it in raw_input_contents.",
        )
    values = list(getattr(one.contents, field))
    if one.datatype == "BYTES":
        values = [tensors.text(one.name, value) for value in values]
    return tensors.from_values(one.name, one.datatype, one.shape, values)


def _parameter(given: Any) -> Any:
    chosen = given.WhichOneof("parameter_choice")
    return getattr(given, chosen) if chosen else None


class _Waiting:
    """One call that waits for the tick. Implements ``keepwell.serving.transport.http.Caller``."""

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
