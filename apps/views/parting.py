"""Where two runs part, beside their lines: the step, what parts first, and how the distance grows (B5). Room: apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def words_of(found: Diff, other: str) -> list[tuple[str, str]]:
    """A difference in words, each with its class."""
    if found.step is None:
        return [(f"the same as {other}", "chip verified"), (found.detail, "soft")]
    tensors = [f"{t.name}: {t.elements} of {t.size} elements, by up to {_ulps(t.max_ulp)}" for t in found.tensors[:3]]
    parts = [(f"parts from {other} at step {found.step}", "chip diverged"), (f"first in: {found.kind}", "soft")]
    return [*parts, (found.detail, "num"), *((t, "num") for t in tensors)]


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
    """A row of words and a small chart; empty until it is asked."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._bar = Bar()
        self._place = pn.Column(sizing_mode="stretch_width")
        self.root = pn.Column(sizing_mode="stretch_width")
        self.plot: Any = None

    def ask(self, other: Recorded) -> None:
        """Compare the run on show with `other`."""
        self.root[:] = [self._bar, self._place]
        self._place[:] = []
        self._bar.send({"controls": [], "words": [(f"comparing with {other.name}, step by step …", "soft")]})
        own, path, name = self._host.run.trace.path, other.trace.path, other.name
        self._host.aside(lambda: replay.diff(own, path, rows=40), lambda found: self._arrived(found, name))

    def clear(self) -> None:
        """Show nothing."""
        self.root[:] = []
        self.plot = None

    def _arrived(self, found: Diff | RewindError, other: str) -> None:
        if isinstance(found, RewindError):
            self._bar.send({"controls": [], "words": [(str(found), "soft")]})
            return
        self._bar.send({"controls": [], "words": words_of(found, other)})
        data, what = distance_data(found) if found.step is not None else ({}, "")
        self._place[:] = [figures.card(self._draw(data, what))] if data and np.isfinite(data["y"]).any() else []

    def _draw(self, data: dict[str, NDArray[np.float64]], what: str) -> Any:
        self.plot = plot = figures.chart("how far the runs are apart", "step", what, height=220, log=True)
        hue, _ = figures.colour(1)
        source = ColumnDataSource(data)
        line = plot.line("x", "y", source=source, color=hue, line_width=1.8)
        plot.scatter("x", "y", source=source, color=hue, size=5)
        plot.add_tools(figures.hover(("step", "@x"), (what, "@y{%.4g}"), renderers=[line]))
        figures.goes_there(plot, self._host)
        figures.restyle([plot], dark=self._host.dark)
        return plot
