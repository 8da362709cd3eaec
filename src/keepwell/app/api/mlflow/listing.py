"""Searches over the store's records: what the store can compare goes to it, the rest is judged here."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, TypeVar

from keepwell.core.errors import InvalidInput
from keepwell.core.filters import Comparison, holds, known_key, read_filter, read_order
from keepwell.core.records.models import Model, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepwell.core.ports.store import Reader

M = TypeVar("M", Model, ModelVersion)
_TIMES = {"created", "updated"}


def page_of(
    kind: type[M],
    store: Reader,
    *,
    columns: Mapping[str, str],
    filter: str,
    order: Sequence[str],
    limit: int,
    token: str,
) -> tuple[list[M], str]:
    """Find records by MLflow's filter language, and give the token of the next page. Raises InvalidInput."""
    where: dict[str, object] = {}
    rest: list[tuple[Comparison, str]] = []
    for c in read_filter(filter):
        if c.entity == "tag":
            rest.append((c, ""))
            continue
        if c.entity != "attribute":
            raise InvalidInput(f"There is no {c.entity} here.", todo="Compare attributes and tags.")
        column = known_key(c.key, dict(columns))
        if (
            c.operator in {"=", "IN"}
            and column not in _TIMES
            and column != "version"
            and column not in where
            and isinstance(c.value, str | tuple)
        ):
            where[column] = c.value
        else:
            rest.append((c, column))
    found = store.find(kind, where, order=[_order(text, columns) for text in order])
    fitting = [one for one in found if all(holds(c, _value(one, c, column)) for c, column in rest)]
    offset = _offset(token)
    more = len(fitting) > offset + limit
    following = base64.urlsafe_b64encode(str(offset + limit).encode()).decode() if more else ""
    return fitting[offset : offset + limit], following


def _order(text: str, columns: Mapping[str, str]) -> str:
    one = read_order(text)
    return f"{'-' if one.descending else ''}{known_key(one.key, dict(columns))}"


def _value(one: Model | ModelVersion, c: Comparison, column: str) -> str | float | None:
    if not column:
        return one.tags.get(c.key)
    value: str | float | None = getattr(one, column)
    return value // 1000 if column in _TIMES and isinstance(value, int) else value


def _offset(token: str) -> int:
    try:
        offset = int(base64.urlsafe_b64decode(token)) if token else 0
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(
            "The page token cannot be read.", todo="Begin again without one."
        ) from error
    return max(offset, 0)
