"""Audits of recorded numbers: zeros, constants, NaN, gaps, duplicates, clocks, means (S1.4).

Room: analysis. Arrays in, findings out; each audit returns an empty list for what is healthy. Shapes: N recorded values
with their step numbers. Thresholds err on the side of silence: a finding on a healthy run costs more trust than a
missed one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from analysis.finding import Finding, metric_query, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray

_LOSSES = frozenset({"loss", "nll", "mse", "rmse", "mae", "perplexity", "ppl", "elbo"})
_SCORES = frozenset(
    {"acc", "accuracy", "error", "err", "score", "auc", "auroc", "f1", "iou", "miou", "reward", "return", "precision"}
    | {"recall", "bleu", "dice", "top1", "top5", "psnr", "ssim", "norm"}
)


def words(name: str) -> frozenset[str]:
    """The lower-case words of a metric's name: `valLoss/total` gives val, loss, total."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return frozenset(word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word)


def is_measured(name: str) -> bool:
    """Whether the name says that a metric is measured: a setting or a counter may well be zero or constant."""
    return bool(words(name) & (_LOSSES | _SCORES))


def all_zero(name: str, steps: ArrayLike, values: ArrayLike, *, least: int = 3) -> list[Finding]:
    """A measured metric [N] whose every value is exactly 0. `least` values are needed to say so."""
    at, series = _pair(steps, values)
    if not is_measured(name) or len(series) < least or np.any(series != 0):
        return []
    evidence = f"{name} is exactly 0 at all {len(series)} recorded values."
    advice = "Look at where it is computed and logged: an accumulator that is reset too early, or an integer division."
    return [Finding("all_zero", int(at[0]), evidence, metric_query(name), advice)]


def constant(name: str, steps: ArrayLike, values: ArrayLike) -> list[Finding]:
    """A measured metric [N] that never changes by one bit (a validation loss of 9.539 at every epoch).

    A loss must be seen 3 times, another score 10 times; a score that is saturated at 1 or 100 may well stay there.
    Zeros are `all_zero`'s.
    """
    at, series = _pair(steps, values)
    loss = bool(words(name) & _LOSSES)
    if not is_measured(name) or len(series) < (3 if loss else 10) or np.any(series != series[0]):
        return []
    if series[0] == 0 or (not loss and series[0] in (1.0, 100.0)):
        return []
    evidence = f"{name} is {series[0]:.6g} at all {len(series)} recorded values, to the last bit."
    advice = "What it measures does not see the training: another model object, cached outputs, or data of one batch."
    return [Finding("constant", int(at[0]), evidence, metric_query(name), advice)]


def zero_beside_falling_loss(name: str, steps: ArrayLike, values: ArrayLike, loss: ArrayLike) -> list[Finding]:
    """A measured metric [N] of nothing but 0 while `loss` [N] of the same steps fell to half or less.

    The loss counts by the medians of its first and last tenth; 20 values are needed.
    """
    at, series = _pair(steps, values)
    falling = np.asarray(loss, dtype=np.float64)
    if not is_measured(name) or len(series) < 20 or len(falling) != len(series) or np.any(series != 0):
        return []
    first, last = ends(falling)
    if not last <= 0.5 * first:
        return []
    evidence = f"{name} is 0 at all {len(series)} values while the loss fell from {first:.4g} to {last:.4g}."
    query = (
        f"select s.step, s.loss, m.value from steps s join metrics m using (step) where m.name = {quoted(name)}"
        " order by s.step"
    )
    advice = "The training works and the metric does not: check what is logged, and when its accumulator is reset."
    return [Finding("zero_beside_falling_loss", int(at[0]), evidence, query, advice)]


