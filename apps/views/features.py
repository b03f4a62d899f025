"""The tab Features: a row per feature with all that was captured of it, and its status in colour and word (S4.4).

Room: apps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import panel as pn

from analysis.finding import quoted
from analysis.trajectories import status
from apps.surfaces import Table
from apps.views.options import Options
from apps.views.view import rerun_action, said
from tracer.errors import RewindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host


def feature_frame(run: Recorded, layer: str, k: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame of the feature table at step `k`: header and a float32 column per quantity."""
    try:
        columns = run.features(layer, k)
    except RewindError as error:
        return {"problem": said(error, run), **rerun_action(run, k)}, {}
    size = max(len(v) for v in columns.values())
    columns = {n: v for n, v in columns.items() if len(v) == size}
    words = status(columns["win_rate"]) if "win_rate" in columns else ["-"] * size
    arrays = {n: v.astype(np.float32) for n, v in columns.items()}
    return {"layer": layer, "layers": run.rooms, "statuses": words, "lost": lost(run, layer, k, columns)}, arrays


def lost(run: Recorded, layer: str, k: int, columns: dict[str, NDArray[np.float64]]) -> list[str]:
    """Why quantities that were captured at step `k` are not among `columns`, in words."""
    reasons = []
    for name in (n for n in run.metrics_of(layer) if n not in columns):
        key = f"{layer}/{name}"
        if k in run.trace.captures[key]:
            try:
                run.capture(key, k)
            except RewindError as error:
                reasons.append(f"{name} cannot be shown: {error}")
    return reasons


class FeaturesView:
    """The feature table of the chosen step and layer."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._options = Options(host, "features", sort="feature", filter="")
        self._table = Table(self._heard)
        self.root = pn.Column(self._table, sizing_mode="stretch_width")
        self._shown: tuple[Any, ...] = ()

    def show(self) -> None:
        """Paint the table, or only the chosen row where nothing else changed."""
        chosen = self._host.selection
        run = self._host.run
        place = (run, chosen.layer, chosen.step, run.took(chosen.step), run.has_weights(chosen.step))
        own = {"feature": chosen.feature, "sort": self._options["sort"], "filter": self._options["filter"]}
        if place == self._shown:
            self._table.tell({"kind": "feature", **own})
            return
        self._shown = place
        header, arrays = feature_frame(run, chosen.layer, chosen.step)
        self._table.send({**header, **own}, arrays)

    def restyle(self) -> None:
        """Its colours are the page's own."""

    def export(self) -> dict[str, NDArray[Any]]:
        """The table, a column each."""
        header, arrays = feature_frame(self._host.run, self._host.selection.layer, self._host.selection.step)
        if not arrays:
            return {}
        size = len(header["statuses"])
        return {"feature": np.arange(size), "status": np.array(header["statuses"]), **arrays}

    def python(self) -> str:
        """How a notebook gets the same."""
        run, c = self._host.run, self._host.selection
        if c.layer not in run.layers:
            return f"from apps.recorded import Recorded\n\nRecorded(trace).features({c.layer!r}, {c.step})"
        return f'trace.sql("""from features where layer = {quoted(c.layer)} and step = {c.step}""").df()'

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "feature":
            self._host.choose(feature=message.get("feature"))
        elif message.get("do") == "layer":
            self._host.choose(layer=message.get("layer"))
        elif message.get("do") == "set":
            self._options.set(message.get("name"), message.get("value"))
        elif message.get("do") == "rerun":
            self._host.rerun()
