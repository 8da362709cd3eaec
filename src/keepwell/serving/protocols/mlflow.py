"""MLflow's scoring server protocol: ``/invocations``, ``/ping``, ``/health`` and ``/version``.

The protocol: https://mlflow.org/docs/latest/deployment/deploy-model-locally/ (inference server specification).
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np

import keepwell
from keepwell.core.clock import Time
from keepwell.core.errors import InvalidInput, near_miss
from keepwell.core.records.models import Signature
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.codec import JSON, MAX_ROWS, Codec, Decoded, encode, event_time, text_of
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Serving
from keepwell.serving.log.batches import Answers
from keepwell.serving.protocols import Call, Reply

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
CODES = {
    400: "BAD_REQUEST",
    404: "RESOURCE_DOES_NOT_EXIST",
    415: "BAD_REQUEST",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MISSING = frozenset({"", "NA", "NaN", "nan", "null", "None", "N/A", "<NA>", "NULL", "n/a", "#N/A"})
"""What pandas writes or reads as a missing value in CSV."""
_ROUTE = "/v1/endpoints/"


class _Split(msgspec.Struct, kw_only=True):
    data: list[list[Any]]
    columns: list[str] | None = None
    index: list[Any] | None = None


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    dataframe_split: _Split | msgspec.UnsetType = msgspec.UNSET
    dataframe_records: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    instances: list[Any] | msgspec.UnsetType = msgspec.UNSET
    inputs: list[Any] | dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | None = None


_body = msgspec.json.Decoder(_Body)


class Invocations:
    """One scoring request. Implements ``WireProtocol``."""

    bad_input = 400

    def __init__(self) -> None:
        self._ignored: list[str] = []

    def decode(self, serving: Serving, body: bytes, headers: Mapping[bytes, bytes]) -> Decoded:
        """See ``WireProtocol``."""
        codec = serving.codec
        assert codec is not None
        ids: list[str] = []
        if _media(headers) == "text/csv":
            names, rows = _csv(codec, body)
        else:
            names, rows, ids = _json(codec, body)
        if not rows:
            raise InvalidInput("The request has no rows.")
        if len(rows) > MAX_ROWS:
            raise InvalidInput(f"{len(rows):,} rows are more than {MAX_ROWS:,} in one request.")
        if ids and len(ids) != len(rows):
            raise InvalidInput(f"There are {len(ids)} ids for {len(rows)} rows.")
        places = _places(codec, names)
        features = _typed(codec, rows, places)
        fields = serving.edition
        used = {*codec.names, *codec.extra}
        self._ignored = [name for name in places if name not in used]
        return Decoded(
            features=features,
            matrix=np.array(features, dtype=np.float64 if codec.numeric else object).reshape(
                len(rows), len(codec.names)
            ),
            ids=ids,
            units=_units(codec, fields.unit, features, rows, places)
            if fields.unit in places
            else [],
            times=_times(
                [row[places[fields.time]] if fields.time in places else None for row in rows],
                fields.time,
            )
            if fields.time
            else [],
            probe=0,
        )

    def encode(self, serving: Serving, ask: Ask, answers: Answers) -> tuple[bytes, bytes]:
        """See ``WireProtocol``. What is ours stands beside the predictions, as MLflow lets a server add fields.

        Its own server warns in its log of columns that it ignores; here the caller is told.
        """
        del serving, ask
        told = {
            "predictions": answers.outputs.tolist(),
            "ids": answers.ids,
            "versions": [one.version for one in answers.answerers],
        }
        if self._ignored:
            told["ignored"] = self._ignored
        return encode(told), JSON

    def error(self, status: int, message: str) -> bytes:
        """See ``WireProtocol``."""
        return failure(status, message)


def failure(status: int, message: str) -> bytes:
    """Write an error as MLflow's server does."""
    return encode({"error_code": CODES.get(status, "INTERNAL_ERROR"), "message": message})


