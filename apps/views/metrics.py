"""The tab Metrics: every scalar over steps, epochs, samples or time, with one crosshair (S2.3, S2.4, S1.2, B4).

Room: apps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import panel as pn
from bokeh.events import RangesUpdate, Tap
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CrosshairTool, Spacer, Span

from apps.surfaces import Bar
from apps.views import figures
from apps.views.groups import AUTO, folded, grouped, toggled
from apps.views.options import Options
from apps.views.parting import Parting
from apps.views.series import AXES, POINTS, Series, bad_data, dotted, line_data, smoothed, x_values
from tracer.errors import RewindError

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure
    from numpy.typing import NDArray

    from apps.family import Relative
    from apps.recorded import Recorded
    from apps.views.view import Host

# The three of S2.3's calibration chart, by the names under which they are logged.
CALIBRATION: Final = ("predicted_uncertainty", "calibration_error", "rmse")
FAMILY: Final = "its branches and parent"
ALL: Final = "all runs"


@dataclass(frozen=True)
class Line:
    """A line of a chart: `name` of `run`; `log`: on a logarithmic axis whatever is chosen."""

    source: ColumnDataSource
    run: Recorded
    name: str
    log: bool = False


class MetricsView:
    """A small chart per scalar."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._options = Options(host, "metrics", axis="step", log=False, smooth=0.0, beside="", folded=AUTO)
        self._bar = Bar(self._set)
        self._parting = Parting(host)
        self._place = pn.Column(sizing_mode="stretch_width")
        self.root = pn.Column(self._bar, self._parting.root, self._place, sizing_mode="stretch_width")
        self._plots: list[Figure] = []
        self._cursors: list[Span] = []
        self._built: tuple[Any, ...] = ()
        self._lines: list[Line] = []
        self._zoomed: dict[str, tuple[float, float]] = {}
        self._drawn: tuple[Any, ...] = ()
        self._known: dict[tuple[Any, ...], Any] = {}
        self._family: list[Relative] = []
        self._groups: list[tuple[str, list[str]]] = []
        self._rows = 1

    def show(self) -> None:
        """Move the cursor; draw anew only where run or options changed."""
        run = self._host.run
        wanted = (run, run.edition, *self._options.values)
        if wanted != self._built:
            self._build()
            self._built = wanted
        if "step" not in run.scalars or not len(run.scalars["step"]):
            return
        x = self._x(run)
        place = int(np.searchsorted(run.scalars["step"], self._host.selection.step))
        self._spread()
        for cursor in self._cursors:
            cursor.location = float(x[min(place, len(x) - 1)])

    def grow(self) -> None:
        """The run on show has grown: its lines grow in place; a new name, or a value that is not finite, draws anew."""
        self._known.clear()
        if self._built[:1] != (self._host.run,) or self._drawn != _outline(self._host.run):
            self._built = ()
            return
        for line in self._lines:
            if line.run is self._host.run:
                line.source.data = self._data(line)

    def restyle(self) -> None:
        """Take on the page's colours."""
        figures.restyle([*self._plots, self._parting.plot], dark=self._host.dark)

    def export(self) -> dict[str, NDArray[Any]]:
        """All scalars of the run, a column each."""
        return self._host.run.table()

    def python(self) -> str:
        """How a notebook gets the same."""
        late = "\ntrace.sql(\"from metrics where source like 'hindsight:%'\").df()"
        return 'trace.sql("from steps").df()' + late * bool(self._host.run.late_names)

    # -- controls ------------------------------------------------------------------------------------------------------

    def _set(self, message: dict[str, Any]) -> None:
        if message.get("do") != "set":
            return
        name = message.get("name")
        if name == "part" and self._options["beside"] in self._host.others():
            self._parting.ask(self._host.opened([self._options["beside"]])[0])
        if name == "beside":
            self._parting.clear()
        self._options.set(name, message.get("value"))

    @property
    def _axis(self) -> str:
        return self._options["axis"] if self._options["axis"] in AXES else "step"

    @property
    def _smooth(self) -> float:
        return min(0.99, max(0.0, self._options["smooth"]))

    def _beside(self) -> list[Recorded]:
        """The runs that are drawn beside the one on show."""
        chosen, others = self._options["beside"], self._host.others()
        family = [other.name for other in self._family]
        names = {"": [], ALL: others, FAMILY: family}.get(chosen, [chosen] if chosen in others else [])
        return self._host.opened(names[:11])

    def _controls(self) -> None:
        o = self._options
        controls = [
            {"name": "axis", "label": "over", "kind": "select", "options": list(AXES.items()), "value": self._axis},
            {"name": "log", "label": "log scale", "kind": "toggle", "value": o["log"]},
            {"name": "smooth", "label": "smoothing", "kind": "range", "min": 0, "max": 0.99, "step": 0.01}
            | {"value": self._smooth},
        ]
        others = self._host.others()
        if others:
            groups = [FAMILY] if self._family else []
            options = [("", "nothing"), *((n, n) for n in [*groups, ALL, *others])]
            controls.append(
                {"name": "beside", "label": "beside it", "kind": "select", "options": options, "value": o["beside"]}
            )
        if o["beside"] in others:
            controls.append({"name": "part", "label": "Where do they part?", "kind": "button"})
        words = [(f"{other.name} {other.words}", "chip contender") for other in self._family[:3]]
        runs = [self._host.run, *self._beside()]
        # One legend for all charts, beside none of them: a run has the same colour in each.
        legend = [(run.name, *figures.colour(i)) for i, run in enumerate(runs)] if len(runs) > 1 else []
        words += [("click a chart to go there", "soft")]
        self._bar.send({"controls": controls, "words": words, "legend": legend})

    # -- charts --------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        run, self._family = self._host.run, self._host.relatives()
        self._controls()
        names = run.series_names
        if not names:
            self._place[:] = [figures.nothing("This run recorded no scalars: tracer.log(accuracy=0.9) adds one.")]
            return
        self._plots, self._cursors, self._lines, self._zoomed, self._known = [], [], [], {}, {}
        self._drawn = _outline(run)
        self._groups = grouped(names, run.late_names)
        hidden = folded(self._groups, self._options["folded"])
        link = Span(dimension="height", line_dash="dotted", line_width=1)
        place: list[Any] = []
        self._rows = 0
        for name, own in self._groups:
            if len(self._groups) > 1:
                place.append(self._heading(name, len(own), opened=name not in hidden))
            if name not in hidden:
                plots = self._charts(run, own, link)
                self._rows += -(-len(plots) // 2)
                place.append(figures.card(_in_rows(plots)))
        self.restyle()
        self._spread()
        self._place[:] = place

    def _charts(self, run: Recorded, names: list[str], link: Span) -> list[Figure]:
        """The charts under one heading; those that make a calibration chart are in one of its own, too."""
        before = len(self._plots)
        together = [name for name in CALIBRATION if name in names]
        if len(together) > 1:
            self._plots.append(self._calibration(run, together))
        runs = [run, *self._beside()]
        for name in names:
            self._plots.append(self._chart(name, runs, link))
        return self._plots[before:]

    def _heading(self, name: str, count: int, *, opened: bool) -> Bar:
        """A heading that opens and folds its charts."""
        bar = Bar(lambda message: self._fold(name) if message.get("do") == "set" else None)
        label = f"{name} ({count})"
        bar.send({"controls": [{"name": "fold", "label": label, "kind": "fold", "value": opened}], "thin": True})
        return bar

    def _fold(self, name: str) -> None:
        self._options.set("folded", toggled(self._groups, self._options["folded"], name))

    def _spread(self) -> None:
        """Give the charts what room the window has, where they are few."""
        taken = 334 + 44 * len(self._groups) * (len(self._groups) > 1)
        for plot in self._plots:
            figures.fill(plot, self._host, beside=self._host.room - (self._host.room - taken) // self._rows, least=220)

    def _new_plot(self, name: str, *, log: bool) -> Figure:
        unit = {"duration": "seconds"}.get(name, "")
        shared = {"x_range": self._plots[0].x_range} if self._plots else {}
        axis = AXES[self._axis]
        return figures.chart(name.replace("_", " "), axis, unit, height=220, log=log, **shared)

    def _chart(self, name: str, runs: list[Recorded], link: Span) -> Figure:
        plot = self._new_plot(name, log=self._options["log"])
        plot.add_tools(CrosshairTool(overlay=link))
        there = [(i, run) for i, run in enumerate(runs) if name in run.scalars]
        lines = [self._line(plot, run, name, i) for i, run in there]
        tips = figures.hover(("step", "@step{%d}"), (name, "@y{%.5g}"), mode="vline", renderers=lines)
        tips.attachment = "above"
        plot.add_tools(tips)
        figures.steady(plot, figures.finite_range(runs[0].scalars[name])[1])
        if not any(np.isfinite(shown.scalars[name]).any() for _, shown in there):
            figures.unscaled(plot)
        if len(runs) > 1 and self._axis == "step":
            self._branches(plot, runs)
        self._finish(plot)
        return plot

    def _branches(self, plot: Figure, runs: list[Recorded]) -> None:
        names = {run.name for run in runs}
        for step in {other.at_step for other in self._family if other.name in names}:
            plot.add_layout(Span(location=step, dimension="height", line_dash="dashed", line_width=1))

    def _calibration(self, run: Recorded, names: list[str]) -> Figure:
        """S2.3's preset: how sure the model is, how wrong that is, and its error, on one logarithmic axis."""
        plot = self._new_plot("calibration", log=True)
        for i, name in enumerate(names):
            line = Line(ColumnDataSource(), run, name, log=True)
            self._lines.append(line)
            line.source.data = self._data(line)
            hue, dash = figures.colour(i)
            label = name.replace("_", " ")
            drawn = plot.line(
                "x", "y", source=line.source, color=hue, line_dash=dash, line_width=1.8, legend_label=label
            )
            plot.add_tools(figures.hover(("step", "@step{%d}"), (label, "@y{%.4g}"), renderers=[drawn]))
            self._refine(plot, line)
        self._finish(plot)
        return plot

    def _finish(self, plot: Figure) -> None:
        if plot.legend:
            plot.legend.click_policy, plot.legend.padding, plot.legend.spacing = "hide", 2, 12
            plot.legend.orientation, plot.legend.margin = "horizontal", 0
            plot.add_layout(plot.legend[0], "above")  # Not over the lines.
        self._cursors.append(figures.cursor(plot))
        plot.on_event(Tap, lambda event: self._tapped(event.x))

    def _line(self, plot: Figure, run: Recorded, name: str, i: int) -> Any:
        line = Line(ColumnDataSource(), run, name)
        self._lines.append(line)
        line.source.data = self._data(line)
        hue, dash = figures.colour(i)
        smooth, whole = self._smooth, self._series(run, name)
        look = {"color": hue, "line_dash": dash, "line_width": 1 if smooth else 1.5, "alpha": 0.4 if smooth else 1.0}
        raw = plot.line("x", "y", source=line.source, **look)
        if smooth:
            plot.line("x", "smooth", source=line.source, color=hue, line_width=2)
        if dotted(whole, len(run.scalars["step"])):
            plot.scatter("x", "y", source=line.source, color=hue, size=5)
        self._marks(plot, bad_data(whole))
        self._refine(plot, line)
        return raw

    def _marks(self, plot: Figure, data: dict[str, Any]) -> None:
        if not len(data["x"]):
            return
        level = _foot(plot)
        source = ColumnDataSource({**data, "y": np.full(len(data["x"]), level)})
        marks = plot.scatter("x", "y", source=source, marker="x", size=9, line_width=2, color=figures.BAD)
        plot.add_tools(figures.hover(("step", "@step{%d}"), ("value", "@what"), renderers=[marks]))

    # -- what a line shows ---------------------------------------------------------------------------------------------

    def _x(self, run: Recorded) -> NDArray[np.float64]:
        return self._once((run, self._axis), lambda: x_values(run.scalars, self._axis, run.first))

    def _series(self, run: Recorded, name: str) -> Series:
        amount = self._smooth

        def whole() -> Series:
            there = run.given(name)
            values = run.scalars[name][there]
            return Series(self._x(run)[there], run.scalars["step"][there], values, smoothed(values, amount))

        return self._once((run, name, amount), whole)

    def _once(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _data(self, line: Line) -> dict[str, NDArray[Any]]:
        """What the line shows of its run now, finer where one has zoomed in."""
        series = self._series(line.run, line.name)
        if line.source.id in self._zoomed and len(series.x) > POINTS:
            series = series.within(*self._zoomed[line.source.id])
        return line_data(series, log=line.log or self._options["log"])

    def _refine(self, plot: Figure, line: Line) -> None:
        def zoomed(event: RangesUpdate) -> None:
            self._zoomed[line.source.id] = (event.x0, event.x1)
            if len(line.run.scalars["step"]) > POINTS:
                line.source.data = self._data(line)

        plot.on_event(RangesUpdate, zoomed)

    def _tapped(self, x: float | None) -> None:
        run = self._host.run
        if x is None or "step" not in run.scalars or not len(run.scalars["step"]):
            return
        nearest = int(np.nanargmin(np.abs(self._x(run) - x)))
        try:
            self._host.choose(step=int(run.scalars["step"][nearest]))
        except RewindError:
            return


def _outline(run: Recorded) -> tuple[Any, ...]:
    """What a chart is drawn anew for, rather than its lines grown: the names, what is not finite, no point or a lone one."""
    names, scalars = run.series_names, run.scalars
    finite = [int(np.isfinite(scalars[name]).sum()) for name in names]
    lone = tuple(min(count, 2) for count in finite)
    return (*names, *lone, sum(int(run.given(name).sum()) for name in names) - sum(finite))


def _in_rows(plots: list[Figure]) -> Any:
    """Charts two by two. No gridplot: that one paints its charts at wrong places where anything beside it comes or goes."""
    pairs = [plots[i : i + 2] for i in range(0, len(plots), 2)]
    if len(plots) > 1 and len(pairs[-1]) == 1:
        pairs[-1].append(Spacer(sizing_mode="stretch_width"))
    for plot in plots:
        plot.min_border_left = 64
    return column(*(row(*pair, sizing_mode="stretch_width") for pair in pairs), sizing_mode="stretch_width")


def _foot(plot: Figure) -> float:
    """The lowest finite value that the chart draws: where the marks stand."""
    lows = [
        np.nanmin(y)
        for glyph in plot.renderers
        if np.isfinite(y := np.asarray(glyph.data_source.data["y"], float)).any()
    ]
    return float(min(lows)) if lows else 1.0
