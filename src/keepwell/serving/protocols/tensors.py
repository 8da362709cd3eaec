"""Tensors of the Open Inference Protocol into rows and answers into tensors, for its REST and its gRPC form alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.clock import Time
from keepwell.core.errors import InvalidInput, NotFound, near_miss
from keepwell.serving.desk.codec import MAX_ROWS, Codec, Decoded, event_time, text_of
from keepwell.serving.desk.loading import Serving
from keepwell.serving.log.batches import Answers

NUMPY: dict[str, npt.DTypeLike] = {
    "BOOL": "<u1",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Datatypes of fixed size, as they lie in a raw tensor: little-endian, row-major."""
DATATYPES = (*NUMPY, "BYTES")
OF_COLUMN = {
    "float64": "FP64",
    "int64": "INT64",
    "bool": "BOOL",
    "string": "BYTES",
    "datetime": "BYTES",
}


class Tensor(msgspec.Struct, kw_only=True):
    """One input: ``values`` has ``shape``, numbers as an array, BYTES as a nested-free list of texts or None."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Any


class Output(msgspec.Struct, kw_only=True):
    """One output: numbers as an array of ``shape``, BYTES as a list of texts."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Any


def sized(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Give the number of elements that a tensor declares, before anything is made of it. Raises InvalidInput."""
    if datatype not in DATATYPES:
        raise InvalidInput(
            f"The datatype {datatype[:40]!r} of the input {name!r} is not known.",
            todo=near_miss(datatype[:40], DATATYPES),
        )
    if not 1 <= len(shape) <= 2:
        raise InvalidInput(
            f"The input {name!r} has {len(shape)} dimensions.",
            todo="Send [n] or [n, 1] for one column, or [n, d] for all columns in the order of the signature.",
        )
    if min(shape) < 0:
        raise InvalidInput(f"The shape {_short(shape)} of the input {name!r} is negative.")
    if shape[0] > MAX_ROWS:
        raise InvalidInput(
            f"The input {name!r} has more than {MAX_ROWS:,} rows.",
            todo="Send fewer in one request.",
        )
    if 0 in shape:
        raise InvalidInput(f"The input {name!r} is empty: its shape is {_short(shape)}.")
    return math.prod(shape)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Tensor:
    """Read a tensor's raw bytes; numbers are not copied. Raises InvalidInput."""
    count = sized(name, datatype, shape)
    values: Any
    if datatype == "BYTES":
        values = _texts(name, count, bytes(raw))
    else:
        kind = np.dtype(NUMPY[datatype])
        if count * kind.itemsize != len(raw):
            raise InvalidInput(
                f"The input {name!r} has {len(raw):,} bytes; {datatype} of shape {_short(shape)}"
                f" has {count * kind.itemsize:,}."
            )
        values = np.frombuffer(raw, dtype=kind).reshape(tuple(shape))
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), values=values)


def from_values(name: str, datatype: str, shape: Sequence[int], given: Sequence[Any]) -> Tensor:
    """Read a flat list of values, None where one is missing. Raises InvalidInput."""
    count = sized(name, datatype, shape)
    if len(given) != count:
        raise InvalidInput(
            f"The input {name!r} has {len(given):,} values; its shape {_short(shape)} has {count:,}."
        )
    values: Any = given
    if datatype != "BYTES":
        kind = np.dtype(NUMPY[datatype])
        try:
            with np.errstate(over="ignore"):
                # None becomes NaN, which only floats can hold; integers with gaps are held as FP64.
                if kind.kind != "f" and None in given:
                    kind = np.dtype("<f8")
                values = np.array(given, dtype=kind).reshape(tuple(shape))
        except (OverflowError, ValueError, TypeError) as error:
            raise InvalidInput(f"The input {name!r} is not {datatype}: {error}.") from None
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), values=values)


