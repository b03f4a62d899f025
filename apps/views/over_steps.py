"""A line over all steps whose values take a while: worked out in a thread from a sample of the steps. Room: apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import Tap
from bokeh.models import ColumnDataSource

from apps.views import figures
from tracer.errors import RewindError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host


def spread(first: int, last: int, most: int) -> list[int]:
    """At most `most` steps from `first` to `last`, both included, evenly spread."""
    count = last - first + 1
    if count <= most:
        return list(range(first, last + 1))
    return np.unique(np.linspace(first, last, most).round().astype(int)).tolist()


class StepLine:
    """A chart of one or more figures over the steps, with the cursor; a click goes to that step."""

    def __init__(self, host: Host, title: str, y: str, names: Sequence[str], *, log: bool = False) -> None:
        self._host, self._names, self._log = host, tuple(names), log
        self._source = ColumnDataSource({name: [1.0] for name in ("x", *names)})
        self.plot = figures.chart(title, "step", y, height=190, log=log)
        for i, name in enumerate(names):
            hue, dash = figures.colour(i)
            label = {"legend_label": name} if len(names) > 1 else {}
            self.plot.line("x", name, source=self._source, color=hue, line_dash=dash, line_width=1.8, **label)
        self.plot.add_tools(figures.hover(("step", "@x"), *((n, f"@{n}{{%.4g}}") for n in names), mode="vline"))
        if len(names) > 1:
            self.plot.legend.orientation, self.plot.legend.location = "horizontal", "top_right"
            self.plot.legend.padding = self.plot.legend.spacing = 4
        self._title = title
        self._cursor = figures.cursor(self.plot)
        self.plot.on_event(Tap, lambda event: event.x is not None and host.choose(step=round(event.x)))
        self.root = figures.card(self.plot)
        self._key: Hashable = None

    def show(self, key: Hashable, work: Callable[[Recorded], dict[str, NDArray[Any]]]) -> None:
        """Move the cursor; where `key` is another one than before, work the line out anew."""
        self._cursor.location = self._host.selection.step
        if key == self._key:
            return
        self._key = key
        self.plot.title.text = f"{self._title}: working it out …"
        self._host.later(work, lambda found: self._arrived(key, found))

    def _arrived(self, key: Hashable, found: dict[str, NDArray[Any]] | RewindError) -> None:
        if key != self._key:
            return
        if isinstance(found, RewindError):
            self.plot.title.text = f"{self._title}: {found}"
            return
        lines = {n: np.asarray(found[n], np.float64) for n in self._names}
        self._source.data = {"x": found["x"], **{n: figures.positive(v) if self._log else v for n, v in lines.items()}}
        self.plot.title.text = self._title
