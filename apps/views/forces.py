"""The tab Forces: what pulls on each feature, and whether the pulls agree (S4.5). Every axis says which force it shows.

Room: apps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn
from bokeh.events import Tap
from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper
from bokeh.palettes import Viridis256

from analysis import forces
from apps.answers import short
from apps.pictures import BAD, square_side
from apps.recorded import FORCES
from apps.surfaces import Bar, Note, Pictures
from apps.views import figures
from apps.views.options import Options
from apps.views.over_steps import StepLine, sampled
from apps.views.view import layer_control, rerun_action, said
from tracer.errors import MissingDataError, RewindError

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure
    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host

UNKNOWN = "#{:02X}{:02X}{:02X}".format(*BAD)
"""NaN, as in pictures."""
VIRIDIS = list(Viridis256)
SAMPLE = 200
"""So many steps at most show the ratio where it has to be worked out from weights."""
_RATIOS = {"mask": ("som_magnitude", "grad_magnitude"), "gradient": ("som_norm", "grad_norm_masked")}


def scatter_data(run: Recorded, layer: str, k: int, by: str, *, log: bool) -> tuple[dict[str, Any], str, str]:
    """The points of the scatter, and what its axes are. Raise MissingDataError where a force was not captured."""
    gradient, som, x, y = run.force_axes(layer, k, by)
    rates = run.capture_or_none(f"{layer}/win_rate", k)
    rates = np.full(len(som), np.nan) if rates is None else rates.astype(np.float64)
    a, b = (figures.positive(gradient), figures.positive(som)) if log else (gradient, som)
    data = {"x": a, "y": b, "win_rate": rates, "feature": np.arange(len(som)), "gradient": gradient, "som": som}
    return data, x, y


def detail_frame(run: Recorded, layer: str, k: int, feature: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The four pictures of a feature: the three movements share one symmetric scale, the weight has its own."""
    try:
        found = run.force_detail(layer, k, feature)
    except RewindError as error:
        return {"problem": said(error, run)}, {}
    parts = {
        "weight": found.weight,
        "gradient delta (optimizer)": found.grad_delta,
        "SOM delta": found.som_delta,
        "combined delta": found.combined,
    }
    arrays = {name: pixels(values) for name, values in parts.items()}
    own = _limit(found.weight)
    shared = max(_limit(v) for v in (found.grad_delta, found.som_delta, found.combined))
    pictures = [
        {"name": name, "norm": float(np.linalg.norm(v)), "limit": own if name == "weight" else shared}
        for name, v in parts.items()
    ]
    words = [(f"cosine of gradient and SOM delta: {cosine_words(found.cosine)}", "num")]
    scales = [("weight", own), ("deltas", shared)]
    return {"title": f"Feature {feature}, step {k}", "pictures": pictures, "scales": scales, "words": words}, arrays


def cosine_words(cosine: float) -> str:
    """A cosine of two movements, and what it says."""
    if np.isnan(cosine):
        return "NaN, as one of them is zero or not finite"
    word = "agree" if cosine > 0 else "fight" if cosine < 0 else "have no common direction"
    return f"{cosine:.4f}, they {word}"


def unseen(data: dict[str, Any], *, log: bool) -> str:
    """Which features have no point in the scatter, and why, in words; empty where all have one."""
    x, y = np.asarray(data["x"], float), np.asarray(data["y"], float)
    lost = np.flatnonzero(~(np.isfinite(x) & np.isfinite(y)))
    if not len(lost):
        return ""
    some = ", ".join(map(str, lost[:8])) + (" …" if len(lost) > 8 else "")
    why = "NaN, infinite, or zero, which a log axis has no place for" if log else "NaN or infinite"
    return f"no point for {len(lost)} of {len(x)} features ({some}): {why}"


