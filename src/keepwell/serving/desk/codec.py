"""Requests into arrays and answers into JSON, by the signature, with errors that name row and column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from keepwell.core.clock import Time, moment
from keepwell.core.errors import InvalidInput, near_miss
from keepwell.core.records.models import Signature

JSON = b"application/json"
MAX_ROWS = 10_000
_TYPES: dict[str, Any] = {
    "float64": float | None,
    "int64": float | None,
    "bool": bool | float | None,
    "string": str | None,
    "datetime": str | None,
}
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""Microseconds of the years 1 to 9999: what ISO 8601 can write and 64 bits can hold."""
_EXACT = 2**53
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError)
"""What decoding raises for bytes that are not JSON: text that is not UTF-8 has an error of its own."""
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")


class Codec:
    """Decodes the rows of one endpoint.

    A row must have every input (null where a value is missing); it may have the endpoint's unit and time
    fields besides, and nothing else: a misspelled column is an error, not a silent missing value.
    """

    def __init__(self, signature: Signature, *, unit: str = "", time: str = "") -> None:
        self.signature = signature
        self.names = signature.names
        self._width = len(self.names)
        self._unit = unit
        self._time = time
        types: list[Any] = [_TYPES[column.dtype] for column in signature.inputs]
        self.extra = tuple(n for n in dict.fromkeys((unit, time)) if n and n not in self.names)
        # The wide type keeps an application free to send numbers or text as its unit.
        types += [str | int | float | None] * len(self.extra)
        # Columns are named by the user's data and need not be Python's identifiers.
        fields: list[Any] = [
            (f"c{i}", kind, msgspec.field(name=name))
            if i < self._width
            else (f"c{i}", kind, msgspec.field(name=name, default=None))
            for i, (name, kind) in enumerate(zip((*self.names, *self.extra), types, strict=True))
        ]
        # Decoded rows are trees and live for one tick: the garbage collector need not look at them.
        row = msgspec.defstruct("Row", fields, kw_only=True, forbid_unknown_fields=True, gc=False)
        single = msgspec.defstruct(
            "Body",
            [
                ("rows", tuple[row, ...], ()),  # type: ignore[valid-type]
                ("row", row | None, None),
                ("ids", tuple[str, ...], ()),
                ("id", str, ""),
                ("probe", int, 0),
            ],
            kw_only=True,
            forbid_unknown_fields=True,
            gc=False,
        )
        self._unit_place = self._place(unit) if unit else -1
        self._unit_dtype = self.dtype(unit)
        self._decode = msgspec.json.Decoder(single).decode
        self.numeric = signature.numeric
        self.packs = all(column.dtype in {"float64", "int64"} for column in signature.inputs)
        """Whether a matrix of numbers says exactly what was sent: true and 1, or text, would not survive it."""

    def decode(self, body: bytes) -> Decoded:
        """Read a request body. Raises InvalidInput."""
        decoded = self.read(body)
        decoded.matrix = self.matrix(decoded.features or [])
        return decoded

    def read(self, body: bytes) -> Decoded:
        """Read a request body, but leave its matrix to be made with those of other requests. Raises InvalidInput."""
        try:
            given: Any = self._decode(body)
        except msgspec.ValidationError as error:
            raise self._explained(str(error)) from None
        except NOT_JSON as error:
            raise InvalidInput(
                f"The body is not JSON: {error}.", todo='Send {"rows": [{...}]}.'
            ) from None
        except RecursionError:
            raise InvalidInput("The body is nested too deeply.") from None
        rows = given.rows
        ids = given.ids
        if given.row is not None:
            if rows:
                raise InvalidInput("The body has both 'row' and 'rows'.", todo="Send one of them.")
            rows = (given.row,)
            ids = (given.id,) if given.id else ()
        if not rows:
            raise InvalidInput(
                "The body has no rows.", todo='Send {"rows": [{...}]} or {"row": {...}}.'
            )
        if len(rows) > MAX_ROWS:
            raise InvalidInput(f"{len(rows):,} rows are more than {MAX_ROWS:,} in one request.")
        if ids and len(ids) != len(rows):
            raise InvalidInput(f"There are {len(ids)} ids for {len(rows)} rows.")
        values = [_astuple(row) for row in rows]
        return Decoded(
            [row[: self._width] for row in values] if self.extra else values,
            None,
            ids,
            self._units(values) if self._unit else (),
            self._times(values) if self._time and not given.probe else (),
            given.probe,
        )

    def matrix(self, features: Sequence[tuple[Any, ...]]) -> npt.NDArray[Any]:
        """Give n rows of features as a predictor takes them, shape (n, d)."""
        n, width = len(features), self._width
        if not self.numeric:
            return np.array(features, dtype=object).reshape(n, width)
        # fromiter reads None as NaN, and is the fastest of numpy's ways in.
        numbers = np.fromiter(chain.from_iterable(features), np.float64, n * width)
        return numbers.reshape(n, width)

    def dtype(self, name: str) -> str:
        """Give the type of a column; nothing for a field that is none."""
        return self.signature.inputs[self.names.index(name)].dtype if name in self.names else ""

    def _units(self, values: list[tuple[Any, ...]]) -> list[str]:
        place = self._unit_place
        # Most units are texts already, and a call a row is a tenth of what the whole row may cost.
        return [
            unit if type(unit := row[place]) is str else text_of(unit, self._unit_dtype)
            for row in values
        ]

    def _place(self, name: str) -> int:
        return (
            self.names.index(name) if name in self.names else self._width + self.extra.index(name)
        )

    def _times(self, values: list[tuple[Any, ...]]) -> list[Time]:
        place = self._place(self._time)
        times: list[Time] = []
        for i, row in enumerate(values):
            given = row[place]
            if given is None:
                raise InvalidInput(f"Row {i} has no {self._time!r}, the time of its decision.")
            times.append(event_time(given))
        return times

    def _explained(self, text: str) -> InvalidInput:
        unknown = _UNKNOWN.search(text)
        if unknown:
            allowed = (
                [*self.names, *self.extra]
                if "rows" in text or ".row" in text
                else ["rows", "row", "ids", "id"]
            )
            return InvalidInput(f"{text}.", todo=near_miss(unknown[1], allowed))
        return InvalidInput(
            f"{text}.", todo="The endpoint's columns are listed at GET /v1/endpoints."
        )


