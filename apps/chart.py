"""One small line chart without a browser: as text for a terminal, as SVG or PNG for a file.

The vertical axis is logarithmic where all values are positive and span more than a factor of ten. NaN is left out.
Room: apps. Pure, but for the file that `save` writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WIDE, _HIGH, _MARGIN = 640, 360, 64


@dataclass(frozen=True)
class Line:
    """What is drawn: `points` (x, y) ascending in x, finite."""

    points: tuple[tuple[float, float], ...]
    logarithmic: bool

    def places(self, width: float, height: float) -> list[tuple[float, float]]:
        """The points in a box whose origin is at the lower left."""
        xs, ys = [x for x, _ in self.points], [self._scaled(y) for _, y in self.points]
        return [(_part(x, xs) * width, _part(self._scaled(y), ys) * height) for x, y in self.points]

    def _scaled(self, y: float) -> float:
        return math.log10(y) if self.logarithmic else y


def _part(value: float, among: Sequence[float]) -> float:
    low, high = min(among), max(among)
    return (value - low) / (high - low) if high > low else 0.5


def line(points: Sequence[tuple[float, float]]) -> Line | None:
    """Return the line through those of `points` that are finite; None where they are fewer than two."""
    found = tuple(sorted((float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)))
    if len(found) < 2:
        return None
    ys = [y for _, y in found]
    return Line(found, min(ys) > 0 and max(ys) > 10 * min(ys))


def text(drawn: Line, *, width: int = 60, height: int = 10) -> list[str]:
    """Return the chart as lines of text, `width` by `height` characters beside its labels."""
    rows = [[" "] * width for _ in range(height)]
    places = [(round(x), round(y)) for x, y in drawn.places(width - 1, height - 1)]
    for (x, y), (to_x, to_y) in zip(places, [*places[1:], places[-1]], strict=True):
        for column in range(x, to_x):
            between = y + (to_y - y) * (column - x) / (to_x - x)
            rows[round(between)][column] = "."
    for x, y in places:
        rows[y][x] = "*"
    ys, xs = [y for _, y in drawn.points], [x for x, _ in drawn.points]
    labels = [f"{max(ys):.3g}", *[""] * (height - 2), f"{min(ys):.3g}"]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} |{''.join(row).rstrip()}" for label, row in zip(labels, rows[::-1], strict=True)]
    ends = f"{xs[0]:g}", f"{xs[-1]:g}"
    return [
        *lines,
        " " * margin + " +" + "-" * width,
        " " * (margin + 2) + ends[0] + ends[1].rjust(width - len(ends[0])),
    ]


def save(drawn: Line, path: Path, *, title: str, unit: str) -> None:
    """Write the chart to `path`, as its ending says: .svg or .png. Raise UsageError for another, or if it exists."""
    if path.exists():
        raise UsageError(f"{path} exists; nothing was overwritten: choose another file", path=path)
    if path.suffix == ".svg":
        path.write_text(_svg(drawn, title, unit), encoding="utf-8")
    elif path.suffix == ".png":
        _png(drawn, path, title, unit)
    else:
        raise UsageError(f"{path}: a chart is written as .svg or .png", path=path)


def _box(drawn: Line) -> list[tuple[float, float]]:
    inner = drawn.places(_WIDE - 2 * _MARGIN, _HIGH - 2 * _MARGIN)
    return [(_MARGIN + x, _HIGH - _MARGIN - y) for x, y in inner]


def _labels(drawn: Line, title: str, unit: str) -> list[tuple[float, float, str]]:
    ys, xs = [y for _, y in drawn.points], [x for x, _ in drawn.points]
    scale = " (logarithmic)" if drawn.logarithmic else ""
    right, low = _WIDE - _MARGIN, _HIGH - _MARGIN
    return [
        (_MARGIN, 20, title),
        (_MARGIN, 40, unit + scale),
        (4, _MARGIN, f"{max(ys):.3g}"),
        (4, low, f"{min(ys):.3g}"),
        (_MARGIN, low + 20, f"{xs[0]:g}"),
        (right - 24, low + 20, f"{xs[-1]:g}"),
        (_WIDE / 2, low + 40, "step"),
    ]


def _svg(drawn: Line, title: str, unit: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _box(drawn))
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in _box(drawn))
    words = "".join(f'<text x="{x:g}" y="{y:g}">{escape(word)}</text>' for x, y, word in _labels(drawn, title, unit))
    frame = f'<path d="M{_MARGIN},{_MARGIN}V{_HIGH - _MARGIN}H{_WIDE - _MARGIN}" fill="none" stroke="#888"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{_HIGH}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="#fff"/>{frame}<polyline points="{points}" '
        f'fill="none" stroke="#1f6feb" stroke-width="2"/><g fill="#1f6feb">{marks}</g>{words}</svg>\n'
    )


def _png(drawn: Line, path: Path, title: str, unit: str) -> None:
    from PIL import Image, ImageDraw  # noqa: PLC0415  heavy, and few charts are pictures

    image = Image.new("RGB", (_WIDE, _HIGH), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(_MARGIN, _MARGIN), (_MARGIN, _HIGH - _MARGIN), (_WIDE - _MARGIN, _HIGH - _MARGIN)], fill="#888888")
    draw.line(_box(drawn), fill="#1f6feb", width=2)
    for x, y in _box(drawn):
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill="#1f6feb")
    for x, y, word in _labels(drawn, title, unit):
        draw.text((x, y - 11), word, fill="black")
    image.save(path)
