"""From the filter language to SQL over tracking's tables, with an order and a page."""

# ruff: noqa: S608 - what is put into statements is our own text; every value is a parameter

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keepwell.adapters.tracking.tables import PREFIX
from keepwell.core.errors import InvalidInput
from keepwell.core.filters import Comparison, Order, known_key, read_filter, read_order

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN_COLUMNS = {
    "run_id": "r.id",
    "run_uuid": "r.id",
    "id": "r.id",
    "run_name": "r.name",
    "name": "r.name",
    "user_id": "r.user_name",
    "status": "r.status",
    "artifact_uri": "r.artifacts",
    "start_time": "r.started",
    "created": "r.started",
    "Created": "r.started",
    "end_time": "r.ended",
    "experiment_id": "r.experiment",
}
EXPERIMENT_COLUMNS = {
    "name": "e.name",
    "experiment_id": "e.number",
    "creation_time": "e.created",
    "last_update_time": "e.updated",
}
_TIMES = {"r.started", "r.ended", "e.created", "e.updated"}
_NUMBERS = _TIMES | {"e.number", "r.experiment"}
_SIGNS = {"=", "!=", "<", "<=", ">", ">="}


class Query:
    """A statement under construction: its parts, and their values in the order of their marks."""

    def __init__(self) -> None:
        self.joins: list[str] = []
        self.where: list[str] = []
        self.order: list[str] = []
        self._join_values: list[Any] = []
        self._where_values: list[Any] = []
        self._order_values: list[Any] = []

    def join(self, sql: str, *values: object) -> None:
        """Add a join."""
        self.joins.append(sql)
        self._join_values += values

    def require(self, sql: str, *values: object) -> None:
        """Add a condition."""
        self.where.append(sql)
        self._where_values += values

    def tail(self) -> str:
        """Give everything from the joins on."""
        where = f" WHERE {' AND '.join(self.where)}" if self.where else ""
        order = f" ORDER BY {', '.join(self.order)}" if self.order else ""
        return f"{' '.join(self.joins)}{where}{order}"

    def values(self) -> list[Any]:
        """Give the values in the order of their marks."""
        return [*self._join_values, *self._where_values]


def text_condition(column: str, comparison: Comparison, *, sqlite: bool) -> tuple[str, list[Any]]:
    """Compare a text column. Raises InvalidInput for an operator that texts do not have."""
    operator, value = comparison.operator, comparison.value
    if operator in {"IS NULL", "IS NOT NULL"}:
        return f"{column} {operator}", []
    if isinstance(value, tuple):
        return f"{column} {operator} ({','.join('?' * len(value))})", list(value)
    if not isinstance(value, str):
        raise InvalidInput(
            f"{comparison.key!r} is a text and cannot be compared with {value!r}.",
            todo="Quote the value.",
        )
    if operator == "LIKE":
        # SQLite's LIKE folds ASCII case; GLOB does not, and takes other wildcards.
        if sqlite:
            return f"{column} GLOB ?", [_glob(value)]
        return f"{column} LIKE ? ESCAPE ''", [value]
    if operator == "ILIKE":
        return f"lower({column}) LIKE lower(?){'' if sqlite else _no_escape}", [value]
    if operator not in {"=", "!="}:
        raise InvalidInput(
            f"{comparison.key!r} is a text and has no {operator!r}.",
            todo="Use =, !=, LIKE, ILIKE, IN, NOT IN, IS NULL or IS NOT NULL.",
        )
    return f"{column} {operator} ?", [value]


_no_escape = " ESCAPE ''"


def _glob(pattern: str) -> str:
    special = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(special.get(c, c) for c in pattern)


def _number(comparison: Comparison) -> float | int:
    value = comparison.value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if not isinstance(value, int | float) or comparison.operator not in _SIGNS:
        raise InvalidInput(
            f"{comparison.key!r} is a number: {comparison.operator} {comparison.value!r} does not fit.",
            todo="Use =, !=, <, <=, > or >= with a bare number.",
        )
    return value


def _attribute(query: Query, c: Comparison, columns: dict[str, str], *, sqlite: bool) -> None:
    column = known_key(c.key, columns)
    if column in _NUMBERS and c.operator in {"IN", "NOT IN"} and isinstance(c.value, tuple):
        try:
            wanted = [int(v) for v in c.value]
        except ValueError as error:
            raise InvalidInput(f"{c.key!r} is a number.", todo="List numbers.") from error
        query.require(f"{column} {c.operator} ({','.join('?' * len(wanted))})", *wanted)
    elif column in _NUMBERS:
        number = _number(c)
        query.require(f"{column} {c.operator} ?", number * 1000 if column in _TIMES else number)
    else:
        condition, values = text_condition(column, c, sqlite=sqlite)
        query.require(condition, *values)


