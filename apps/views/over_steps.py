"""A line over all steps whose values take a while: worked out in a thread, and only what is new as a run grows. Room: apps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from bokeh.models import ColumnDataSource

from analysis.metrics import downsample
from apps.views import figures
from tracer.errors import RewindError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host


POINTS: Final = 2000
Work = Callable[["Recorded", int | None], dict[str, "NDArray[Any]"]]
"""(the run, the last step that is known or None) -> {"x": steps, and each figure at them}, of the steps after it."""


def spread(first: int, last: int, most: int) -> list[int]:
    """At most `most` steps from `first` to `last`, both included, evenly spread."""
    count = last - first + 1
    if count <= most:
        return list(range(first, last + 1))
    return np.unique(np.linspace(first, last, most).round().astype(int)).tolist()


def grid(first: int, last: int, most: int) -> range:
    """At most `most` steps from `first` on, evenly spread; as a run grows every other one is left out, none is moved."""
    stride = 1
    while (last - first) // stride >= most:
        stride *= 2
    return range(first, last + 1, stride)


def sampled(run: Recorded, after: int | None, most: int) -> list[int]:
    """The steps of the grid that come after `after`, and the last step."""
    steps = {*grid(run.first, run.last, most), run.last}
    return sorted(k for k in steps if after is None or k > after)


class StepLine:
    """A chart of one or more figures over the steps, with the cursor; a click goes to that step. It grows with the run."""

    def __init__(self, host: Host, title: str, y: str, names: Sequence[str], *, log: bool = False) -> None:
        self._host, self._names, self._log = host, tuple(names), log
        self._most: int | None = None
        self._source = ColumnDataSource({name: [1.0] for name in ("x", *names)})
        self.plot = figures.chart(title, "step", y, height=190, log=log)
        drawn, self._lone = [], []
        for i, name in enumerate(names):
            hue, dash = figures.colour(i)
            label = {"legend_label": name} if len(names) > 1 else {}
            line = self.plot.line("x", name, source=self._source, color=hue, line_dash=dash, line_width=1.8, **label)
            drawn.append(line)
            self._lone.append(self.plot.scatter("x", name, source=self._source, color=hue, size=7, visible=False))
        rows = (("step", "@x"), *((n, f"@{n}{{%.4g}}") for n in names))
        self.plot.add_tools(figures.hover(*rows, mode="vline", renderers=drawn[:1]))
        if len(names) > 1:
            self.plot.legend.orientation, self.plot.legend.location = "horizontal", "top_right"
            self.plot.legend.padding, self.plot.legend.spacing, self.plot.legend.margin = 2, 12, 0
            self.plot.add_layout(self.plot.legend[0], "above")
        self._marks = figures.Marks(self.plot)
        self._title = title
        self._cursor = figures.cursor(self.plot)
        figures.goes_there(self.plot, host)
        self.root = figures.card(self.plot)
        self._key: Hashable = None
        self._work: Work | None = None
        self._found: dict[str, NDArray[Any]] = {}
        self._busy = self._again = False

    def show(self, key: Hashable, work: Work, *, title: str = "", most: int | None = None) -> None:
        """Move the cursor; where `key` is another one than before, work the line out anew.

        `most`: `work` takes so many steps of a `grid`, and the last; None: all that have a value.
        """
        self._cursor.location = self._host.selection.step
        if key == self._key:
            return
        self._key, self._work, self._found, self._busy = key, work, {}, False
        self._title, self._most = title or self._title, most
        self.plot.title.text = f"{self._title}: working it out …"
        self._ask()

    def grow(self) -> None:
        """The run on show has grown: work out what is new, and only that."""
        if self._busy:
            self._again = True
        elif self._work is not None:
            self._ask()

    def _ask(self) -> None:
        work, key, known = self._work, self._key, self._found.get("x", ())
        assert work is not None
        after = int(known[-1]) if len(known) else None
        self._busy, self._again = True, False
        self._host.later(lambda run: work(run, after), lambda found: self._arrived(key, found))

    def _arrived(self, key: Hashable, found: dict[str, NDArray[Any]] | RewindError) -> None:
        if key != self._key:
            return
        self._busy = False
        if isinstance(found, RewindError):
            self.plot.title.text = f"{self._title}: {found}"
            return
        self._take(found)
        if self._again:
            self._ask()

    def _take(self, found: dict[str, NDArray[Any]]) -> None:
        new = {"x": np.asarray(found["x"], np.int64), **{n: np.asarray(found[n], np.float64) for n in self._names}}
        whole = {n: np.concatenate([self._found[n], v]) for n, v in new.items()} if self._found else new
        if self._most is not None and len(whole["x"]):
            run = self._host.run
            inside = np.isin(whole["x"], grid(run.first, run.last, self._most))
            inside[-1] = True
            whole = {n: v[inside] for n, v in whole.items()}
        self._found = whole
        steps = whole["x"]
        shown = np.unique(np.concatenate([downsample(whole[n], POINTS) for n in self._names])) if len(steps) else steps
        drawn = {n: whole[n][shown] for n in self._names}
        finite = {n: np.where(np.isfinite(v), v, np.nan) for n, v in drawn.items()}
        self._source.data = {
            "x": steps[shown],
            **{n: figures.positive(v) if self._log else v for n, v in finite.items()},
        }
        for point in self._lone:
            point.visible = len(shown) == 1
        bad = self._marks.show({n: (steps, whole[n]) for n in self._names}, log=self._log)
        self.plot.title.text = self._title if len(steps) else f"{self._title}: no step has it"
        if bad:
            self.plot.title.text += f" (x: not finite at {bad} {'step' if bad == 1 else 'steps'})"