def _json(codec: Codec, body: bytes) -> tuple[Sequence[str], Sequence[Sequence[Any]], list[str]]:
    """Read a JSON body into column names, rows and decision ids."""
    try:
        given = _read(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{error}.", todo=f"Send exactly one of {', '.join(FORMS)}.") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidInput(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise InvalidInput("The body is nested too deeply.") from None
    there = [form for form in FORMS if getattr(given, form) is not msgspec.UNSET]
    if len(there) != 1:
        raise InvalidInput(
            f"The body has {' and '.join(there) or 'none of the forms'}.",
            todo=f"Send exactly one of {', '.join(FORMS)}.",
        )
    names, rows = _framed(codec, there[0], getattr(given, there[0]))
    ids = (given.params or {}).get("ids") or []
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise InvalidInput("The parameter 'ids' is no list of texts.")
    return names, rows, ids


def _read(body: bytes) -> _Body:
    """Decode a body. MLflow's client writes the NaN of a frame as it is, which is not JSON: it is read as null."""
    try:
        return _body.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"NaN" not in body:
            raise
        return msgspec.convert(json.loads(body, parse_constant=_constant), _Body)


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is no value of a column")


def _framed(codec: Codec, form: str, given: Any) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    if form == "dataframe_split":
        names = given.columns if given.columns is not None else codec.names
        for k, row in enumerate(given.data):
            if len(row) != len(names):
                raise InvalidInput(f"Row {k} has {len(row)} values for {len(names)} columns.")
        return names, given.data
    if isinstance(given, dict):
        return _columns(given)
    if all(isinstance(row, dict) for row in given):
        # A column that a record leaves out is missing there, as pandas reads it.
        names = list(dict.fromkeys(name for row in given for name in row))
        return names, [[row.get(name) for name in names] for row in given]
    if len(codec.names) == 1 and not any(isinstance(row, list | dict) for row in given):
        return codec.names, [[value] for value in given]
    width = len(codec.names)
    for k, row in enumerate(given):
        if not isinstance(row, list) or len(row) != width:
            raise InvalidInput(
                f"Row {k} of {form!r} is no list of {width} values.",
                todo=f"The columns are {', '.join(codec.names[:20])}.",
            )
    return codec.names, given


def _columns(given: dict[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    """Read ``{"column": [values]}``; a value may stand in a list of its own, as arrays of shape (n, 1) are written."""
    sides: list[list[Any]] = []
    for name, values in given.items():
        side = values if isinstance(values, list) else [values]
        sides.append([v[0] if isinstance(v, list) and len(v) == 1 else v for v in side])
        if len(sides[-1]) != len(sides[0]):
            raise InvalidInput(
                f"The column {name[:80]!r} has {len(sides[-1])} values, others have {len(sides[0])}."
            )
    return list(given), list(zip(*sides, strict=True))


def _csv(codec: Codec, body: bytes) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    """Read CSV with a line of column names, each value by its column's type."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The body is not UTF-8: {error.reason}.") from None
    kinds = {column.name: column.dtype for column in codec.signature.inputs}
    rows: list[Sequence[Any]] = []
    names: list[str] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        names = next(reader, [])
        for line in reader:
            if not line:
                continue
            if len(line) != len(names):
                raise InvalidInput(
                    f"Line {reader.line_num} has {len(line)} values for {len(names)} columns."
                )
            if len(rows) == MAX_ROWS:
                raise InvalidInput(f"There are more than {MAX_ROWS:,} rows in one request.")
            rows.append(
                [
                    _value(kinds.get(name, "string"), value, name, len(rows))
                    for name, value in zip(names, line, strict=True)
                ]
            )
    except csv.Error as error:
        raise InvalidInput(f"The body is not CSV: {error}.") from None
    return names, rows


def _value(dtype: str, given: str, name: str, row: int) -> Any:
    if given in _MISSING:
        return None
    if dtype in {"string", "datetime"}:
        return given
    if dtype == "bool" and given.lower() in {"true", "false"}:
        return given.lower() == "true"
    try:
        # Python alone reads 1_000 as a number.
        return float(given.replace("_", "?"))
    except ValueError:
        raise InvalidInput(
            f"Row {row} has the {name!r} {given[:40]!r}, which is no {dtype}."
        ) from None


def _places(codec: Codec, names: Sequence[str]) -> dict[str, int]:
    """Find each needed column. Columns besides them are ignored, as MLflow's schemas do."""
    places = {name: k for k, name in enumerate(names)}
    if len(places) != len(names):
        for name in (*codec.names, *codec.extra):
            if names.count(name) > 1:
                raise InvalidInput(f"The column {name!r} is there twice.")
    for name in codec.names:
        if name not in places:
            raise InvalidInput(
                f"The column {name!r} is missing.", todo=near_miss(name, names[:100])
            )
    return places


@functools.lru_cache(maxsize=256)
def _row_type(signature: Signature) -> Any:
    kinds: dict[str, Any] = {"bool": bool | float, "string": str, "datetime": str}
    types = [kinds.get(column.dtype, float) | None for column in signature.inputs]
    return list[tuple[tuple(types)]]  # type: ignore[misc]


def _typed(
    codec: Codec, rows: Sequence[Sequence[Any]], places: Mapping[str, int]
) -> list[tuple[Any, ...]]:
    """See that each value has its column's type and is finite. Raises InvalidInput naming row and column."""
    order = [places[name] for name in codec.names]
    try:
        features: list[tuple[Any, ...]] = msgspec.convert(
            [[row[k] for k in order] for row in rows], _row_type(codec.signature)
        )
    except msgspec.ValidationError as error:
        raise InvalidInput(_named(codec, str(error))) from None
    except OverflowError:
        raise InvalidInput("A number is too large for a column.") from None
    return _finite(codec, features)


def _finite(codec: Codec, features: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Refuse infinity and take NaN as missing: JSON has neither, CSV may."""
    odd = False
    for k, row in enumerate(features):
        for name, value in zip(codec.names, row, strict=True):
            if isinstance(value, float) and not -1.8e308 < value < 1.8e308:
                odd = True
                if value == value:  # noqa: PLR0124 - NaN alone differs from itself
                    raise InvalidInput(f"Row {k} has an infinite {name!r}.")
    if not odd:
        return features
    return [
        tuple(None if isinstance(v, float) and v != v else v for v in row)  # noqa: PLR0124
        for row in features
    ]


def _named(codec: Codec, said: str) -> str:
    """Put the column's name where msgspec says ``$[row][place]``."""
    head, _, path = said.partition(" - at `$[")
    row, _, place = path.rstrip("`").partition("][")
    place = place.rstrip("]")
    if not (row.isdigit() and place.isdigit()):
        return f"{said}."
    return f"{head}: row {row}, column {codec.names[int(place)]!r}."


def _units(
    codec: Codec,
    name: str,
    features: Sequence[tuple[Any, ...]],
    rows: Sequence[Sequence[Any]],
    places: Mapping[str, int],
) -> list[str]:
    if name in codec.names:
        place, dtype = codec.names.index(name), codec.dtype(name)
        return [text_of(row[place], dtype) for row in features]
    units: list[str] = []
    for k, row in enumerate(rows):
        value = row[places[name]]
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, str | int | float)
        ):
            raise InvalidInput(f"Row {k} has a {name!r} that is no text and no number.")
        units.append(text_of(value))
    return units


def _times(given: Iterable[Any], name: str) -> list[Time]:
    times: list[Time] = []
    for k, sent in enumerate(given):
        value = sent
        if value is None:
            raise InvalidInput(f"Row {k} has no {name!r}, the time of its decision.")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidInput(f"Row {k} has a {name!r} that is no time.")
        if isinstance(value, str) and value.isascii() and value.isdigit() and 8 < len(value) < 19:
            value = int(value)  # CSV has no numbers of its own; eight digits are a day of ISO 8601
        times.append(event_time(value))
    return times


def _media(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"content-type", JSON).decode("latin-1").split(";")[0].strip().lower()


def route(desk: Desk, call: Call) -> Ask | Reply | None:
    """Answer a path of the protocol, or give the request for the desk; None for a path of somebody else."""
    path = call.path
    if path in {"/ping", "/health"} and call.method == "GET":
        return Reply(200 if desk.ready else 503, b"\n")
    if path == "/version" and call.method == "GET":
        return Reply(200, keepwell.__version__.encode())
    if path == "/invocations":
        if len(desk.endpoints) != 1:
            said = f"There are {len(desk.endpoints)} endpoints here. POST {_ROUTE}NAME/invocations."
            status = 404 if desk.endpoints else 503
            return Reply(
                status, failure(status, said if desk.endpoints else "Nothing is loaded yet.")
            )
        name = next(iter(desk.endpoints))
    elif path.startswith(_ROUTE) and path.endswith("/invocations"):
        name = unquote(path[len(_ROUTE) : -len("/invocations")])
    else:
        return None
    if call.method != "POST":
        return Reply(405, failure(405, f"{call.method} {path[:200]} is not served here. Use POST."))
    problem = _unread(call.headers)
    if problem:
        return Reply(415, failure(415, problem))
    return Ask(
        endpoint=name,
        body=call.body,
        began=call.began,
        protocol=Invocations(),
        headers=call.headers,
    )


def _unread(headers: Mapping[bytes, bytes]) -> str:
    """Say why a content type cannot be read, or nothing."""
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return "A compressed body is not read here."
    if _media(headers) not in {"text/csv", "application/json"}:
        return f"The content type {_media(headers)[:80]!r} is not read here. Send application/json or text/csv."
    for part in headers.get(b"content-type", b"").decode("latin-1").lower().split(";")[1:]:
        key, _, value = part.partition("=")
        if key.strip() == "charset" and value.strip(' "') not in {"utf-8", "utf8"}:
            return "Only UTF-8 is read here."
    return ""