def _pair(query: Query, c: Comparison, table: str, owner: str, *, at: int, sqlite: bool) -> None:
    """Compare the value under a key: a join by primary key, or by value where the value is given."""
    link = f"{owner} AND p{at}.key = ?"
    column = table.rpartition(".")[2]
    if c.operator == "IS NULL":
        query.require(f"NOT EXISTS (SELECT 1 FROM {table} p{at} WHERE p{at}.{link})", c.key)
        return
    query.join(f"JOIN {column} p{at} ON p{at}.{link}", c.key)
    if c.operator == "IS NOT NULL":
        return
    condition, values = text_condition(f"p{at}.value", c, sqlite=sqlite)
    if c.operator == "=":
        # The index holds a prefix; the whole value is compared as well.
        query.require(f"substr(p{at}.value,1,{PREFIX}) = ?", str(c.value)[:PREFIX])
    query.require(condition, *values)


def _metric(query: Query, c: Comparison, at: int) -> None:
    if c.operator in {"IS NULL", "IS NOT NULL"}:
        query.require(
            f"{'NOT ' if c.operator == 'IS NULL' else ''}EXISTS "
            "(SELECT 1 FROM tracking_latest l WHERE l.run = r.number AND l.key = ?)",
            c.key,
        )
        return
    number = _number(c)
    query.join(f"JOIN tracking_latest m{at} ON m{at}.run = r.number AND m{at}.key = ?", c.key)
    query.require(f"m{at}.is_nan = 0 AND m{at}.value {c.operator} ?", number)


def _dataset(query: Query, c: Comparison, at: int, *, sqlite: bool) -> None:
    columns = {"name": f"d{at}.name", "digest": f"d{at}.digest", "context": f"i{at}.context"}
    condition, values = text_condition(known_key(c.key, columns), c, sqlite=sqlite)
    query.require(
        f"EXISTS (SELECT 1 FROM tracking_inputs i{at} JOIN tracking_datasets d{at} "
        f"ON d{at}.number = i{at}.dataset WHERE i{at}.run = r.number AND {condition})",
        *values,
    )


def runs_query(filter: str, order: Sequence[str], *, sqlite: bool) -> Query:
    """Compile a search of runs, as joins and conditions on ``tracking_runs r``. Raises InvalidInput."""
    query = Query()
    compared: dict[str, int] = {}
    for at, c in enumerate(read_filter(filter)):
        if c.entity == "attribute":
            _attribute(query, c, RUN_COLUMNS, sqlite=sqlite)
        elif c.entity == "metric":
            _metric(query, c, at)
            if c.operator in _SIGNS:
                compared.setdefault(c.key, at)
        elif c.entity == "dataset":
            _dataset(query, c, at, sqlite=sqlite)
        else:
            table = "tracking_params" if c.entity == "param" else "tracking_tags"
            _pair(query, c, table, "run = r.number", at=at, sqlite=sqlite)
    seen = set()
    for at, text in enumerate(order):
        one = read_order(text)
        if (one.entity, one.key) in seen:
            raise InvalidInput(f"The order names {one.key!r} twice.")
        seen.add((one.entity, one.key))
        _order(query, one, at, compared)
    if not seen & {("attribute", "start_time"), ("attribute", "created")}:
        query.order.append("r.started DESC")
    query.order.append("r.id")
    return query


def _order(query: Query, one: Order, at: int, compared: dict[str, int]) -> None:
    direction = " DESC" if one.descending else ""
    if one.entity == "attribute":
        column = known_key(one.key, RUN_COLUMNS)
        query.order += [f"{column} IS NULL", f"{column}{direction}"]
    elif one.entity == "metric" and one.key in compared:
        # The filter has joined this metric already, and let only numbers pass.
        query.order.append(f"m{compared[one.key]}.value{direction}")
    elif one.entity == "metric":
        query.join(
            f"LEFT JOIN tracking_latest o{at} ON o{at}.run = r.number AND o{at}.key = ?", one.key
        )
        # Numbers, then what is not a number, then runs without the metric; whichever the direction.
        query.order += [f"coalesce(o{at}.is_nan, 2)", f"o{at}.value{direction}"]
    elif one.entity in {"param", "tag"}:
        table = "tracking_params" if one.entity == "param" else "tracking_tags"
        query.join(f"LEFT JOIN {table} o{at} ON o{at}.run = r.number AND o{at}.key = ?", one.key)
        query.order += [f"o{at}.value IS NULL", f"o{at}.value{direction}"]
    else:
        raise InvalidInput(
            f"Runs cannot be ordered by {one.entity}.",
            todo="Order by attribute, metric, param or tag.",
        )


def experiments_query(filter: str, order: Sequence[str], *, sqlite: bool) -> Query:
    """Compile a search of experiments, on ``tracking_experiments e``. Raises InvalidInput."""
    query = Query()
    for at, c in enumerate(read_filter(filter)):
        if c.entity == "attribute":
            _attribute(query, c, EXPERIMENT_COLUMNS, sqlite=sqlite)
        elif c.entity == "tag":
            _pair(
                query, c, "tracking_experiment_tags", "experiment = e.number", at=at, sqlite=sqlite
            )
        else:
            raise InvalidInput(
                f"Experiments have no {c.entity}.", todo="Compare attributes and tags."
            )
    for text in order or ("creation_time DESC",):
        one = read_order(text)
        column = known_key(one.key, EXPERIMENT_COLUMNS)
        query.order.append(f"{column}{' DESC' if one.descending else ''}")
    query.order.append("e.number DESC")
    return query
