"""The filter and order language of searches: text in, comparisons out. Stores turn them into SQL.

A filter is comparisons joined by AND. A left side is an attribute (``status``, ``attributes.start_time``) or an
entity and a key (``metrics.loss``, ``params."learning rate"``, ``tags.`mlflow.user```); a right side is a number,
a quoted text or a list of texts. It is the language of MLflow's searches, which has no OR.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from keepwell.core.errors import InvalidInput, near_miss

Entity = Literal["attribute", "metric", "param", "tag", "dataset"]

_ENTITIES: dict[str, Entity] = {
    **dict.fromkeys(("attribute", "attributes", "attr", "run"), "attribute"),
    **dict.fromkeys(("metric", "metrics"), "metric"),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), "param"),
    **dict.fromkeys(("tag", "tags"), "tag"),
    **dict.fromkeys(("dataset", "datasets"), "dataset"),
}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'(?:[^'\\]|\\.|'')*')
    | (?P<name>(?:[A-Za-z_][\w\-/]*|"[^"]*"|`[^`]*`)(?:\.(?:[\w\-/]+|"[^"]*"|`[^`]*`))*)
    | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<operator><=|>=|!=|<>|=|<|>)
    | (?P<mark>[(),])
    )""",
    re.VERBOSE,
)
_PART = re.compile(r'"([^"]*)"|`([^`]*)`|([^.]+)')
LONGEST = 20_000
MOST = 100


class Comparison(msgspec.Struct, frozen=True):
    """One condition. ``value`` is None for IS NULL and IS NOT NULL."""

    entity: Entity
    key: str
    operator: str
    value: str | float | tuple[str, ...] | None


class Order(msgspec.Struct, frozen=True):
    """One key of an order."""

    entity: Entity
    key: str
    descending: bool = False


def _bad(text: str, at: int, wanted: str) -> InvalidInput:
    return InvalidInput(
        f"Expected {wanted} at position {at}, got {text[at : at + 20]!r}.",
        where=f"filter {text[:200]!r}",
        todo="Write for example \"metrics.loss < 0.5 AND params.kind = 'tree'\".",
    )


