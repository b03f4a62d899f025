"""What the colours of cosine matrices span: -1..1, or what there is off the diagonal, where all is nearly alike (S4.6).

Room: apps. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from apps.views import figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALES: Final = {
    "auto": "as fits",
    "whole": "from -1 to 1",
    "shared": "fitted, both alike",
    "own": "fitted, each its own",
}
NARROW: Final = 0.1
"""Cosines within less than this are of one colour where the colours span -1..1: twenty times as much."""
APART: Final = 8.0
"""How many times as wide one matrix' cosines may lie apart as the other's, for one scale to show both."""


def span(matrix: NDArray[np.float64]) -> tuple[float, float]:
    """Least and greatest finite value off the diagonal; (-1, 1) where there is none."""
    off = matrix[~np.eye(*matrix.shape, dtype=bool)] if matrix.ndim == 2 else matrix
    return figures.finite_range(off) if np.isfinite(off).any() else (-1.0, 1.0)


def scale(maps: list[dict[str, Any]], arrays: dict[str, NDArray[np.float64]], how: str) -> list[tuple[str, str]]:
    """Set what the colours of `maps` span, a difference's symmetric about 0; return the words that say so.

    `how` is one of SCALES; `auto` is -1..1 until every matrix is narrower than NARROW. The same colour is the same value
    in all of them, unless each has its own scale, which is then said.
    """
    if not maps:
        return []
    spans = {one["name"]: span(arrays[one["name"]]) for one in maps if one["name"] != "difference"}
    chosen = _auto(spans) if how not in SCALES or how == "auto" else how
    if chosen == "whole":
        return [(_HIDDEN, "soft")] if how == "whole" and spans and _auto(spans) != "whole" else []
    both = (min(low for low, _ in spans.values()), max(high for _, high in spans.values()))
    for one in maps:
        if one["name"] == "difference":
            limit = float(max(np.abs(figures.finite_range(arrays["difference"])))) or 1.0
            one |= {"low": -limit, "high": limit}
        else:
            low, high = spans[one["name"]] if chosen == "own" else both
            one |= {"low": low, "high": high if high > low else low + 1e-9, "colours": "sequential"}
    why = "nearly all alike: " if how != chosen else ""
    if chosen == "own" and len(spans) > 1:
        return [(f"{why}each has colours of its own, not from -1 to 1", "chip contender")]
    return [(f"{why}colours span what is off the diagonal, not -1 to 1", "chip contender")]


def _auto(spans: dict[str, tuple[float, float]]) -> str:
    """A scale under which something is to be seen: -1..1 where that is one."""
    widths = [high - low for low, high in spans.values()]
    if not widths or max(widths) >= NARROW:
        return "whole"
    return "own" if max(widths) > APART * min(widths) else "shared"


_HIDDEN = 'nearly all alike: "as fits" shows how they differ'
