"""Charts as inline SVG: numbers in, markup out. Colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH, NARROW = 720, 360
_TOP, _BOTTOM = 28, 40
_APART = 30
"""Points between two names of contexts that can be read apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One piece of a stacked bar."""

    css: str
    label: str
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve: points in rising order of x, with an optional band of (low, high) per point."""

    css: str
    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


def bar(parts: Sequence[Part], full: float, limit: float, text: Callable[[float], str]) -> str:
    """A stacked bar over `full`, with a mark at `limit` where the parts go beyond it."""
    height, scale = 30, WIDTH / full if full > 0 else 0.0
    out, x = [], 0.0
    for part in parts:
        wide = max(part.size, 0.0) * scale
        if wide <= 0:
            continue
        title = f"<title>{escape(part.label)}: {escape(text(part.size))}</title>"
        # A gap of one unit keeps neighbours apart without relying on colour.
        shown = max(wide - 1, 0.75)
        out.append(
            f'<rect class="{part.css}" x="{x:.2f}" y="0" width="{shown:.2f}" height="{height}">'
            f"{title}</rect>"
        )
        if wide > 74:
            out.append(
                f'<text class="in {part.css}-in" x="{x + wide / 2:.2f}" y="{height / 2 + 4}">'
                f"{escape(text(part.size))}</text>"
            )
        x += wide
    if limit < full:
        at = limit * scale
        out.append(f'<line class="limit" x1="{at:.2f}" x2="{at:.2f}" y1="-3" y2="{height + 3}"/>')
    label = ", ".join(f"{part.label} {text(part.size)}" for part in parts if part.size > 0)
    return _svg("bar", f"0 -4 {WIDTH} {height + 8}", label, out)


def _svg(css: str, box: str, label: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="{css}" viewBox="{box}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def ticks(highest: float, most: int = 5) -> list[float]:
    """Round numbers from zero to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= raw * 0.999)
    return [step * i for i in range(math.ceil(highest / step - 0.001) + 1)]


def curves(
    lines: Sequence[Line],
    *,
    label: str,
    unit: str,
    limit: float | None = None,
    limit_label: str = "",
    here: float | None = None,
) -> str:
    """Curves over context length, whose axis doubles from tick to tick.

    Two pictures, of which a page shows the one whose letters are neither tiny nor huge there: class
    `wide` for a desk, `narrow` for a phone.

    Args:
        lines: what to draw; each has at least one point.
        label: what the picture shows, for those who cannot see it.
        unit: of the vertical axis.
        limit: a horizontal line that should not be crossed.
        limit_label: its name.
        here: the context that the plan is for.
    """
    return "".join(
        _curves(size, lines, label, unit, limit, limit_label, here)
        for size in (
            _Size("wide", WIDTH, 284, left=64, right=24),
            _Size("narrow", NARROW, 250, left=44, right=16),
        )
    )


class _Size(NamedTuple):
    css: str
    width: int
    height: int
    left: int
    right: int


def _curves(
    size: _Size,
    lines: Sequence[Line],
    label: str,
    unit: str,
    limit: float | None,
    limit_label: str,
    here: float | None,
) -> str:
    css, width, height, left, right = size
    every = sorted({x for line in lines for x, _ in line.points})
    first, last = math.log2(every[0]), math.log2(every[-1])
    highest = max(
        [y for line in lines for _, y in line.points]
        + [high for line in lines for _, high in line.band]
        + ([limit] if limit is not None else [])
    )
    marks = ticks(highest)
    top = marks[-1]

    def across(x: float) -> float:
        share = (math.log2(x) - first) / (last - first) if last > first else 0.5
        return left + share * (width - left - right)

    def down(y: float) -> float:
        return _TOP + (1 - y / top) * (height - _TOP - _BOTTOM)

    out = []
    for mark in marks:
        y = down(mark)
        out.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        out.append(f'<text class="axis end" x="{left - 8}" y="{y + 4:.1f}">{mark:g}</text>')
    # The plan's own context is named, and no other so close that the two could not be read.
    out.extend(
        f'<text class="axis mid" x="{across(x):.1f}" y="{height - 20}">{tokens(x)}</text>'
        for x in every
        if here is None or x == here or abs(across(x) - across(here)) >= _APART
    )
    out.append(
        f'<text class="axis mid name" x="{width / 2}" y="{height - 3}">context, tokens</text>'
    )
    out.append(f'<text class="axis" x="2" y="12">{escape(unit)}</text>')
    if here is not None and every[0] <= here <= every[-1]:
        x = across(here)
        out.append(
            f'<line class="here" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        )
    if limit is not None:
        y = down(limit)
        out.append(
            f'<line class="limit" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis" x="{left + 6}" y="{y - 5:.1f}">{escape(limit_label)}</text>'
        )
    for line in lines:
        out.extend(_curve(line, across, down, unit))
    return _svg(css, f"0 0 {width} {height}", label, out)


def _curve(
    line: Line, across: Callable[[float], float], down: Callable[[float], float], unit: str
) -> list[str]:
    out = []
    if line.band:
        upper = [(x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
        lower = [(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
        ring = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in [*upper, *lower[::-1]])
        out.append(f'<polygon class="band {line.css}" points="{ring}"/>')
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
    out.append(f'<polyline class="curve {line.css}" points="{path}"/>')
    for x, y in line.points:
        out.append(
            f'<circle class="dot {line.css}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5">'
            f"<title>{escape(line.label)}, {int(x)} tokens: {y:.3g} {escape(unit)}</title></circle>"
        )
    return out


def tokens(count: float) -> str:
    """A number of tokens as an axis says it: 4k, 128k, 1M."""
    if count >= 2**20:
        return f"{count / 2**20:g}M"
    return f"{count / 1024:.3g}k" if count >= 1024 else f"{count:g}"