class _Reader:
    """Walks over the tokens of one text."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise InvalidInput(
                f"The filter has {len(text)} characters; at most {LONGEST} are read."
            )
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise _bad(text, at, "a name, a value or an operator")
            self.tokens.append(
                (found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
            )
            at = found.end()
        self.next = 0

    def peek(self) -> tuple[str, str, int]:
        return (
            self.tokens[self.next] if self.next < len(self.tokens) else ("end", "", len(self.text))
        )

    def take(self, kind: str, wanted: str) -> str:
        found, token, at = self.peek()
        if found != kind:
            raise _bad(self.text, at, wanted)
        self.next += 1
        return token

    def word(self, *words: str) -> bool:
        """Take these words in turn if they come next, whatever their case."""
        ahead = self.tokens[self.next : self.next + len(words)]
        if tuple(t.upper() if kind == "name" else "" for kind, t, _ in ahead) != words:
            return False
        self.next += len(words)
        return True


def _target(name: str) -> tuple[Entity, str]:
    parts = [a or b or c for a, b, c in _PART.findall(name)]
    entity = _ENTITIES.get(parts[0]) if len(parts) > 1 else None
    if entity is None:
        return "attribute", ".".join(parts)
    # What follows the entity is one key, dots and all, once its quotes are off.
    key = name[name.index(".") + 1 :]
    quoted = re.fullmatch(r'"([^"]*)"|`([^`]*)`', key)
    return entity, (quoted[1] or quoted[2] or "") if quoted else key


def _unquote(text: str) -> str:
    return re.sub(r"\\(['\\])|''", lambda m: m[1] or "'", text[1:-1])


def _value(reader: _Reader) -> str | float:
    kind, token, at = reader.peek()
    if kind == "number":
        reader.next += 1
        return float(token)
    if kind == "text":
        reader.next += 1
        return _unquote(token)
    if kind == "name" and token[0] == '"' and token[-1] == '"' and token.count('"') == 2:
        reader.next += 1
        return token[1:-1]
    raise _bad(reader.text, at, "a number or a quoted text")


def _comparison(reader: _Reader) -> Comparison:
    entity, key = _target(reader.take("name", "a name such as metrics.loss"))
    if reader.word("IS", "NOT", "NULL"):
        return Comparison(entity, key, "IS NOT NULL", None)
    if reader.word("IS", "NULL"):
        return Comparison(entity, key, "IS NULL", None)
    for word in ("LIKE", "ILIKE"):
        if reader.word(word):
            return Comparison(entity, key, word, _value(reader))
    for words in (("NOT", "IN"), ("IN",)):
        if reader.word(*words):
            return Comparison(entity, key, " ".join(words), _list(reader))
    operator = reader.take(
        "operator", "an operator (=, !=, <, <=, >, >=, LIKE, ILIKE, IN, IS NULL)"
    )
    return Comparison(entity, key, "!=" if operator == "<>" else operator, _value(reader))


def _list(reader: _Reader) -> tuple[str, ...]:
    at = reader.peek()[2]
    if reader.take("mark", "a list in parentheses") != "(":
        raise _bad(reader.text, at, "(")
    values = []
    while True:
        value = _value(reader)
        values.append(value if isinstance(value, str) else f"{value:g}")
        at = reader.peek()[2]
        mark = reader.take("mark", ", or )")
        if mark == ")":
            return tuple(values)
        if mark != ",":
            raise _bad(reader.text, at, ", or )")


def read_filter(text: str) -> tuple[Comparison, ...]:
    """Read a filter; an empty one has no comparisons. Raises InvalidInput with the place of the fault.

    >>> read_filter("metrics.loss < 0.5 and params.`a b` = 'x'")[1]
    Comparison(entity='param', key='a b', operator='=', value='x')
    """
    reader = _Reader(text)
    found: list[Comparison] = []
    while reader.peek()[0] != "end":
        if found and not reader.word("AND"):
            raise _bad(text, reader.peek()[2], "AND (there is no OR)")
        found.append(_comparison(reader))
    if len(found) > MOST:
        raise InvalidInput(f"The filter has {len(found)} comparisons; at most {MOST} are run.")
    return tuple(found)


def read_order(text: str) -> Order:
    """Read one key of an order, with ASC or DESC behind it. Raises InvalidInput.

    >>> read_order("metrics.loss DESC")
    Order(entity='metric', key='loss', descending=True)
    """
    reader = _Reader(text)
    name = reader.take("name", "a name such as metrics.loss")
    # "run name" is written with a space by some clients.
    if name.lower() == "run" and reader.word("NAME"):
        name = "run_name"
    descending = reader.word("DESC")
    if not descending:
        reader.word("ASC")
    if reader.peek()[0] != "end":
        raise _bad(text, reader.peek()[2], "ASC, DESC or the end")
    entity, key = _target(name)
    return Order(entity, key, descending)


def known_key(key: str, allowed: dict[str, str]) -> str:
    """Translate an attribute to its column. Raises InvalidInput with the nearest name."""
    if key not in allowed:
        raise InvalidInput(f"There is no attribute {key!r}.", todo=near_miss(key, allowed))
    return allowed[key]


def like(pattern: str, text: str, *, fold: bool) -> bool:
    """Tell whether a text fits a LIKE pattern (``%`` any run of characters, ``_`` any one)."""
    expression = "".join(".*" if c == "%" else "." if c == "_" else re.escape(c) for c in pattern)
    flags = re.DOTALL | (re.IGNORECASE if fold else 0)
    return re.fullmatch(expression, text, flags) is not None


def holds(comparison: Comparison, found: str | float | None) -> bool:
    """Judge one comparison against a value in memory; a missing value fits only IS NULL and ``!=``."""
    operator, value = comparison.operator, comparison.value
    if operator in {"IS NULL", "IS NOT NULL"}:
        return (found is None) == (operator == "IS NULL")
    if found is None:
        return operator in {"!=", "NOT IN"}
    if operator in {"IN", "NOT IN"}:
        inside = isinstance(value, tuple) and str(found) in value
        return inside == (operator == "IN")
    if operator in {"LIKE", "ILIKE"}:
        return like(str(value), str(found), fold=operator == "ILIKE")
    if isinstance(found, str) != isinstance(value, str) or isinstance(value, tuple):
        raise InvalidInput(
            f"{comparison.key!r} cannot be compared with {value!r}.",
            todo="Quote texts, and leave numbers bare.",
        )
    left: float | str = found
    right = value if value is not None else ""
    return {
        "=": left == right,
        "!=": left != right,
        "<": left < right,  # type: ignore[operator]
        "<=": left <= right,  # type: ignore[operator]
        ">": left > right,  # type: ignore[operator]
        ">=": left >= right,  # type: ignore[operator]
    }[operator]
