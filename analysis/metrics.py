"""Figures of a run: means that say what they weigh, accuracy, calibration, and series made short for a chart.

Room: analysis. Arrays in, arrays out. NaN and infinity are kept as such: a mean over a NaN is NaN (S1.2). The questions
in SQL are in `analysis.questions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tsdownsample import MinMaxDownsampler

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def batch_mean(values: ArrayLike) -> float:
    """Mean of batch means: `sum(v_i) / n` of [N] per-batch means, each batch counting the same (S1.1). NaN if empty."""
    means = np.asarray(values, dtype=np.float64)
    return float(means.mean()) if means.size else float("nan")


def sample_mean(values: ArrayLike, batch_sizes: ArrayLike) -> float:
    """Mean over samples: `sum(b_i v_i) / sum(b_i)` of [N] per-batch means and batch sizes (S1.1).

    Differs from `batch_mean` when batches are not of one size; both are right for what they say. NaN if empty.
    """
    means, sizes = np.asarray(values, dtype=np.float64), np.asarray(batch_sizes, dtype=np.float64)
    if means.shape != sizes.shape:
        raise ValueError(f"as many batch sizes as values are needed, got {sizes.shape} for {means.shape}")
    return float((means * sizes).sum() / sizes.sum()) if sizes.sum() > 0 else float("nan")


def top_k_correct(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> NDArray[np.bool_]:
    """Per sample whether its label is among the k highest of its scores [N, C]: [N].

    Among equal scores the lower class counts as higher, so that all-equal scores are right for labels below k only. A
    NaN score is the lowest of all.
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    order = np.argsort(np.where(np.isnan(values), np.inf, -values), axis=1, kind="stable")
    found = (order[:, :k] == wanted[:, None]).any(axis=1)
    return found & ~np.isnan(values[np.arange(len(wanted)), wanted])


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Share of samples whose label is among the k highest scores, 0..1 (S1.1). NaN without samples."""
    correct = top_k_correct(scores, labels, k)
    return float(correct.mean()) if correct.size else float("nan")


def rmse(predicted: ArrayLike, actual: ArrayLike) -> float:
    """Root mean squared error of [N] predictions."""
    errors = np.asarray(predicted, dtype=np.float64) - np.asarray(actual, dtype=np.float64)
    return float(np.sqrt(np.mean(errors**2))) if errors.size else float("nan")


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of a classifier: `sum over bins of (n_b / n) |accuracy_b - confidence_b|`, 0..1.

    [N] confidences of the predicted class in 0..1 and whether it was right, in equally wide bins (i/m, (i+1)/m] (Guo,
    Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, eq. 3; m = 15 there).
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if np.isnan(sure).any() or not sure.size:
        return float("nan")
    edges = np.linspace(0, 1, bins + 1)
    inside = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    gap = np.bincount(inside, right, bins) - np.bincount(inside, sure, bins)
    return float(np.abs(gap).sum() / sure.size)


def uncertainty_calibration_error(predicted_std: ArrayLike, errors: ArrayLike, bins: int = 10) -> float:
    """Expected normalized calibration error of a regression: mean over bins of `|RMV - RMSE| / RMV`, 0 at best.

    [N] predicted standard deviations and actual errors, sorted by deviation and cut into bins of as many samples; RMV
    is the root of a bin's mean predicted variance (Levi, Gispan, Giladi and Fetaya, "Evaluating and Calibrating
    Uncertainty Prediction in Regression Tasks", 2019).
    """
    std, wrong = np.asarray(predicted_std, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if not std.size:
        return float("nan")
    order = np.argsort(std, kind="stable")
    parts = np.array_split(order, min(bins, std.size))
    rmv = np.array([np.sqrt(np.mean(std[part] ** 2)) for part in parts])
    actual = np.array([np.sqrt(np.mean(wrong[part] ** 2)) for part in parts])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.abs(rmv - actual) / rmv))


def downsample(values: ArrayLike, points: int = 2000) -> NDArray[np.int64]:
    """Which of [N] values to draw: indices, increasing, about `points` of them, that keep every visible extreme (S2.4).

    The finite values are cut into `points / 2` equal runs, of which the least and the greatest are kept (tsdownsample's
    MinMax), and the first and last value. A gap stays a gap (S1.2): wherever NaN, inf or -inf lie between two chosen
    values, the first of each kind is chosen too. Returns all indices where N is at most `points`.
    """
    series = np.asarray(values)
    if points < 2:
        raise ValueError(f"a line needs at least 2 points, got {points}")
    if len(series) <= points:
        return np.arange(len(series), dtype=np.int64)
    known = np.isfinite(series)
    if known.all():
        return _extremes_of_all(series, points)
    finite = np.flatnonzero(known)
    chosen = _extremes(series, finite, points)
    return np.union1d(chosen, _gaps(series, chosen)).astype(np.int64)


def hardest_samples(
    ids: ArrayLike, losses: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Which samples give the most trouble (S4.9): [N] sample ids and their losses, as often as they were seen.

    Returns distinct ids, their mean losses and how often they were seen, the highest mean first; NaN means come first,
    as nothing is more trouble.
    """
    flat_ids, flat_losses = np.ravel(np.asarray(ids)), np.ravel(np.asarray(losses, dtype=np.float64))
    distinct, inverse, seen = np.unique(flat_ids, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, flat_losses, len(distinct)) / seen
    order = np.argsort(np.where(np.isnan(means), -np.inf, -means), kind="stable")
    return distinct[order].astype(np.int64), means[order], seen[order].astype(np.int64)


def _extremes(series: NDArray, finite: NDArray[np.int64], points: int) -> NDArray[np.int64]:
    if len(finite) <= points:
        return np.union1d(finite, [0, len(series) - 1])
    picked = _extremes_of_all(series[finite], points)
    return np.union1d(finite[picked], [0, len(series) - 1])


def _extremes_of_all(series: NDArray, points: int) -> NDArray[np.int64]:
    kept = np.ascontiguousarray(series, dtype=np.float64)
    picked = MinMaxDownsampler().downsample(kept, n_out=points - points % 2).astype(np.int64)
    return np.union1d(picked, [0, len(kept) - 1])


def _gaps(series: NDArray, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    kinds = (np.isnan(series), np.isposinf(series), np.isneginf(series))
    firsts = [np.empty(0, dtype=np.int64)]
    for kind in kinds:
        where = np.flatnonzero(kind)
        _, first = np.unique(np.searchsorted(chosen, where), return_index=True)
        firsts.append(where[first])
    return np.concatenate(firsts)
