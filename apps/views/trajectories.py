"""The tab Trajectories: the watched features over all steps, when they died, who moves with whom (S4.7, S4.9).

Room: apps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource

from analysis.finding import quoted
from analysis.metrics import downsample
from analysis.trajectories import cosine_to_initial, pairwise
from apps.selection import parse_watched
from apps.surfaces import Bar, Maps, Note
from apps.views import figures
from apps.views.options import Options
from apps.views.over_steps import spread
from apps.views.scales import scale
from apps.views.view import layer_control, rerun_action, said
from tracer.errors import RewindError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from apps.recorded import Recorded
from apps.views.view import Host

INITIAL: Final = "cosine to initial weight"
POINTS: Final = 1500


def series(
    run: Recorded, layer: str, metric: str, watched: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One quantity of the watched features: (steps [T], values [T, W]); the cosine at no more than 1500 states."""
    if metric != INITIAL:
        return run.trajectory(layer, metric, watched)
    name = run.main_weight(layer)
    states = run.trace.stored_states.array()
    chosen = states[spread(0, len(states) - 1, POINTS)]
    steps, rows = run.trace.weights(name, list(watched), range(int(chosen[0]), int(chosen[-1]) + 1, _stride(chosen)))
    return steps, cosine_to_initial(rows.reshape(*rows.shape[:2], -1))


def line_data(steps: NDArray[np.int64], values: NDArray[np.float64], *, log: bool) -> dict[str, NDArray[Any]]:
    """One feature's line: its extremes kept, gaps where the axis cannot show it."""
    chosen = downsample(values, POINTS) if len(values) else np.empty(0, np.int64)
    y = np.where(np.isfinite(values[chosen]), values[chosen], np.nan)
    return {"x": steps[chosen], "y": figures.positive(y) if log else y}