def event_time(given: str | float) -> Time:
    """Read a time as applications send it: ISO 8601 or microseconds since 1970. Raises InvalidInput."""
    read = moment(given) if isinstance(given, str) else given
    if not EARLIEST <= read <= LATEST:
        raise InvalidInput(
            "The time is outside the years 1 to 9999.",
            todo="Send ISO 8601, or microseconds since 1970-01-01 in UTC.",
        )
    return int(read)


def text_of(value: Any, dtype: str = "") -> str:
    """Write a value as the text that units and cohorts go by: the same text whatever protocol it came by.

    ``dtype`` is that of its column. Empty where the value is missing.

    >>> text_of(7.0), text_of(7), text_of(True), text_of(1.0, "bool"), text_of(0.5), text_of("7.0")
    ('7', '7', 'true', 'true', '0.5', '7.0')
    """
    if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return ""
    if isinstance(value, str):
        return value
    if value in {0, 1} and (dtype == "bool" or isinstance(value, bool)):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))  # pandas makes decimals of whole numbers where one is missing
    return str(value)


class Decoded(msgspec.Struct, gc=False):
    """What one request asks: n rows, and what names them."""

    features: list[tuple[Any, ...]] | None
    """As they were sent; None where the matrix says it all: numbers only, NaN where a value is missing."""
    matrix: npt.NDArray[Any] | None
    """Shape (n, d), as a predictor takes them; None: to be made of ``features``, with those of other requests."""
    ids: Sequence[str] = ()
    """Empty: the gateway makes them."""
    units: Sequence[str] = ()
    times: Sequence[Time] = ()
    probe: int = 0

    def __len__(self) -> int:
        return len(self.matrix) if self.features is None else len(self.features)  # type: ignore[arg-type]


_astuple = msgspec.structs.astuple
_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Encode an answer as JSON."""
    return _encoder.encode(value)


def encode_error(message: str) -> bytes:
    """Encode an error in the form of the Open Inference Protocol."""
    return _encoder.encode({"error": message})
