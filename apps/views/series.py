"""Scalars as the lines of a chart: where their points lie, smoothed, thinned, what is not finite. Room: apps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.signal import lfilter

from analysis.metrics import downsample
from apps.views import figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

POINTS: Final = 2000
AXES: Final = {"step": "step", "epoch": "epoch", "samples": "samples seen", "time": "seconds of training"}


@dataclass(frozen=True)
class Series:
    """A scalar at the steps that gave one, be it NaN: [n] each. `smooth` is `values` where nothing is smoothed."""

    x: NDArray[np.float64]
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    smooth: NDArray[np.float64]

    def within(self, first: float, last: float) -> Series:
        """The part from x `first` to `last` and one point beyond at either end."""
        begin, end = np.searchsorted(self.x, [first, last])
        part = slice(max(0, int(begin) - 1), int(end) + 1)
        return Series(self.x[part], self.steps[part], self.values[part], self.smooth[part])


def x_values(scalars: dict[str, NDArray[np.float64]], axis: str, first: float = -1) -> NDArray[np.float64]:
    """Where the points of a run lie on the chosen axis, [T]; `first` is the first step that is the run's own."""
    steps = scalars["step"]
    if axis == "samples":
        return np.cumsum(np.nan_to_num(scalars.get("batch_size", np.ones_like(steps))))
    if axis == "time":
        return _seconds(scalars, first)
    if axis == "epoch" and not np.isnan(scalars.get("epoch", np.array([np.nan]))).all():
        epochs = scalars["epoch"]
        index, size = scalars["batch_index"], np.maximum(np.nanmax(scalars["batch_index"]) + 1, 1)
        return epochs + np.nan_to_num(index) / size
    return steps


def _seconds(scalars: dict[str, NDArray[np.float64]], first: float) -> NDArray[np.float64]:
    """Seconds since the first step ended, without the breaks between sessions, or between a branch and its parent."""
    times, took = scalars["time"], scalars.get("duration", np.zeros_like(scalars["time"]))
    if not len(times):
        return times
    sessions = scalars.get("session", np.zeros_like(times))
    begun = np.flatnonzero((np.diff(sessions) != 0) | (scalars["step"][1:] == first)) + 1
    passed = np.diff(times, prepend=times[0])
    passed[begun] = np.fmin(np.fmax(passed[begun], 0), np.nan_to_num(took[begun]))
    return np.cumsum(np.nan_to_num(passed))


def smoothed(values: NDArray[np.float64], amount: float) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start; NaN stays NaN and does not spread. `amount` 0..0.99."""
    if not amount:
        return values
    finite = np.isfinite(values)
    count = int(finite.sum())
    sums = lfilter([1 - amount], [1, -amount], values[finite])
    out = np.full(len(values), np.nan)
    out[finite] = sums / (1 - amount ** np.arange(1, count + 1))
    return out


def line_data(series: Series, *, log: bool) -> dict[str, NDArray[Any]]:
    """What a line shows of a series: about POINTS of its points, extremes kept; what the axis cannot show is a gap."""
    chosen = downsample(series.values, POINTS) if len(series.values) else np.empty(0, np.int64)
    y, smooth = series.values[chosen], series.smooth[chosen]
    y = np.where(np.isfinite(y), y, np.nan)
    if log:
        y, smooth = figures.positive(y), figures.positive(smooth)
    return {"x": series.x[chosen], "y": y, "smooth": smooth, "step": series.steps[chosen]}


def dotted(series: Series, steps: int) -> bool:
    """Whether its points are marked: few of the run's `steps` gave one, and the line between them was not logged."""
    return 0 < np.isfinite(series.values).sum() <= min(300, max(1, steps // 2))


def bad_data(series: Series) -> dict[str, Any]:
    """The marks on the axis: where values are NaN or infinite, at most 500 of each run."""
    bad = np.flatnonzero(~np.isfinite(series.values))
    bad = bad[:: max(1, len(bad) // 500)]
    words = ["NaN" if np.isnan(v) else "inf" if v > 0 else "-inf" for v in series.values[bad]]
    return {"x": series.x[bad], "y": np.zeros(len(bad)), "what": words, "step": series.steps[bad]}
