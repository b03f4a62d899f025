"""The tab Matrices: how alike the features are, in two sources side by side, at any two steps (S4.6). Room: apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn

from analysis.similarity import order_by_clustering, order_by_metric, stats_over_steps
from apps.surfaces import Bar, Maps
from apps.views import figures
from apps.views.options import Options
from apps.views.over_steps import StepLine, sampled
from apps.views.scales import SCALES, scale
from apps.views.view import rerun_action, said
from tracer.errors import RewindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from analysis.similarity import OffDiagonal
    from apps.recorded import Recorded
    from apps.views.view import Host

ORDERS = {"index": "index", "cluster": "clustering"}
SAMPLE = 150
"""So many steps at most make the line over all steps."""
LARGE = 160
"""Rows from which on a matrix goes to the page as colours, and as numbers when somebody points at it."""


def figures_of(stats: OffDiagonal) -> str:
    """The figures off the diagonal in words."""
    if not stats.pairs:
        return "no pair of rows has a cosine"
    lost = f", {stats.undefined} pairs undefined" if stats.undefined else ""
    # A figure stays beside its name where the line breaks.
    parts = [f"{n}\u00a0{getattr(stats, n):.4f}" for n in ("mean", "std", "min", "max")]
    return f"off the diagonal: {'  '.join(parts)}{lost}"


def matrix_pair(
    run: Recorded, left: tuple[str, int], right: tuple[str, int], order: NDArray[np.int64] | None, *, difference: bool
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame of two cosine matrices, each (source, step), in `order`; a third is left minus right."""
    maps, arrays = [], {}
    for name, (source, k) in (("left", left), ("right", right)):
        matrix, stats = run.cosine(source, k)
        arrays[name] = ordered(matrix, order)
        maps.append(_map(name, f"{source}, step {k}", figures_of(stats)))
    if difference and arrays["left"].shape == arrays["right"].shape:
        arrays["difference"] = arrays["left"] - arrays["right"]
        maps.append(_map("difference", "left minus right", ""))
    return {"maps": maps, "order": None if order is None else order.tolist()}, arrays


