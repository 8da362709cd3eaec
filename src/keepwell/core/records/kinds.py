"""The list of all kinds of records, for those who keep, check or copy every one of them."""

from __future__ import annotations

import importlib
import pkgutil

from keepwell.core import records
from keepwell.core.records.base import Record


def record_kinds() -> list[type[Record]]:
    """List every class of record that has a table, in the order of the table's name."""
    for module in pkgutil.iter_modules(records.__path__):
        importlib.import_module(f"{records.__name__}.{module.name}")
    found: list[type[Record]] = []
    waiting = [Record]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.TABLE and kind.__module__.startswith(f"{records.__name__}."):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.TABLE)
