"""The Open Inference Protocol v2 over REST, with binary tensors, the model repository and statistics.

The protocol: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md).
The extensions are Triton's: binary_tensor_data, model_repository and statistics of its ``docs/protocol``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from keepwell.core.errors import InvalidInput, KeepwellError
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.codec import JSON, NOT_JSON, Decoded, encode
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Serving
from keepwell.serving.log.batches import Answers
from keepwell.serving.protocols import Call, Reply, repository, tensors
from keepwell.serving.protocols.tensors import Tensor

STATUS = {"not_found": 404, "conflict": 409, "refused": 409, "unavailable": 503}
LENGTH = b"inference-header-content-length"


class _Input(msgspec.Struct, kw_only=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw()


class _Wanted(msgspec.Struct, kw_only=True):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct, kw_only=True):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Wanted] | None = None


class _Index(msgspec.Struct, kw_only=True):
    ready: bool = False


class _Load(msgspec.Struct, kw_only=True):
    parameters: dict[str, Any] | None = None


_request = msgspec.json.Decoder(_Request)
_index = msgspec.json.Decoder(_Index)
_load = msgspec.json.Decoder(_Load)


def _data_decoders() -> dict[str, tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]]:
    """A decoder of flat and one of nested data for each datatype; null stands for a missing value."""
    made: dict[str, tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]] = {}
    for datatype in tensors.DATATYPES:
        element: Any = {"BOOL": bool, "BYTES": str}.get(datatype, int)
        element = float if datatype.startswith("FP") else element
        made[datatype] = (
            msgspec.json.Decoder(list[element | None]),
            msgspec.json.Decoder(list[list[element | None]]),
        )
    return made


_data = _data_decoders()


class OpenInference:
    """One inference request. Implements ``WireProtocol``."""

    bad_input = 400

    def __init__(self, version: str) -> None:
        self._version = version
        self._id: str | None = None
        self._wanted: tuple[str, ...] = ()
        self._binary: tuple[str, ...] = ()

    def decode(self, serving: Serving, body: bytes, headers: Mapping[bytes, bytes]) -> Decoded:
        """See ``WireProtocol``."""
        head, rest = _parted(body, headers)
        given: _Request = read(_request, head)
        parameters = given.parameters or {}
        self._id = given.id
        self._outputs(given, parameters)
        made: list[Tensor] = []
        place = 0
        for one in given.inputs:
            size = (one.parameters or {}).get("binary_data_size")
            if "shared_memory_region" in (one.parameters or {}):
                raise InvalidInput(
                    f"The input {one.name!r} is in shared memory, which is not read here.",
                    todo="Send its data in the request.",
                )
            if size is None:
                made.append(_from_json(one))
                continue
            if (
                not isinstance(size, int)
                or isinstance(size, bool)
                or not 0 <= size <= len(rest) - place
            ):
                raise InvalidInput(
                    f"The input {one.name!r} says that it has {str(size)[:40]} binary bytes;"
                    f" {len(rest) - place:,} are left behind the header.",
                    todo="Inference-Header-Content-Length is the length of the JSON alone.",
                )
            if one.data:
                raise InvalidInput(f"The input {one.name!r} has both 'data' and binary bytes.")
            made.append(
                tensors.from_raw(one.name, one.datatype, one.shape, rest[place : place + size])
            )
            place += size
        if place != len(rest):
            raise InvalidInput(
                f"{len(rest) - place:,} binary bytes belong to no input.",
                todo="Give each binary input its 'binary_data_size'.",
            )
        if not made:
            raise InvalidInput("The request has no inputs.")
        return tensors.decoded(serving, made, parameters, version=self._version)

    def _outputs(self, given: _Request, parameters: Mapping[str, Any]) -> None:
        """Read which outputs are wanted, and which of them as binary bytes."""
        every = parameters.get("binary_data_output") is True
        wanted = given.outputs or []
        self._wanted = tuple(one.name for one in wanted)
        tensors.check_outputs(self._wanted)
        binary: list[str] = []
        for one in wanted:
            asked = one.parameters or {}
            for key in ("classification", "shared_memory_region"):
                if asked.get(key):
                    raise InvalidInput(
                        f"The output {one.name!r} asks for {key}, which is not served here."
                    )
            if asked.get("binary_data", every) is True:
                binary.append(one.name)
        self._binary = tuple(binary) if wanted else tensors.OUTPUTS if every else ()

    def encode(self, serving: Serving, ask: Ask, answers: Answers) -> tuple[bytes, bytes]:
        """See ``WireProtocol``."""
        made, version, parameters = tensors.outputs(serving, answers, self._wanted)
        if ask.rows is not None and ask.rows.probe:
            parameters["probe"] = True
        answer: dict[str, Any] = {"model_name": serving.edition.name}
        if version:
            answer["model_version"] = version
        if self._id is not None:
            answer["id"] = self._id
        answer["parameters"] = parameters
        lines: list[dict[str, Any]] = []
        behind: list[bytes] = []
        for one in made:
            line: dict[str, Any] = {"name": one.name, "datatype": one.datatype, "shape": one.shape}
            if one.name in self._binary:
                behind.append(tensors.raw_bytes(one))
                line["parameters"] = {"binary_data_size": len(behind[-1])}
            else:
                line["data"] = (
                    one.values if one.datatype == "BYTES" else one.values.reshape(-1).tolist()
                )
            lines.append(line)
        answer["outputs"] = lines
        head = encode(answer)
        if not behind:
            return head, JSON
        content = b"application/octet-stream\r\n" + LENGTH + b": " + str(len(head)).encode()
        return b"".join((head, *behind)), content

    def error(self, status: int, message: str) -> bytes:
        """See ``WireProtocol``."""
        del status
        return encode({"error": message})


def _parted(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[bytes, memoryview]:
    """Part the JSON from the binary bytes behind it. Raises InvalidInput."""
    given = headers.get(LENGTH)
    if given is None:
        return body, memoryview(b"")
    said = given.decode("latin-1").strip()
    if not (said.isascii() and said.isdigit()) or len(said) > 12 or not 0 < int(said) <= len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {said[:40]!r}; the body has {len(body):,} bytes."
        )
    return body[: int(said)], memoryview(body)[int(said) :]


def _from_json(one: _Input) -> Tensor:
    count = tensors.sized(one.name, one.datatype, one.shape)
    raw = bytes(one.data)
    flat, nested = _data[one.datatype]
    try:
        if raw[1:20].lstrip().startswith(b"["):
            rows = nested.decode(raw)
            wide = count // len(rows) if rows else -1
            if any(len(row) != wide for row in rows) or (
                len(one.shape) == 2 and len(rows) != one.shape[0]
            ):
                raise InvalidInput(
                    f"The data of the input {one.name!r} has not its shape {one.shape}."
                )
            values = [value for row in rows for value in row]
        else:
            values = flat.decode(raw)
    except (*NOT_JSON, RecursionError) as error:
        raise InvalidInput(
            f"The data of the input {one.name!r} is not {one.datatype}: {str(error) or 'nested too deeply'}."
            if raw
            else f"The input {one.name!r} has no data."
        ) from None
    return tensors.from_values(one.name, one.datatype, one.shape, values)


def read(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode JSON. Raises InvalidInput."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{error}.") from None
    except NOT_JSON as error:
        raise InvalidInput(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise InvalidInput("The body is nested too deeply.") from None


def route(desk: Desk, call: Call) -> Ask | Reply | None:
    """Answer a path of the protocol, or give the request for the desk; None for a path of somebody else."""
    if call.path != "/v2" and not call.path.startswith("/v2/"):
        return None
    parts = [unquote(part) for part in call.path.rstrip("/").split("/")[2:]]
    try:
        return _route(desk, call, parts)
    except InvalidInput as error:
        return Reply(400, encode({"error": str(error)}))
    except KeepwellError as error:
        return Reply(STATUS.get(error.code, 500), encode({"error": str(error)}))


def _route(desk: Desk, call: Call, parts: list[str]) -> Ask | Reply:
    get, post = call.method == "GET", call.method == "POST"
    match parts:
        case [] if get:
            return _found(repository.server())
        case ["health", "live"] if get:
            return _found({"live": True})
        case ["health", "ready"] if get:
            state = {"ready": desk.ready, "edition": desk.edition, "problem": desk.problem}
            return _found(state, ready=desk.ready)
        case ["repository", "index"] if post:
            return _found(repository.index(desk, ready=read(_index, call.body or b"{}").ready))
        case ["repository", "models", name, "load"] if post:
            given: _Load = read(_load, call.body or b"{}")
            repository.load(desk, name, given.parameters or {})
            return _found({})
        case ["repository", "models", name, "unload"] if post:
            repository.unload(desk, name)
        case ["models", "stats"] if get and "stats" not in desk.endpoints:
            return _found({"model_stats": repository.statistics(desk, "", "")})
        case ["models", name, *rest]:
            version = ""
            if len(rest) >= 2 and rest[0] == "versions":
                version, rest = rest[1], rest[2:]
            return _model(desk, call, name, version, rest)
    return _elsewhere(call)


def _model(desk: Desk, call: Call, name: str, version: str, rest: list[str]) -> Ask | Reply:
    get = call.method == "GET"
    match rest:
        case [] if get:
            return _found(repository.model(desk, name, version))
        case ["ready"] if get:
            ready = repository.model_ready(desk, name, version)
            return _found({"name": name, "ready": ready}, ready=ready)
        case ["stats"] if get:
            return _found({"model_stats": repository.statistics(desk, name, version)})
        case ["infer"] if call.method == "POST":
            coding = call.headers.get(b"content-encoding", b"identity")
            if coding.lower() != b"identity":
                said = coding.decode("latin-1")[:40]
                return Reply(
                    415, encode({"error": f"A body encoded as {said!r} is not read here."})
                )
            return Ask(
                endpoint=name,
                body=call.body,
                began=call.began,
                protocol=OpenInference(version),
                headers=call.headers,
            )
    return _elsewhere(call)


_PATHS = (
    ("POST", ("infer", "index", "load", "unload")),
    ("GET", ("ready", "live", "stats", "v2")),
)


def _elsewhere(call: Call) -> Reply:
    last = call.path.rstrip("/").rsplit("/", 1)[-1]
    other = next((m for m, names in _PATHS if last in names and m != call.method), "")
    said = f"{call.method} {call.path[:200]} is not served here."
    return Reply(
        405 if other else 404, encode({"error": f"{said} Use {other}." if other else said})
    )


def _found(value: Any, *, ready: bool = True) -> Reply:
    return Reply(200 if ready else 503, encode(value))
