"""The messages of the Open Inference Protocol v2 over gRPC, read into rows and written from answers.

Needs the extra ``grpc``. The messages come from ``inference.binpb`` into a pool of their own, so that a model
which is itself a client of some inference server may bring its own messages of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from keepwell.core.errors import InvalidInput
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.codec import Decoded
from keepwell.serving.desk.loading import Serving
from keepwell.serving.log.batches import Answers
from keepwell.serving.protocols import tensors

SERVICE = "inference.GRPCInferenceService"
GRPC = b"application/grpc"


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