def _texts(name: str, count: int, raw: bytes) -> list[str]:
    """Read BYTES: before each element stands its length, four bytes, little-endian."""
    texts: list[str] = []
    place, end = 0, len(raw)
    for k in range(count):
        start = place + 4
        place = start + int.from_bytes(raw[place:start], "little") if start <= end else end + 1
        if place > end:
            raise InvalidInput(f"The input {name!r} is cut off: element {k} ends behind its bytes.")
        texts.append(text(name, raw[start:place]))
    if place != end:
        raise InvalidInput(
            f"The input {name!r} has {end - place:,} bytes more than its {count:,} elements."
        )
    return texts


def text(name: str, raw: bytes) -> str:
    """Read one element of BYTES. Raises InvalidInput."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The input {name!r} is not UTF-8: {error.reason}.") from None


def _short(shape: Sequence[int]) -> str:
    return str(list(shape))[:80]


def pinned(serving: Serving, version: str) -> int:
    """Give the version to probe, or 0 where the plan decides.

    A caller that names the only version the plan lets answer makes an ordinary decision. Any other loaded
    version is probed: it answers, and its answer is no decision, because the plan did not assign it.
    Raises NotFound.
    """
    if not version:
        return 0
    loaded = {str(one.arm.version): one.arm for one in (*serving.mirrors, *serving.arms)}
    arm = loaded.get(version)
    sole = serving.assignment.sole
    if arm is None:
        raise NotFound(
            f"Version {version[:40]!r} of {serving.edition.name!r} is not loaded.",
            todo=near_miss(version[:40], loaded),
        )
    return 0 if sole >= 0 and arm == serving.arms[sole].arm else arm.version


def decoded(
    serving: Serving, tensors: Sequence[Tensor], parameters: Mapping[str, Any], *, version: str
) -> Decoded:
    """Make rows of a request's tensors. Raises InvalidInput naming the tensor, NotFound for the version."""
    probe = pinned(serving, version)
    codec = serving.codec
    assert codec is not None
    columns, whole = _sorted(codec, tensors)
    n = (whole or next(iter(columns.values()))).shape[0]
    for name, tensor in columns.items():
        if tensor.shape[0] != n:
            raise InvalidInput(f"The input {name!r} has {tensor.shape[0]} rows, others have {n}.")
    features, matrix = _rows(codec, columns, whole, n)
    ids = [_word(value, "ids") for value in _listed(parameters, "ids", n)]
    field = {"unit": serving.edition.unit, "time": serving.edition.time}
    besides: dict[str, list[Any]] = {}
    for key, name in field.items():
        sent = _listed(parameters, key, n)
        if sent and (not name or name in columns or name in codec.names):
            raise InvalidInput(
                f"The parameter {key!r} has no place: "
                + (
                    f"{name!r} is an input of this request."
                    if name
                    else f"the endpoint has no {key}."
                )
            )
        if name in codec.names:
            place = codec.names.index(name)
            sent = (
                matrix[:, place].tolist() if features is None else [row[place] for row in features]
            )
        elif name in columns:
            sent = columns[name].values
            sent = sent if isinstance(sent, list) else sent.reshape(-1).tolist()
        besides[key] = list(sent)
    dtype = codec.dtype(field["unit"])
    units = [_unit(value, dtype) for value in besides["unit"]]
    return Decoded(
        features=features,
        matrix=matrix,
        ids=ids,
        units=units,
        times=[] if probe else _times(besides["time"], field["time"], n),
        probe=probe,
    )