def plain_detail_frame(
    run: Recorded, layer: str, k: int, feature: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The pictures of a feature of any run: its weight, the gradient, how the weight moved, each at its own scale."""
    try:
        gradient, moved = run.plain_forces(layer, k)
        if feature >= len(gradient):
            return {"problem": f"there is no feature {feature}: they go from 0 to {len(gradient) - 1}"}, {}
        parts = {"weight": run.weight(run.main_weight(layer), k), "gradient": gradient, "movement": moved}
    except RewindError as error:
        return {"problem": said(error, run)}, {}
    rows = {name: values[feature] for name, values in parts.items()}
    pictures = [{"name": n, "norm": float(np.linalg.norm(v)), "limit": _limit(v)} for n, v in rows.items()]
    cosine = float(forces.row_cosines(gradient[feature][None], moved[feature][None])[0])
    agreed = cosine_words(cosine).partition(", they")[0]  # Against the gradient is where an optimizer goes.
    words = [(f"cosine of gradient and movement: {agreed}", "num")]
    scales = [(one["name"], one["limit"]) for one in pictures]
    frame = {"title": f"Feature {feature}, step {k}", "pictures": pictures, "scales": scales, "words": words}
    return frame, {n: pixels(v) for n, v in rows.items()}


def pixels(row: NDArray[np.float64]) -> NDArray[np.float32]:
    """A row of a weight [F] as a picture: square where F is a square, else one line."""
    side = square_side(len(row))
    return np.ascontiguousarray(row.reshape(side, -1) if side else row[None], np.float32)


def captured_ratio(run: Recorded, layer: str, by: str) -> bool:
    """Whether both sides of the ratio were captured: then each step has it, and no weight need be read."""
    return by in _RATIOS and set(_RATIOS[by]) <= set(run.metrics_of(layer))


def ratio_over_steps(run: Recorded, layer: str, by: str, after: int | None = None) -> dict[str, NDArray[Any]]:
    """SOM over gradient at the steps after `after`, as the force `by` measures both; from captured norms where they are."""
    if captured_ratio(run, layer, by):
        top, bottom = _RATIOS[by]
        query = f'''
            select step, avg("{top}") / avg("{bottom}") r from features
            where layer = ? and step > ? and "{top}" is not null and "{bottom}" is not null group by step order by step
        '''
        rows = run.trace.sql(query, [layer, -1 if after is None else after]).fetchnumpy()
        return {"x": rows["step"], "ratio": np.asarray(np.ma.filled(rows["r"], np.nan), np.float64)}
    steps, values = [], []
    for k in sampled(run, after, SAMPLE):
        try:
            gradient, som, *_ = run.force_axes(layer, k, by)
        except MissingDataError:
            continue
        steps.append(k)
        values.append(forces.force_ratio(som, gradient))
    return {"x": np.array(steps), "ratio": np.array(values)}


def _limit(values: NDArray[np.float64]) -> float:
    low, high = figures.finite_range(values)
    return max(abs(low), abs(high)) or 1.0


class ForcesView:
    """Scatter, pictures of the chosen feature, and the ratio over all steps."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._options = Options(host, "forces", by="", log=True)
        self._built_log, self._empty = True, False
        self._bar = Bar(self._set)
        self._pictures = Pictures(sizing_mode="fixed", width=392, margin=(0, 0, 12, 0))
        self._place = pn.Column(sizing_mode="stretch_width")
        self._line = StepLine(host, "SOM : gradient over all steps", "ratio", ("ratio",), log=True)
        self._note = Note(self._heard, visible=False)
        self._row = pn.Row(self._place, self._pictures, sizing_mode="stretch_width")
        self.root = pn.Column(self._bar, self._note, self._row, self._line.root, sizing_mode="stretch_width")
        self._plot: Figure | None = None
        self._source = ColumnDataSource({name: [] for name in ("x", "y", "win_rate", "feature", "gradient", "som")})
        self._scale: ColorBar | None = None

    def show(self) -> None:
        """Paint the forces of the step."""
        run, chosen = self._host.run, self._host.selection
        by = self._by
        pictures = plain_detail_frame if by == "plain" else detail_frame
        self._pictures.send(*pictures(run, chosen.layer, chosen.step, chosen.feature))
        try:
            data, x, y = scatter_data(run, chosen.layer, chosen.step, by, log=self._options["log"])
        except RewindError as error:
            self._say({"problem": said(error, run), **rerun_action(run, chosen.step)})
            self._source.data = {name: [] for name in self._source.data}
            return
        self._say({})
        if self._plot is None or self._built_log != self._options["log"]:
            self._build()
        assert self._plot is not None
        assert self._scale is not None
        figures.fill(self._plot, self._host, beside=545, least=470)
        known = f"{chosen.layer}/win_rate" in run.capture_keys
        self._scale.visible = known
        self._plot.title.text = "Forces per feature" + (", coloured by win rate" if known else "")
        self._scale.color_mapper.nan_color = UNKNOWN if known else figures.PALETTE[0]
        self._source.data = data
        place = self._source.data["feature"] == chosen.feature
        self._source.selected.indices = np.flatnonzero(place).tolist()
        self._plot.xaxis.axis_label, self._plot.yaxis.axis_label = x, y
        self._bar.send({"controls": self._controls(), "words": self._words()})
        most = None if captured_ratio(run, chosen.layer, by) else SAMPLE
        key = (run, chosen.layer, by)
        title = "movement : gradient over all steps" if by == "plain" else "SOM : gradient over all steps"
        self._line.show(key, lambda run, after: ratio_over_steps(run, chosen.layer, by, after), title=title, most=most)

    def _say(self, empty: dict[str, Any]) -> None:
        """Show the empty state in the place of all else, or all else; of a step run again alone there is no line."""
        run, k = self._host.run, self._host.selection.step
        self._note.visible, self._row.visible = bool(empty), not empty
        self._line.root.visible = not empty and not (self._by == "plain" and run.took(k))
        if empty or self._empty:
            self._note.send(empty)
        self._empty = bool(empty)
        if empty:
            self._bar.send({"controls": self._controls()})

    def grow(self) -> None:
        """The run on show has grown, and the line with it."""
        self._line.grow()

    def restyle(self) -> None:
        """Take on the page's colours."""
        figures.restyle([p for p in (self._plot, self._line.plot) if p is not None], dark=self._host.dark)
        if self._plot is not None:
            # Of the scale only what stands out from the card.
            self._plot.select_one(LinearColorMapper).palette = VIRIDIS[64:] if self._host.dark else VIRIDIS[:232]
            edge = (figures.DARK if self._host.dark else figures.LIGHT)["soft"]
            self._plot.renderers[0].glyph.line_color = self._plot.renderers[0].nonselection_glyph.line_color = edge
        self._pictures.tell({"kind": "theme"})

    def export(self) -> dict[str, NDArray[Any]]:
        """The points of the scatter."""
        points = {n: np.asarray(v) for n, v in self._source.data.items() if n not in ("x", "y")}
        return points if len(points["feature"]) else {}

    def python(self) -> str:
        """How a notebook gets the same."""
        run, c = self._host.run, self._host.selection
        if self._by != "plain":
            call = f"run.force_detail({c.layer!r}, {c.step}, {c.feature})"
            return f"from apps.recorded import Recorded\n\nrun = Recorded(trace)\n{call}"
        name = run.main_weight(c.layer)
        moved = f"moved = trace.state({c.step + 1})[{name!r}] - trace.state({c.step})[{name!r}]"
        if not (run.took(c.step) or self._note.visible):
            return f"gradient = trace.grads({c.step})[{name!r}]\n{moved}"
        again = f"session.seek({c.step})\n    session.step()\n    gradient = session.grads[{name!r}]"
        return f"from replay import Session\n\nwith Session(trace) as session:\n    {again}\n{moved}"

    @property
    def _by(self) -> str:
        """By what the forces are measured: as it was set, else by what this run has."""
        run, layer, wanted = self._host.run, self._host.selection.layer, self._options["by"]
        if wanted in FORCES:
            return wanted
        return "mask" if run.has_forces(layer) else "plain"

    def _controls(self) -> list[dict[str, Any]]:
        by, log, layer = self._by, self._options["log"], self._host.selection.layer
        there = list(FORCES.items()) if self._host.run.has_forces(layer) else [(by, FORCES[by])]
        return [
            *layer_control(self._host),
            {"name": "by", "label": "forces by", "kind": "select", "options": there, "value": by},
            {"name": "log", "label": "log axes", "kind": "toggle", "value": log},
        ]

    def _words(self) -> list[tuple[str, str]]:
        run, chosen = self._host.run, self._host.selection
        lost = unseen(self._source.data, log=self._options["log"])
        last = [(lost, "unknown")] if lost else []
        if self._by == "plain":
            return last
        ratio = forces.force_ratio(self._source.data["som"], self._source.data["gradient"])
        words = [(f"SOM : gradient {short(ratio)}", "num")]
        try:
            counts = forces.agreement(run.force_cosines(chosen.layer, chosen.step))
        except RewindError:
            return [*words, *last]
        neither = [(f"{counts.neither} neither", "chip unknown")] if counts.neither else []
        counted = [(f"{counts.agree} agree", "chip verified"), (f"{counts.fight} fight", "chip diverged"), *neither]
        return [*counted, *words, *last]

    def _build(self) -> None:
        self._built_log = self._options["log"]
        kind = "log" if self._built_log else "linear"
        plot = figures.chart("Forces per feature", "", "", height=540, x_axis_type=kind, y_axis_type=kind)
        plot.xaxis.formatter = plot.yaxis.formatter = figures.plain_numbers()
        mapper = LinearColorMapper(VIRIDIS, low=0, high=1, nan_color=UNKNOWN)
        points = plot.scatter(
            "x",
            "y",
            source=self._source,
            size=10,
            line_color="#566072",
            fill_color={"field": "win_rate", "transform": mapper},
            nonselection_fill_alpha=0.85,
            selection_line_color="#D55E00",
            selection_line_width=3,
        )
        plot.add_tools(
            figures.hover(
                ("feature", "@feature"),
                ("gradient side", "@gradient{%.4g}"),
                ("other side", "@som{%.4g}"),
                ("win rate", "@win_rate{%.4g}"),
                renderers=[points],
            )
        )
        self._scale = ColorBar(color_mapper=mapper, width=10, background_fill_alpha=0)
        plot.add_layout(self._scale, "right")
        plot.on_event(Tap, self._tapped)
        self._plot = plot
        self._place[:] = [figures.card(plot, right=12)]
        self.restyle()

    def _tapped(self, event: Tap) -> None:
        x, y = np.asarray(self._source.data["x"]), np.asarray(self._source.data["y"])
        if event.x is None or event.y is None or not np.isfinite(x * y).any():
            return
        if self._options["log"]:
            x, y, at = np.log10(x), np.log10(y), np.log10([event.x, event.y])
        else:
            at = np.array([event.x, event.y])
        far = sum(((v - p) / ((np.nanmax(v) - np.nanmin(v)) or 1)) ** 2 for v, p in zip((x, y), at, strict=True))
        self._host.choose(feature=int(np.nanargmin(far)))

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "rerun":
            self._host.rerun()

    def _set(self, message: dict[str, Any]) -> None:
        if message.get("name") == "layer":
            self._host.choose(layer=message.get("value"))
        elif message.get("do") == "set":
            self._options.set(message.get("name"), message.get("value"))
