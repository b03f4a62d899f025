"""The tab Batch: the images of this step, their labels, losses and who won them (S4.2). Room: apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import panel as pn

from apps.pictures import columns_of, sheets
from apps.surfaces import Grid
from apps.views.options import Options
from apps.views.view import rerun_action, said
from tracer.errors import RewindError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recorded import Recorded
    from apps.views.view import Host


SIZES: Final = ("fit", "28", "42", "56", "84")
"""How large a picture is drawn, in pixels; `fit`: all of the batch in sight, where it can be."""


def batch_frame(run: Recorded, k: int, sample: int = 0) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame of step `k`'s batch: header and arrays; a header with `problem` where it cannot be shown."""
    try:
        batch = run.batch(k)
    except RewindError as error:
        action = rerun_action(run, k) if run.makes_batch(k) else {}
        return {"problem": said(error, run), **action}, {}
    header: dict[str, Any] = {"size": batch.size, "labels": batch.labels, "text": batch.text}
    header["note"] = batch.note
    if batch.images is None:
        header["sheets"] = [vars(sheet) for sheet in sheets(batch.value, sample)]
        return header, {}
    values = {n: v for n, v in run.per_sample(k).items() if len(v) == len(batch.images)}
    return header, {"images": batch.images, **{n: v.astype(np.float32) for n, v in values.items()}}


class BatchView:
    """The batch of the chosen step."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sample, self._pictured = 0, False
        self._options = Options(host, "batch", sort="position", size="fit")
        self._grid = Grid(self._heard)
        self.root = pn.Column(self._grid, sizing_mode="stretch_width")

    def show(self) -> None:
        """Paint the batch."""
        header, arrays = batch_frame(self._host.run, self._host.selection.step, self._sample)
        self._pictured = bool(arrays)
        if arrays:
            header |= {"winners": self._winners(), "sort": self._options["sort"], "sizes": SIZES}
            header["shown_size"] = self._options["size"]
        self._grid.send({**header, "sample": self._sample}, arrays)

    def restyle(self) -> None:
        """Labels have the page's colour."""
        self._grid.tell({"kind": "theme"})

    def export(self) -> dict[str, NDArray[Any]]:
        """Labels and values per sample; the pictures too where the format holds them."""
        header, arrays = batch_frame(self._host.run, self._host.selection.step)
        if not arrays:
            value = self._host.run.batch(self._host.selection.step).value if "sheets" in header else None
            return columns_of(value)
        labels = {} if header["labels"] is None else {"label": np.array(header["labels"])}
        return {"position": np.arange(header["size"]), **labels, **arrays}

    def _winners(self) -> list[tuple[int, float]]:
        try:
            return self._host.run.winners(self._host.selection.step, self._sample)
        except RewindError:
            return []

    def _chosen(self) -> None:
        """Another sample is looked at."""
        if self._pictured:
            self._grid.tell({"kind": "winners", "winners": self._winners()})
        else:
            self.show()

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("do") == "sample" and isinstance(message.get("sample"), int):
            self._sample = max(0, message["sample"])
            self._chosen()
        elif message.get("do") == "set":
            self._options.set(message.get("name"), message.get("value"))
        elif message.get("do") == "rerun":
            self._host.rerun()
        elif message.get("do") == "feature":
            self._host.choose(feature=message.get("feature"))