def nonfinite(name: str, steps: ArrayLike, values: ArrayLike) -> list[Finding]:
    """The first NaN or infinity of a metric [N], and how many there are.

    A gradient norm may be infinite or NaN now and then while a GradScaler looks for its scale: for a name with `grad`
    in it there is a finding only where it is so at the last value or at more than a tenth of them.
    """
    at, series = _pair(steps, values)
    bad = ~np.isfinite(series)
    if not bad.any() or ("grad" in words(name) and not bad[-1] and bad.mean() <= 0.1):
        return []
    first = int(np.flatnonzero(bad)[0])
    kind = "NaN" if np.isnan(series[first]) else "infinite"
    evidence = f"{name} is {kind} first at step {at[first]}; {int(bad.sum())} of {len(series)} values are not finite."
    advice = "Go to the step before and look at its batch, gradient and learning rate: `rewind until T --backward`."
    query = metric_query(name, "not isfinite(value)")
    return [Finding("nan", int(at[first]), evidence, query, advice)]


def nonfinite_tensors(states: Iterable[tuple[int, Mapping[str, ArrayLike]]]) -> list[Finding]:
    """The first step at which a tensor holds more NaN or infinities than in the first state, and which tensors do.

    `states` gives (step, {name: array}) in order, tensors in the order of the model; it is read up to the first finding
    only. What is not finite from the beginning and stays so (an attention mask of -inf) is no finding.
    """
    before: dict[str, int] | None = None
    for step, tensors in states:
        counts = {name: _nonfinite_count(array) for name, array in tensors.items()}
        before = counts if before is None else before
        grown = [name for name, count in counts.items() if count > before.get(name, 0)]
        if grown:
            return [_tensor_finding(step, grown, counts)]
    return []


def gaps(steps: ArrayLike, expected: ArrayLike | None = None) -> list[Finding]:
    """Step numbers that are missing from the recorded ones [N].

    `expected` says which ought to be there (with `every=N` not all); by default all from the first to the last.
    """
    present = np.unique(np.asarray(steps, dtype=np.int64))
    if not present.size:
        return []
    wanted = np.arange(present[0], present[-1] + 1) if expected is None else np.asarray(expected, dtype=np.int64)
    missing = np.setdiff1d(wanted, present)
    if not missing.size:
        return []
    evidence = f"{missing.size} of {wanted.size} steps are not recorded, the first is {missing[0]}."
    query = "select step, kind, detail from events where kind = 'dropped' order by step"
    advice = "The events say why a step was dropped; a full disk and a killed process are the usual causes."
    return [Finding("gap", int(missing[0]), evidence, query, advice)]


def duplicates(steps: ArrayLike) -> list[Finding]:
    """A step number that occurs more than once among the steps that are not superseded [N]."""
    numbers, counts = np.unique(np.asarray(steps, dtype=np.int64), return_counts=True)
    twice = numbers[counts > 1]
    if not twice.size:
        return []
    evidence = (
        f"{twice.size} steps are recorded more than once, the first is {twice[0]} ({counts[counts > 1][0]} times)."
    )
    query = "select step, count(*) as rows from steps group by step having count(*) > 1 order by step"
    advice = "Two processes wrote into one trace, or a merge went wrong: `rewind repair` rebuilds the index."
    return [Finding("duplicate", int(twice[0]), evidence, query, advice)]


def clock_backwards(
    steps: ArrayLike, times: ArrayLike, sessions: ArrayLike | None = None, *, tolerance: float = 1.0
) -> list[Finding]:
    """A step recorded at an earlier time (seconds, [N]) than the one before it in the same session.

    Less than `tolerance` seconds is a clock being set right, not a fault.
    """
    at, seconds = _pair(steps, times)
    same = np.ones(len(at), dtype=bool) if sessions is None else np.asarray(sessions) == np.roll(sessions, 1)
    back = np.diff(seconds, prepend=seconds[:1]) < -tolerance
    found = np.flatnonzero(back & same & (np.arange(len(at)) > 0))
    if not found.size:
        return []
    i = int(found[0])
    evidence = f"step {at[i]} is {seconds[i - 1] - seconds[i]:.1f} s earlier than the step before it."
    query = "select session, step, time, time - lag(time) over (partition by session order by step) as d from steps"
    return [Finding("clock", int(at[i]), evidence, query, "Durations and rates around this step can't be trusted.")]