def _sorted(codec: Codec, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Part the tensors into columns by name and, where there is one, the matrix of all columns."""
    columns: dict[str, Tensor] = {}
    whole: Tensor | None = None
    width = len(codec.names)
    for tensor in tensors:
        known = tensor.name in codec.names or tensor.name in codec.extra
        alone = len(tensor.shape) == 1 or tensor.shape[1] == 1
        if tensor.name in columns:
            raise InvalidInput(f"The input {tensor.name!r} is there twice.")
        if known and alone:
            columns[tensor.name] = tensor
        elif whole is None and (tensor.shape[1] if len(tensor.shape) == 2 else 1) == width:
            whole = tensor
        elif known:
            raise InvalidInput(
                f"The input {tensor.name!r} has the shape {_short(tensor.shape)}.",
                todo=f"A column is [n] or [n, 1], all {width} columns are [n, {width}].",
            )
        else:
            raise InvalidInput(
                f"The endpoint has no input {tensor.name[:80]!r} of shape {_short(tensor.shape)}.",
                todo=near_miss(tensor.name[:80], (*codec.names, *codec.extra)),
            )
    missing = [name for name in codec.names if name not in columns]
    if whole is None and missing:
        raise InvalidInput(
            f"The input {missing[0]!r} is missing" + (f", and {len(missing) - 1} more." if missing[1:] else "."),
            todo=f"Send a tensor for each of {', '.join(codec.names[:20])}, or one of shape [n, {width}].",
        )  # fmt: skip
    if whole is not None and len(missing) < width:
        raise InvalidInput(
            f"The input {whole.name!r} has all columns, and others are sent besides it.",
            todo="Send one or the other.",
        )
    return columns, whole


def _rows(
    codec: Codec, columns: Mapping[str, Tensor], whole: Tensor | None, n: int
) -> tuple[list[tuple[Any, ...]] | None, npt.NDArray[Any]]:
    """Give features and matrix as ``Decoded`` has them: numbers need no work a row."""
    signature = codec.signature
    width = len(codec.names)
    numeric = codec.numeric
    if whole is not None:
        if numeric and whole.datatype != "BYTES":
            return None, _floats(codec, whole).reshape(n, width)
        texts = all(column.dtype in {"string", "datetime"} for column in signature.inputs)
        if texts and whole.datatype == "BYTES":
            rows = [tuple(whole.values[k : k + width]) for k in range(0, n * width, width)]
            return rows, np.array(rows, dtype=object).reshape(n, width)
        raise InvalidInput(
            f"The input {whole.name!r} is {whole.datatype}, which not all columns are.",
            todo="Send one tensor a column; GET /v2/models/NAME has their datatypes.",
        )
    for column in signature.inputs:
        _fits(columns[column.name], column.dtype)
    if numeric:
        matrix = np.empty((n, width))
        for k, name in enumerate(codec.names):
            matrix[:, k] = _floats(codec, columns[name]).reshape(n)
        return None, matrix
    sides = [
        columns[column.name].values
        if columns[column.name].datatype == "BYTES"
        else _gapped(_floats(codec, columns[column.name]).reshape(n))
        for column in signature.inputs
    ]
    features = list(zip(*sides, strict=True))
    return features, np.array(features, dtype=object).reshape(n, width)


def _fits(tensor: Tensor, dtype: str) -> None:
    allowed = {"string": ("BYTES",), "datetime": ("BYTES",), "bool": tuple(NUMPY)}.get(
        dtype, tuple(NUMPY)[1:]
    )
    if tensor.datatype not in allowed:
        raise InvalidInput(
            f"The input {tensor.name!r} is {tensor.datatype}; the column is {dtype}.",
            todo=f"Send {' or '.join(allowed)}.",
        )


def _floats(codec: Codec, tensor: Tensor) -> npt.NDArray[Any]:
    """Numbers as the desk takes them: NaN where one is missing, and never infinite, as in plain rows."""
    values: npt.NDArray[Any] = tensor.values
    if tensor.datatype != "FP32":  # which the log keeps as it is
        with np.errstate(
            invalid="ignore"
        ):  # one of NaN's many bit patterns sets the processor's flag
            values = values.astype(np.float64)
    if tensor.datatype == "BOOL":
        values = np.where(np.isnan(values), values, values != 0)
    if np.isinf(values).any():
        row, place = np.argwhere(np.isinf(values.reshape(tensor.shape[0], -1)))[0]
        name = tensor.name if tensor.name in codec.names else codec.names[place]
        raise InvalidInput(
            f"Row {row} of the input {tensor.name!r} has an infinite {name!r}.",
            todo="Send NaN where a value is missing.",
        )
    return values


def _gapped(numbers: npt.NDArray[np.float64]) -> list[float | None]:
    """List a column for the log, with None where a value is missing, as plain rows have it."""
    return [None if gap else v for v, gap in zip(numbers.tolist(), np.isnan(numbers), strict=True)]


def _listed(parameters: Mapping[str, Any], key: str, n: int) -> list[Any]:
    """Give a parameter's value a row. gRPC has no lists in parameters: there a list is written as JSON text."""
    given = parameters.get(key)
    if given is None or given == []:
        return []
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError):
            raise InvalidInput(f"The parameter {key!r} is no JSON list.") from None
    listed = given if isinstance(given, list) else [given]
    if len(listed) != n:
        raise InvalidInput(f"There are {len(listed)} values in the parameter {key!r} for {n} rows.")
    return listed


