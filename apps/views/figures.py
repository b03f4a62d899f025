"""Bokeh figures in the app's look: made once, then their sources are replaced. Room: apps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import panel as pn
from bokeh.events import Tap
from bokeh.models import ColorBar, ColumnDataSource, CustomJSTicker, CustomJSTickFormatter, FixedTicker, HoverTool, Span
from bokeh.plotting import figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bokeh.plotting import figure as Figure
    from numpy.typing import NDArray

    from apps.views.view import Host

# After Okabe and Ito, each at least 3:1 on the light and on the dark card; the dash tells the second round apart.
PALETTE: Final = ("#2F86D6", "#D55E00", "#009E73", "#CC79A7", "#8A63D2", "#C98A00")
DASHES: Final = ("solid", "dashed")
BAD: Final = "#D1495B"
"""What is not finite."""
_MOST_MARKS: Final = 500
MOST_HEIGHT: Final = 900
LIGHT: Final = {"ink": "#1a2029", "soft": "#566072", "line": "#d9dde3", "card": "#ffffff", "accent": "#1f5fd0"}
DARK: Final = {"ink": "#e7ebf1", "soft": "#a3aebe", "line": "#323a46", "card": "#1a1f27", "accent": "#7fb0ff"}

# As many digits as tell neighbouring ticks apart.
_NUMBER = """
const size = Math.abs(tick);
if (Number.isNaN(size)) return "NaN";
if (size === 0) return "0";
const gap = ticks.length > 1 ? Math.min(...ticks.slice(1).map((t, i) => Math.abs(t - ticks[i]))) : 0;
const digits = gap > 0 ? Math.min(12, Math.max(4, 2 + Math.ceil(Math.log10(size / gap)))) : 4;
if (size < 1e-4 || size >= 1e5) return tick.toExponential(digits - 2).replace(/\\.?0+e/, "e");
return String(Number(tick.toPrecision(digits)));
"""


# Round numbers over the whole of a logarithmic axis, however many decades or how little of one it shows: at most eight.
_ROUND = """
const low = Math.min(cb_data.start, cb_data.end), high = Math.max(cb_data.start, cb_data.end);
if (!(low > 0) || !Number.isFinite(high)) return [];
const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
const decades = (mantissas, stride) => {
  const found = [];
  for (let e = first; e <= last; e++) if (e % stride === 0) for (const m of mantissas) {
    const tick = Number(`${m}e${e}`);
    if (tick >= low && tick <= high) found.push(tick);
  }
  return found;
};
for (const mantissas of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
  const found = decades(mantissas, 1), close = Math.log10(high / low) / 10;
  if (found.length <= 8 && found.length > 2 && found.every((tick, i) => !i || Math.log10(tick / found[i - 1]) > close)) return found;
}
for (let stride = 2; last - first > 8; stride++) {
  const found = decades([1], stride);
  if (found.length <= 8) return found;
}
const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= rough), found = [];
for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
return found;
"""


def plain_numbers() -> CustomJSTickFormatter:
    """Ticks as people write them: 0.001, 10, 1000, 1e5."""
    return CustomJSTickFormatter(code=_NUMBER)


def hover(*rows: tuple[str, str], mode: str = "mouse", **options: Any) -> HoverTool:
    """A tooltip; give numbers as `@name{%.4g}`."""
    names = [text.partition("{%")[0].strip("@{}") for _, text in rows if "{%" in text]
    return HoverTool(tooltips=list(rows), formatters={f"@{n}": "printf" for n in names}, mode=mode, **options)


def chart(title: str, x: str, y: str, *, height: int = 240, log: bool = False, **options: Any) -> Figure:
    """An empty chart with titled axes. `log` makes the y axis logarithmic, for good."""
    if log:
        options["y_axis_type"] = "log"
    plot = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_label=y,
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag="box_zoom",
        output_backend="canvas",
        min_border_right=18,
        toolbar_location="above",
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    # The page follows its data by itself: the server need not hear of every new range.
    plot.x_range.syncable = plot.y_range.syncable = False
    plot.yaxis.formatter = plain_numbers()
    plot.xaxis.formatter = plain_numbers() if options.get("x_axis_type") == "log" else plot.xaxis[0].formatter
    for axis, grid, kind in ((plot.yaxis, plot.ygrid, "y_axis_type"), (plot.xaxis, plot.xgrid, "x_axis_type")):
        if options.get(kind) == "log":
            axis.ticker = grid.ticker = CustomJSTicker(major_code=_ROUND)
    if hasattr(plot.xaxis[0].formatter, "use_scientific"):
        plot.xaxis[0].formatter.use_scientific = False
    return plot


def card(plot: Any, *, right: int = 0) -> pn.Column:
    """A chart as a card of the page; `right` is the gap to what stands beside it."""
    look = {"background": "var(--rw-card)", "border": "1px solid var(--rw-line)", "border-radius": "10px"}
    look |= {"padding": "6px 8px", "box-sizing": "border-box"}
    pane = pn.pane.Bokeh(plot, sizing_mode="stretch_width", margin=0)
    return pn.Column(pane, sizing_mode="stretch_width", styles=look, margin=(0, right, 12, 0))


def fill(plot: Figure, host: Host, *, beside: int, least: int) -> None:
    """Make a chart as high as the window has room for, where `beside` pixels are taken by all else."""
    height = min(MOST_HEIGHT, max(least, host.room - beside))
    if plot.height != height:
        plot.height = height


def cursor(plot: Figure) -> Span:
    """The line at the chosen step."""
    # On the layer above: moving it paints nothing else anew.
    line = Span(location=0, dimension="height", line_width=1.5, line_alpha=0.8, level="overlay")
    plot.add_layout(line)
    return line


def restyle(plots: Iterable[Figure], *, dark: bool) -> None:
    """Give figures the colours of the page."""
    tone = DARK if dark else LIGHT
    for plot in plots:
        plot.background_fill_color = plot.border_fill_color = tone["card"]
        plot.outline_line_color = tone["line"]
        plot.title.text_color = tone["ink"]
        plot.title.text_font_size = "13px"
        for axis in plot.axis:
            axis.axis_label_text_color = axis.major_label_text_color = tone["soft"]
            axis.axis_label_text_font_style = "normal"
            axis.axis_line_color = axis.major_tick_line_color = tone["line"]
            axis.minor_tick_line_color = None
        for grid in plot.grid:
            grid.grid_line_color = tone["line"]
            grid.grid_line_alpha = 0.5
        for legend in plot.legend:
            legend.background_fill_color, legend.background_fill_alpha = tone["card"], 0.8
            legend.label_text_color, legend.border_line_color = tone["ink"], tone["line"]
            legend.title_text_color, legend.title_text_font_style = tone["soft"], "normal"
            legend.label_text_font_size = legend.title_text_font_size = "12px"
            legend.border_line_alpha = 0
        for bar in plot.select(type=ColorBar):
            bar.title_text_color = bar.major_label_text_color = tone["soft"]
        for line in plot.select(type=Span):
            line.line_color = tone["accent"]


class Marks:
    """Crosses at the foot of a chart, at the steps where a value is NaN or infinite: a gap alone would hide them (S1.2)."""

    def __init__(self, plot: Figure) -> None:
        """No marks yet."""
        self._source = ColumnDataSource({"x": [], "y": [], "what": []})
        drawn = plot.scatter("x", "y", source=self._source, marker="x", size=9, line_width=2, color=BAD)
        plot.add_tools(hover(("step", "@x{%d}"), ("", "@what"), renderers=[drawn]))

    def show(self, lines: Mapping[str, tuple[NDArray[Any], NDArray[np.float64]]], *, log: bool = False) -> int:
        """Mark what of `lines`, (steps, values) by name, is not finite; return at how many steps that is so."""
        found: dict[int, list[str]] = {}
        marked: set[int] = set()
        for name, (steps, values) in lines.items():
            bad = np.flatnonzero(~np.isfinite(values))
            marked.update(steps[bad].tolist())
            for i in bad[:: max(1, len(bad) // _MOST_MARKS)]:
                found.setdefault(int(steps[i]), []).append(f"{name} is {word(values[i])}")
        texts = [", ".join(words[:6]) + (" …" if len(words) > 6 else "") for words in found.values()]
        foot = lowest([values for _, values in lines.values()], log=log)
        self._source.data = {"x": list(found), "y": [foot] * len(found), "what": texts}
        return len(marked)


def word(value: float) -> str:
    """What a number that is not finite is called."""
    return "NaN" if np.isnan(value) else "inf" if value > 0 else "-inf"


def lowest(lines: Sequence[NDArray[np.float64]], *, log: bool = False) -> float:
    """The least value that a chart of `lines` can draw: where its marks stand."""
    drawn = [v[np.isfinite(v) & ((v > 0) | (not log))] for v in lines]
    return min((float(v.min()) for v in drawn if len(v)), default=1.0)


def goes_there(plot: Figure, host: Host) -> None:
    """A click on a chart over the steps goes to that step."""
    plot.on_event(Tap, lambda event: event.x is not None and host.choose(step=round(event.x)))


def nothing(text: str) -> pn.pane.HTML:
    """What stands where there is nothing to draw."""
    return pn.pane.HTML(f"<p style='text-align:center;color:var(--rw-soft)'>{text}</p>", sizing_mode="stretch_width")


def colour(i: int) -> tuple[str, str]:
    """Colour and dash of the i-th line."""
    return PALETTE[i % len(PALETTE)], DASHES[(i // len(PALETTE)) % len(DASHES)]


def unscaled(plot: Figure) -> None:
    """A chart without a finite value has no numbers on its axis: those of an empty one would be read as values."""
    plot.yaxis.ticker = plot.ygrid.ticker = FixedTicker(ticks=[])


def steady(plot: Figure, value: float) -> None:
    """Show a line that stays at one value at a scale that fits it, not from -1 to 1."""
    plot.y_range.default_span = abs(value) * 0.5 or 1.0


def positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values as a logarithmic axis can draw them: what is zero or less leaves a gap (S2.3)."""
    return np.where(values > 0, values, np.nan)


def finite_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Least and greatest finite value; (0, 1) where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
