"""Charts as inline SVG, drawn on the server: lines with intervals, limits, and marks where something happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from markupsafe import Markup, escape

from keepwell.core.clock import DAY, Time, iso

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 180, 56, 22, 10
LETTER, LINE = 6.6, 16
"""About how wide a letter of a name is, and how high a line of them."""

_GRID = Markup(
    '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
    '<text class="tick" x="{}" y="{:.1f}">{}</text>'
)
_MARK = Markup(
    '<line class="mark {}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
    '<text class="mark {}" x="{:.1f}" y="{}">{}</text>'
)


class Point(msgspec.Struct, frozen=True):
    """One value at one time, with its interval if it has one; ``alarm`` draws it as a warning."""

    at: Time
    value: float
    low: float | None = None
    high: float | None = None
    alarm: bool = False


class Mark(msgspec.Struct, frozen=True):
    """A vertical line with a word: an alert, a renewal."""

    at: Time
    word: str
    kind: str


def line_chart(
    points: Sequence[Point],
    *,
    label: str,
    reference: float | None = None,
    marks: Sequence[Mark] = (),
) -> Markup:
    """Draw points over time; an empty text where there are none."""
    if not points:
        return Markup("")
    times = [p.at for p in points] + [m.at for m in marks]
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    values += [reference] if reference is not None else []
    first, last = min(times), max(*times, min(times) + 1)
    bottom, top = min(values), max(values)
    shown = _digits(last - first)
    pad = (top - bottom) * 0.08 or abs(top) * 0.1 or 1.0
    bottom, top = bottom - pad, top + pad

    def x(at: Time) -> float:
        return LEFT + (WIDTH - LEFT - 8) * (at - first) / (last - first)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - bottom)

    out: list[Any] = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, label
        )
    ]
    banded = [p for p in points if p.low is not None and p.high is not None]
    if len(banded) > 1:
        upper = " ".join(f"{x(p.at):.1f},{y(p.high or 0):.1f}" for p in banded)
        lower = " ".join(f"{x(p.at):.1f},{y(p.low or 0):.1f}" for p in reversed(banded))
        out.append(Markup('<polygon class="band" points="{} {}"/>').format(upper, lower))
    for p in banded if len(banded) == 1 else ():
        out.append(
            Markup('<rect class="band" x="{:.1f}" y="{:.1f}" width="8" height="{:.1f}"/>').format(
                x(p.at) - 4, y(p.high or 0), y(p.low or 0) - y(p.high or 0)
            )
        )
    for value in (bottom + pad, (bottom + top) / 2, top - pad):
        out.append(
            _GRID.format(LEFT, WIDTH - 8, y(value), y(value), LEFT - 6, y(value) + 4, _short(value))
        )
    if reference is not None:
        out.append(
            Markup('<line class="reference" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, WIDTH - 8, y(reference), y(reference)
            )
        )
    path = " ".join(f"{x(p.at):.1f},{y(p.value):.1f}" for p in points)
    out.append(Markup('<polyline class="line" points="{}"/>').format(path))
    for p in points:
        out.append(
            Markup(
                '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}: {}</title></circle>'
            ).format(
                "dot alarm" if p.alarm else "dot",
                x(p.at),
                y(p.value),
                4.5 if p.alarm else 2.5,
                iso(p.at)[:shown],
                f"{p.value:.4g}",
            )
        )
    for m in marks:
        out.append(
            _MARK.format(
                m.kind,
                x(m.at),
                x(m.at),
                TOP,
                HEIGHT - BOTTOM,
                m.kind,
                x(m.at) + 3,
                TOP + (9 if m.kind == "alert" else 21),
                m.word,
            )
        )
    out.append(
        Markup('<text class="when" x="{}" y="{}">{}</text>').format(
            LEFT, HEIGHT - 6, iso(first)[:shown]
        )
    )
    out.append(
        Markup('<text class="when end" x="{}" y="{}">{}</text>').format(
            WIDTH - 8, HEIGHT - 6, iso(last)[:shown]
        )
    )
    out.append(Markup("</svg>"))
    return Markup("").join(escape(part) for part in out)


def _digits(span: Time) -> int:
    """How much of a moment is written: its day, its minute, or its second."""
    return 10 if span > 7 * DAY else 16 if span > DAY // 24 else 19


def share_chart(
    moments: Sequence[tuple[Time, Mapping[str, float]]], *, label: str, until: Time
) -> Markup:
    """Draw who had which share of the traffic from which moment on, one above the other, in steps."""
    if not moments:
        return Markup("")
    first = moments[0][0]
    last = max(until, first + 1)
    names = list(dict.fromkeys(name for _, shares in moments for name in shares))
    shown = _digits(last - first)

    def x(at: Time) -> float:
        return LEFT + (WIDTH - LEFT - 8) * (min(max(at, first), last) - first) / (last - first)

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    out: list[Any] = []
    ends = [at for at, _ in moments[1:]] + [last]
    for (begin, shares), end in zip(moments, ends, strict=True):
        low = 0.0
        for place, name in enumerate(names):
            share = shares.get(name, 0.0)
            if share > 0:
                out.append(
                    Markup(
                        '<rect class="share share-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                        "<title>{}: {:.2%} from {}</title></rect>"
                    ).format(
                        place % 6,
                        x(begin),
                        y(low + share),
                        max(x(end) - x(begin), 0.5),
                        y(low) - y(low + share),
                        name,
                        share,
                        iso(begin)[:shown],
                    )
                )
            low += share
    for value in (0.0, 0.5, 1.0):
        out.append(
            _GRID.format(
                LEFT, WIDTH - 8, y(value), y(value), LEFT - 6, y(value) + 4, f"{value:.0%}"
            )
        )
    # The time stands at the right of the first line: what is left of it is for names, and more go below.
    left, line, room = float(LEFT), 0, WIDTH - 8 - 250
    for place, name in enumerate(names):
        wide = 24 + LETTER * len(name)
        if left + wide > room and left > LEFT:
            left, line, room = float(LEFT), line + 1, WIDTH - 8
        out.append(
            Markup(
                '<rect class="share share-{}" x="{:.0f}" y="{}" width="9" height="9"/>'
                '<text class="when" x="{:.0f}" y="{}">{}</text>'
            ).format(
                place % 6,
                left,
                HEIGHT - 14 + LINE * line,
                left + 13,
                HEIGHT - 6 + LINE * line,
                name,
            )
        )
        left += wide
    out.append(
        Markup('<text class="when end" x="{}" y="{}">{} to {}</text>').format(
            WIDTH - 8, HEIGHT - 6, iso(first)[:shown], iso(last)[:shown]
        )
    )
    frame = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT + LINE * line, label
    )
    return Markup("").join(escape(part) for part in (frame, *out, Markup("</svg>")))


def _short(value: float) -> str:
    """Write a tick in at most six characters: ``31k`` rather than ``3.11e+04``."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e3 else f"{value:.3g}"