def _word(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    raise _unfit(value, key)


def _unit(value: Any, dtype: str) -> str:
    if value is not None and not isinstance(value, str | int | float):
        raise _unfit(value, "unit")
    if isinstance(value, bool) and dtype != "bool":
        raise _unfit(value, "unit")
    return text_of(value, dtype)


def _unfit(value: Any, key: str) -> InvalidInput:
    return InvalidInput(
        f"{str(value)[:80]!r} cannot be in {key!r}.",
        todo="Ids are texts; units are texts or numbers.",
    )


def _times(given: list[Any], name: str, n: int) -> list[Time]:
    if not name:
        return []
    if not given:
        given = [None] * n
    times: list[Time] = []
    for k, value in enumerate(given):
        if value is None or value != value:  # noqa: PLR0124 - NaN, as above
            raise InvalidInput(
                f"Row {k} has no {name!r}, the time of its decision.",
                todo=f"Send it as a tensor {name!r} or in the parameter 'time'.",
            )
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidInput(f"Row {k} has a {name!r} that is no time.")
        times.append(event_time(value))
    return times


OUTPUTS = ("prediction", "id", "version", "arm")


def outputs(
    serving: Serving, answers: Answers, wanted: Sequence[str]
) -> tuple[list[Output], str, dict[str, Any]]:
    """Give the answer's tensors, the version if one answered all rows, and the parameters of the answer.

    ``wanted`` are names out of ``OUTPUTS``, all where it is empty.
    """
    alone = answers.alone
    by = answers.answerers if alone is None or wanted != ("prediction",) else []
    n = len(answers)
    made: list[Output] = []
    for name in wanted or OUTPUTS:
        if name == "prediction":
            values = answers.outputs
            made.append(Output(name=name, datatype="FP64", shape=values.shape, values=values))
        elif name == "version":
            versions = np.array([one.version for one in by], dtype=np.int64)
            made.append(Output(name=name, datatype="INT64", shape=(n,), values=versions))
        else:
            texts = answers.ids if name == "id" else [one.arm for one in by]
            made.append(Output(name=name, datatype="BYTES", shape=(n,), values=texts))
    answered = {one.version for one in by} if alone is None else {alone.version}
    version = str(answered.pop()) if len(answered) == 1 else ""
    return made, version, {"plan": serving.edition.plan}


def raw_bytes(output: Output) -> bytes:
    """Write a tensor's values as raw bytes."""
    if output.datatype == "BYTES":
        words = [text.encode() for text in output.values]
        return b"".join(len(word).to_bytes(4, "little") + word for word in words)
    made: bytes = output.values.tobytes()
    return made


def check_outputs(wanted: Sequence[str]) -> None:
    """See that the requested outputs exist. Raises InvalidInput."""
    for name in wanted:
        if name not in OUTPUTS:
            raise InvalidInput(
                f"There is no output {name[:80]!r}.", todo=near_miss(name[:80], OUTPUTS)
            )
    if len(set(wanted)) != len(wanted):
        raise InvalidInput("An output is requested twice.")
