"""Prometheus' text format: families of samples, each with its help, its type and its escaped labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Family(msgspec.Struct):
    """Everything of one name. ``lines`` are its samples, written already."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    lines: list[str] = []

    def add(self, value: float, suffix: str = "", **labels: object) -> None:
        """Add one sample."""
        self.lines.append(f"{self.name}{suffix}{_written(labels)} {_number(value)}")

    def add_histogram(
        self, counts: Sequence[int], bounds: Iterable[float], total: float, **labels: object
    ) -> None:
        """Add one histogram: ``counts`` a bucket, the last one without a bound, and the sum of what was observed."""
        running = 0
        for bound, count in zip(bounds, counts, strict=False):
            running += count
            self.add(running, "_bucket", **labels, le=f"{bound:g}")
        running += counts[-1]
        self.add(running, "_bucket", **labels, le="+Inf")
        self.add(total, "_sum", **labels)
        self.add(running, "_count", **labels)


def _written(labels: dict[str, object]) -> str:
    if not labels:
        return ""
    pairs = ",".join(f'{name}="{str(of).translate(_ESCAPED)}"' for name, of in labels.items())
    return f"{{{pairs}}}"


def _number(value: float) -> str:
    return repr(value)


def render(families: Iterable[Family]) -> str:
    """Write families one after the other; one without samples still says that it exists."""
    lines: list[str] = []
    for family in families:
        told = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {family.name} {told}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += family.lines
    return "\n".join(lines) + "\n"