def ordered(matrix: NDArray[np.float64], order: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Rows and columns in another order; as it is where the order is of another size."""
    if order is None or len(order) != len(matrix):
        return matrix
    return matrix[np.ix_(order, order)]


def as_levels(maps: list[dict[str, Any]], arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.uint8]]:
    """Matrices as the 255 colours of their scales, a quarter of the bytes; NaN is 255."""
    levels = {}
    for one in maps:
        values, low, high = arrays[one["name"]], one["low"], one["high"]
        scaled = np.clip((values.astype(np.float32) - low) * (254 / (high - low)), 0, 254)
        levels[one["name"]] = np.where(np.isnan(scaled), 255, np.rint(scaled)).astype(np.uint8)
    return levels


def over_steps(run: Recorded, source: str, after: int | None = None) -> dict[str, NDArray[Any]]:
    """Mean, standard deviation and maximum off the diagonal at some of the steps after `after`."""
    steps, stats = stats_over_steps(run.each(source, sampled(run, after, SAMPLE)))
    return {"x": steps, **{n: np.array([getattr(s, n) for s in stats]) for n in ("mean", "std", "max")}}


def _map(name: str, title: str, words: str) -> dict[str, Any]:
    return {
        "name": name,
        "short": name,
        "title": title,
        "figures": words,
        "low": -1.0,
        "high": 1.0,
        "colours": "diverging",
    }


class MatricesView:
    """Two matrices with one cursor, and the left one's figures over all steps."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._options = Options(
            host, "matrices", left="", right="", at="", order="index", colours="auto", difference=False
        )
        self._bar = Bar(self._set)
        self._maps = Maps(self._heard)
        self._line = StepLine(host, "", "cosine", ("mean", "std", "max"))
        self.root = pn.Column(self._bar, self._maps, self._line.root, sizing_mode="stretch_width")
        self._shown: dict[str, NDArray[Any]] = {}
        self._header: dict[str, Any] = {}

    def show(self) -> None:
        """Paint both matrices; large ones in colours alone, until somebody points at them."""
        run, chosen, o = self._host.run, self._host.selection, self._options
        if not run.sources:
            self._maps.send({"problem": _NOTHING, **rerun_action(run, chosen.step)})
            return
        left, right, other = self._sides(run)
        try:
            order = self._order(run, chosen.step)
            header, arrays = matrix_pair(run, (left, chosen.step), (right, other), order, difference=o["difference"])
        except RewindError as error:
            header, arrays = {"problem": said(error, run), **rerun_action(run, chosen.step)}, {}
        words = scale(header.get("maps", []), arrays, o["colours"])
        self._bar.send({"controls": self._controls(run), "words": words})
        self._shown, self._header = arrays, {**header, "feature": chosen.feature}
        large = max((len(a) for a in arrays.values()), default=0) >= LARGE
        if large:
            self._maps.send({**self._header, "levels": True}, as_levels(header["maps"], arrays))
        else:
            self._maps.send(self._header, arrays)
        title = f"{left} off the diagonal, over all steps"
        self._line.show((run, left), lambda twin, after: over_steps(twin, left, after), title=title, most=SAMPLE)

    def grow(self) -> None:
        """The run on show has grown, and the line with it."""
        self._line.grow()

    def restyle(self) -> None:
        """Take on the page's colours."""
        figures.restyle([self._line.plot], dark=self._host.dark)
        self._maps.tell({"kind": "theme"})

    def export(self) -> dict[str, NDArray[Any]]:
        """Both matrices, in long form for a table and whole for .npz."""
        if "left" not in self._shown:
            return {}
        rows, columns = np.indices(self._shown["left"].shape)
        long = {"row": rows.ravel(), "column": columns.ravel(), "left": self._shown["left"].ravel()}
        return long | {f"{n}_matrix": v for n, v in self._shown.items()}

    def python(self) -> str:
        """How a notebook gets the same."""
        k = self._host.selection.step
        left, right, other = self._sides(self._host.run)
        recorded = "from apps.recorded import Recorded\n\nrun = Recorded(trace)\n"
        return f"{recorded}left, figures = run.cosine({left!r}, {k})\nright, _ = run.cosine({right!r}, {other})"

    def _sides(self, run: Recorded) -> tuple[str, str, int]:
        """What is on the left, what on the right, and at which step that is: as they were set, else what tells most."""
        o, sources, step = self._options, run.sources, self._host.selection.step
        left = o["left"] if o["left"] in sources else sources[0]
        telling = next((s for s in sources if s.endswith("som_targets")), sources[min(1, len(sources) - 1)])
        right = o["right"] if o["right"] in sources else telling
        alone = run.first if len(sources) == 1 else step  # One source against itself says nothing: how it began does.
        at = int(o["at"]) if o["at"].isdigit() and len(o["at"]) < 16 else alone
        return left, right, min(max(at, run.first), run.last)

    def _controls(self, run: Recorded) -> list[dict[str, Any]]:
        o, (left, right, at) = self._options, self._sides(run)
        sources = [(s, s) for s in run.sources]
        shown = "" if at == self._host.selection.step and not o["at"] else str(at)
        metrics = [(n, n.partition(":")[2].replace("_", " ")) for n in self._metrics(run)]
        return [
            {"name": "left", "label": "left", "kind": "select", "options": sources, "value": left},
            {"name": "right", "label": "right", "kind": "select", "options": sources, "value": right},
            {"name": "at", "label": "at step", "kind": "number", "value": shown, "hint": "same"},
            {
                "name": "order",
                "label": "order by",
                "kind": "select",
                "options": [*ORDERS.items(), *metrics],
                "value": self._how(run),
            },
            {
                "name": "colours",
                "label": "colours",
                "kind": "select",
                "options": list(SCALES.items()),
                "value": o["colours"] if o["colours"] in SCALES else "auto",
            },
            {"name": "difference", "label": "difference", "kind": "toggle", "value": o["difference"]},
        ]

    def _metrics(self, run: Recorded) -> list[str]:
        return [f"metric:{m}" for m in run.metrics_of(self._host.selection.layer)]

    def _how(self, run: Recorded) -> str:
        """What the rows are ordered by: as it was set, where this run and layer have it."""
        how = self._options["order"]
        return how if how in ORDERS or how in self._metrics(run) else "index"

    def _order(self, run: Recorded, k: int) -> NDArray[np.int64] | None:
        how = self._how(run)
        if how == "cluster":
            return order_by_clustering(run.source(self._sides(run)[0], k))
        if how.startswith("metric:"):
            return order_by_metric(run.capture(f"{self._host.selection.layer}/{how.partition(':')[2]}", k))
        return None

    def _set(self, message: dict[str, Any]) -> None:
        if message.get("do") == "set":
            self._options.set(message.get("name"), message.get("value"))

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "feature":
            self._host.choose(feature=message.get("feature"))
        elif message.get("do") == "rerun":
            self._host.rerun()
        elif message.get("do") == "exact" and self._shown:
            self._maps.send(self._header, self._shown)


_NOTHING = (
    "There is no matrix to compare: no weights are stored and no [features, inputs] tensor was captured. "
    "Record with --detail full, or capture one: tracer.capture('layer/name', tensor)."
)
