"""Where two runs part, beside their lines: the step, what parts first, and how the distance grows (B5). Room: apps."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource

import replay
from apps.surfaces import Bar
from apps.views import figures
from tracer.errors import RewindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host
    from replay.diff import Diff


_MOST_TENSORS: Final = 6
_HEAD: Final = ("differs", "elements", "by up to")


def words_of(found: Diff, other: str) -> list[tuple[str, str]]:
    """A difference in words, each with its class."""
    note = [(found.note, "soft")] if found.note else []
    if found.step is None:
        return [(f"the same as {other}", "chip verified"), (found.detail, "soft"), *note]
    parts = [(f"parts from {other} at step {found.step}", "chip diverged"), (f"first in: {found.kind}", "soft")]
    return [*parts, (found.detail, "num"), *note]


def tensors_of(found: Diff) -> str:
    """The tensors that differ at that step, as HTML; empty where none was compared."""
    rows = [(t.name, f"{t.elements} of {t.size}", _ulps(t.max_ulp)) for t in found.tensors[:_MOST_TENSORS]]
    cells = ["".join(f"<td style='padding:1px 22px 1px 0'>{escape(cell)}</td>" for cell in row) for row in rows]
    more = len(found.tensors) - len(rows)
    head = "".join(f"<th style='text-align:left;font-weight:600'>{name}</th>" for name in _HEAD)
    table = f"<tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in cells)
    last = f"<p style='margin:2px 0'>and {more} more</p>" if more > 0 else ""
    return f"<table style='font-size:12.5px;color:var(--rw-ink)'>{table}</table>{last}" if rows else ""


def distance_data(found: Diff) -> tuple[dict[str, NDArray[np.float64]], str]:
    """How far the runs are apart over the steps: {x, y}, and what y is; of the loss where no weights were stored."""
    rows = np.array([tuple(map(float, row)) for row in found.growth], np.float64).reshape(-1, 4)
    steps, weights, one, other = rows.T
    if np.isfinite(weights).any():
        return {"x": steps, "y": figures.positive(weights)}, "|a - b| / |a| of all weights"
    return {"x": steps, "y": figures.positive(np.abs(one - other))}, "|a - b| of the loss"


def _ulps(count: int | None) -> str:
    return "another shape or type" if count is None else f"{count} ULP"


class Parting:
    """A row of words, the tensors, and a small chart; hidden until it is asked.

    All of it is there from the start: where children come and go, Bokeh paints the charts beside them at wrong places.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._bar = Bar()
        self._table = pn.pane.HTML("", sizing_mode="stretch_width", margin=(0, 4, 8, 4))
        self._source = ColumnDataSource({"x": [0, 1], "y": [1.0, 1.0]})
        self.plot = self._drawn()
        self._card = figures.card(self.plot)
        self.root = pn.Column(self._bar, self._table, self._card, sizing_mode="stretch_width", visible=False)

    def ask(self, other: Recorded) -> None:
        """Compare the run on show with `other`."""
        self._say([(f"comparing with {other.name}, step by step …", "soft")])
        own, path, name = self._host.run.trace.path, other.trace.path, other.name
        self._host.aside(lambda: replay.diff(own, path, rows=40), lambda found: self._arrived(found, name))

    def clear(self) -> None:
        """Show nothing."""
        self.root.visible = False

    def _say(self, words: list[tuple[str, str]], table: str = "", *, chart: bool = False) -> None:
        self._bar.send({"controls": [], "words": words})
        self._table.object, self._table.visible = table, bool(table)
        self._card.visible, self.root.visible = chart, True

    def _arrived(self, found: Diff | RewindError, other: str) -> None:
        if isinstance(found, RewindError):
            self._say([(str(found), "soft")])
            return
        data, what = distance_data(found) if found.step is not None else ({}, "")
        drawable = bool(data) and bool(np.isfinite(data["y"]).any())
        if drawable:
            self._source.data = data
            self.plot.yaxis.axis_label = what
        self._say(words_of(found, other), tensors_of(found), chart=drawable)

    def _drawn(self) -> Any:
        plot = figures.chart("how far the runs are apart", "step", "", height=220, log=True)
        hue, _ = figures.colour(1)
        line = plot.line("x", "y", source=self._source, color=hue, line_width=1.8)
        plot.scatter("x", "y", source=self._source, color=hue, size=5)
        plot.add_tools(figures.hover(("step", "@x"), ("apart", "@y{%.4g}"), renderers=[line]))
        figures.goes_there(plot, self._host)
        return plot
