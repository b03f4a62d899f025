"""What a benchmark says: a row with the median and the range of what was measured, a table of them, a fit of growth."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Figure:
    """One row: the median and the range of `unit`."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    target: str = ""


def figure(name: str, unit: str, values: list[float], target: str = "") -> Figure:
    """Summarise repeated measurements."""
    return Figure(name, unit, statistics.median(values), min(values), max(values), target)


def p95(name: str, unit: str, values: list[float], target: str = "") -> Figure:
    """The 95th percentile of measurements, in the place of the median."""
    place = math.ceil(0.95 * len(values)) - 1
    return Figure(f"{name}, p95", unit, sorted(values)[place], min(values), max(values), target)


def timed(action: Callable[[], Any]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size), by least squares: 0 is flat, 1 is proportional."""
    x, y = [math.log(n) for n in sizes], [math.log(v) for v in values]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    moved = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return moved / sum((a - mean_x) ** 2 for a in x)


def table(rows: list[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| what | median | range | target |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.median:.3g} {r.unit} | {r.low:.3g} - {r.high:.3g} | {r.target} |" for r in rows]
    return "\n".join(lines)