def means_disagree(
    name: str, epochs: ArrayLike, values: ArrayLike, batch_sizes: ArrayLike, *, share: float = 0.05
) -> list[Finding]:
    """Mean of batch means and sample-weighted mean that differ by more than `share` in more than half of the epochs.

    [N] epoch numbers, batch means and batch sizes. A short last batch makes a small difference, which is healthy: the
    finding means that whoever compares this run's epoch figures with others must know which mean they are.
    """
    epoch, series = _pair(epochs, values)
    size = np.asarray(batch_sizes, dtype=np.float64)
    numbers = np.unique(epoch)
    apart = [_apart(series[epoch == number], size[epoch == number]) for number in numbers]
    if not numbers.size or np.mean(np.asarray(apart) > share) <= 0.5:
        return []
    evidence = f"the two epoch means of {name} differ by up to {np.nanmax(apart):.0%}: its batches are of unequal size."
    query = f"select epoch, {_column(name, 'batch')}, {_column(name, 'sample')} from epochs order by epoch"
    advice = "Quote the sample-weighted mean, or drop the short batch; never compare one mean with the other."
    return [Finding("means_disagree", None, evidence, query, advice)]


def series_disagree(
    names: tuple[str, str], steps: ArrayLike, a: ArrayLike, b: ArrayLike, *, rtol: float = 1e-3, share: float = 0.01
) -> list[Finding]:
    """Two series [N] that should be the same and differ by more than `rtol` at more than `share` of the steps.

    A value that is NaN in both agrees; in one of them it does not.
    """
    at, first = _pair(steps, a)
    second = np.asarray(b, dtype=np.float64)
    differ = ~np.isclose(first, second, rtol=rtol, atol=0, equal_nan=True)
    if not differ.size or differ.mean() <= share:
        return []
    i = int(np.flatnonzero(differ)[0])
    evidence = (
        f"{names[0]} and {names[1]} differ at {int(differ.sum())} of {len(at)} steps,"
        f" first at step {at[i]}: {first[i]:.6g} and {second[i]:.6g}."
    )
    query = (
        f"select step, a.value, b.value from metrics a join metrics b using (step) where a.name = {quoted(names[0])}"
        f" and b.name = {quoted(names[1])} and a.value is distinct from b.value order by step"
    )
    advice = "One of them is computed elsewhere or at another time: a sum for a mean, before the update for after it."
    return [Finding("series_disagree", int(at[i]), evidence, query, advice)]


def ends(series: NDArray[np.float64]) -> tuple[float, float]:
    """Medians of the first and of the last tenth (at least one value) of [N], NaN left out; NaN where none is left."""
    size = max(1, len(series) // 10)
    parts = (series[:size], series[-size:])
    first, last = (part[~np.isnan(part)] for part in parts)
    return tuple(float(np.median(part)) if part.size else float("nan") for part in (first, last))  # type: ignore[return-value]


def _pair(steps: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    at, series = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
    if at.shape != series.shape or at.ndim != 1:
        raise ValueError(f"steps and values must be two lists of one length, got {at.shape} and {series.shape}")
    return at, series


def _nonfinite_count(array: ArrayLike) -> int:
    values = np.asarray(array)
    return int(values.size - np.isfinite(values).sum()) if values.dtype.kind in "fc" else 0


def _tensor_finding(step: int, names: list[str], counts: Mapping[str, int]) -> Finding:
    first = names[0]
    layer = first.rpartition(".")[0] or first
    others = f", and {len(names) - 1} more tensors" if len(names) > 1 else ""
    evidence = f"{first} (layer {layer}) is the first tensor to hold NaN or infinity: {counts[first]} values{others}."
    query = (
        f"select step, loss, grad_norm, lr from steps where step between {max(step - 5, 0)} and {step} order by step"
    )
    advice = f"Replay step {max(step - 1, 0)} and look at the inputs and the gradient of layer {layer}."
    return Finding("nan_tensor", int(step), evidence, query, advice)


def _apart(values: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    if not np.isfinite(values).all() or not sizes.sum() > 0:
        return 0.0
    by_batch, by_sample = float(values.mean()), float((values * sizes).sum() / sizes.sum())
    return abs(by_batch - by_sample) / max(abs(by_batch), abs(by_sample), np.finfo(np.float64).tiny)


def _column(name: str, mean: str) -> str:
    return '"' + f"{name}_{mean}_mean".replace('"', '""') + '"'