def pairs_frame(run: Recorded, layer: str, k: int, watched: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frame of the watched features' pairwise cosines at step `k`."""
    try:
        matrix = pairwise(run.weight(run.main_weight(layer), k), watched)
    except RewindError as error:
        return {"problem": said(error, run), **rerun_action(run, k)}, {}
    title = f"cosine between the watched, step {k}"
    shown = {"name": "pairs", "short": "cosine", "title": title, "low": -1.0, "high": 1.0, "colours": "diverging"}
    words = scale([shown], {"pairs": matrix}, "auto")
    shown["figures"] = words[0][0] if words else ""
    return {"maps": [shown], "order": list(watched), "side": 300}, {"pairs": matrix}


def _stride(states: NDArray[np.int64]) -> int:
    return max(1, int(np.median(np.diff(states)))) if len(states) > 1 else 1


class TrajectoriesView:
    """Lines of the watched features, and their pairwise matrix."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._options = Options(host, "trajectories", metric="", log=False)
        self._bar = Bar(self._set)
        self._pairs = Maps(self._heard, sizing_mode="fixed", width=350)
        self._place = pn.Column(sizing_mode="stretch_width")
        self._note = Note(self._heard, visible=False)
        self._row = pn.Row(self._place, self._pairs, sizing_mode="stretch_width")
        self.root = pn.Column(self._bar, self._note, self._row, sizing_mode="stretch_width")
        self._built: tuple[Any, ...] = ()
        self._metric = self._unread = ""
        self._plot: Any = None
        self._blank = False
        self._marks: Any = None
        self._cursor: Any = None
        self._found: dict[str, NDArray[Any]] = {}
        self._lines: dict[int, ColumnDataSource] = {}
        self._died: dict[int, int] = {}

    def show(self) -> None:
        """Move the cursor and the matrix; draw anew where the watched or the options changed."""
        run, chosen = self._host.run, self._host.selection
        metrics = [*run.metrics_of(chosen.layer), *([INITIAL] if run.matrices else [])]
        if not metrics:
            self._say({"problem": _NOTHING, **rerun_action(run, chosen.step)})
            return
        self._say({})
        self._metric = self._options["metric"] if self._options["metric"] in metrics else metrics[0]
        watched = self._watched(run, chosen.layer)
        wanted = (run, chosen.layer, watched, self._metric, self._options["log"])
        if wanted != self._built:
            self._built = wanted
            self._build(run, chosen.layer, watched, metrics)
        if self._cursor is not None:
            self._cursor.location = chosen.step
            figures.fill(self._plot, self._host, beside=330, least=360)
        self._pairs.send(*_with(pairs_frame(run, chosen.layer, chosen.step, watched), feature=chosen.feature))

    def grow(self) -> None:
        """The run on show has grown: its lines grow in place; where a feature has died since, or come back, all is drawn anew."""
        run, layer, watched = self._built[:3] or (None, "", ())
        if run is not self._host.run or not self._lines or deaths(run, layer, watched) != self._died:
            self._built = ()
            return
        try:
            steps, values = series(run, layer, self._metric, watched)
        except RewindError:
            self._built = ()
            return
        self._keep(steps, values, watched)
        if self._blank and np.isfinite(values).any():
            self._built = ()
            return
        for i, feature in enumerate(watched):
            self._lines[feature].data = line_data(steps, values[:, i], log=self._options["log"])
        self._mark(steps, values, watched)

    def _mark(self, steps: NDArray[np.int64], values: NDArray[np.float64], watched: tuple[int, ...]) -> None:
        lines = {f"feature {f}": (steps, values[:, i]) for i, f in enumerate(watched)}
        self._marks.show(lines, log=self._options["log"])

    def restyle(self) -> None:
        """Take on the page's colours."""
        figures.restyle([self._plot] if self._plot is not None else [], dark=self._host.dark)
        self._pairs.tell({"kind": "theme"})

    def export(self) -> dict[str, NDArray[Any]]:
        """The lines, a column each."""
        return self._found

    def python(self) -> str:
        """How a notebook gets the same."""
        run, c, metric = self._host.run, self._host.selection, self._metric
        watched = self._watched(run, c.layer)
        if metric == INITIAL:
            rows = f"steps, rows = trace.weights({run.main_weight(c.layer)!r}, {list(watched)})"
            cosines = "cosine_to_initial(rows.reshape(*rows.shape[:2], -1))"
            return f"from analysis.trajectories import cosine_to_initial\n\n{rows}\n{cosines}"
        which = f"layer = {quoted(c.layer)} and feature in ({', '.join(map(str, watched))})"
        return f'trace.sql("""select step, feature, "{metric}" from features where {which} order by 1, 2""").df()'

    def _say(self, empty: dict[str, Any]) -> None:
        """Show the empty state in the place of all else, or all else."""
        self._bar.visible = self._row.visible = not empty
        if empty or self._note.visible:
            self._note.send(empty)
        self._note.visible = bool(empty)

    def _absent(self, layer: str, watched: tuple[int, ...]) -> list[tuple[str, str]]:
        """What was asked for and is not there, in words."""
        unread, self._unread = self._unread, ""
        missing = [f for f in self._host.selection.watched if f not in watched]
        lost = [(f"{layer} has no feature {', '.join(map(str, missing))}", "chip dead")] if missing else []
        return [*lost, (f"no number of a feature in “{unread}”", "chip dead")] if unread else lost

    def _watched(self, run: Recorded, layer: str) -> tuple[int, ...]:
        size = run.size_of(layer) or 10**9
        return tuple(f for f in self._host.selection.watched if f < size) or (0,)

    def _build(self, run: Recorded, layer: str, watched: tuple[int, ...], metrics: list[str]) -> None:
        o = self._options
        died = self._died = deaths(run, layer, watched)
        self._lines = {}
        judged = unjudged(run, layer, watched) if "win_rate" in metrics else None
        words = words_of_deaths(died, judged) + self._absent(layer, watched)
        controls = [
            *layer_control(self._host),
            {"name": "metric", "label": "show", "kind": "select", "options": _named(metrics), "value": self._metric},
            {"name": "log", "label": "log scale", "kind": "toggle", "value": o["log"]},
            {"name": "watched", "label": "watched", "kind": "text", "value": ", ".join(map(str, watched))},
        ]
        self._bar.send({"controls": controls, "words": words})
        try:
            steps, values = series(run, layer, self._metric, watched)
        except RewindError as error:
            self._bar.send({"controls": controls, "words": [(said(error, run), "soft")]})
            return
        self._keep(steps, values, watched)
        self._draw(steps, values, watched, died)

    def _keep(self, steps: NDArray[np.int64], values: NDArray[np.float64], watched: tuple[int, ...]) -> None:
        self._found = {"step": steps, **{f"feature_{f}": values[:, i] for i, f in enumerate(watched)}}

    def _draw(
        self, steps: NDArray[np.int64], values: NDArray[np.float64], watched: tuple[int, ...], died: dict[int, int]
    ) -> None:
        o = self._options
        plot = figures.chart(self._metric.replace("_", " "), "step", "", height=420, log=o["log"])
        for i, feature in enumerate(watched):
            source = self._lines[feature] = ColumnDataSource(line_data(steps, values[:, i], log=o["log"]))
            hue, dash = figures.colour(i)
            name = {"legend_label": str(feature), "line_dash": dash, "color": hue}
            line = plot.line("x", "y", source=source, line_width=1.8, **name)
            tips = figures.hover(("feature", str(feature)), ("step", "@x"), ("value", "@y{%.4g}"), renderers=[line])
            plot.add_tools(tips)
            if feature in died:
                at = int(np.searchsorted(steps, died[feature]))
                plot.scatter([died[feature]], [values[at, i]], marker="x", size=12, line_width=3, color=hue)
        self._blank = not np.isfinite(values).any()
        if self._blank:
            figures.unscaled(plot)
        self._marks = figures.Marks(plot)
        self._mark(steps, values, watched)
        plot.legend.title, plot.legend.click_policy = "feature", "hide"
        plot.add_layout(plot.legend[0], "right")
        self._cursor = figures.cursor(plot)
        figures.goes_there(plot, self._host)
        self._plot = plot
        self.restyle()
        self._place[:] = [figures.card(plot, right=12)]

    def _set(self, message: dict[str, Any]) -> None:
        name, value = message.get("name"), message.get("value")
        if name == "layer":
            self._host.choose(layer=value)
        elif name == "watched":
            watched = parse_watched(str(value))
            self._unread = "" if watched else str(value)[:60]
            self._built = ()
            self._host.choose(watched=watched or self._host.selection.watched)
        elif message.get("do") == "set":
            self._options.set(name, value)

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "feature":
            self._host.choose(feature=message.get("feature"))
        elif message.get("do") == "rerun":
            self._host.rerun()


_NOTHING: Final = (
    "This run has neither captures per feature nor stored weights: tracer.capture('layer/win_rate', tensor) adds the "
    "one, --detail full the other."
)


def deaths(run: Recorded, layer: str, watched: Sequence[int]) -> dict[int, int]:
    """The step at which each watched feature died, of those that did."""
    return {f: k for f, k in zip(watched, run.deaths(layer, watched), strict=True) if k is not None}


def unjudged(run: Recorded, layer: str, watched: Sequence[int]) -> list[int]:
    """The watched features of which nobody knows whether they live: their last win rate is NaN."""
    _, rates = run.trajectory(layer, "win_rate", watched)
    return [f for f, rate in zip(watched, rates[-1], strict=True) if np.isnan(rate)] if len(rates) else []


def words_of_deaths(died: dict[int, int], unknown: list[int] | None) -> list[tuple[str, str]]:
    """Who of the watched died, and of whom it is not known; `unknown` is None where no win rate was captured."""
    words = [(f"{f} died at {k}", "chip dead") for f, k in died.items()]
    if unknown:
        return [*words, (f"the win rate of {', '.join(map(str, unknown))} is NaN at the end", "chip unknown")]
    if words or unknown is None:
        return words
    return [("none of these is dead at the end (under 1 % of the wins for good)", "soft")]


def _named(metrics: list[str]) -> list[tuple[str, str]]:
    return [(m, m.replace("_", " ")) for m in metrics]


def _with(frame: tuple[dict[str, Any], dict[str, Any]], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**frame[0], **more}, frame[1]
