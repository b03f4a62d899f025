"""Audits of what learns: gradients, updates, features, forces, learning rate, frozen parameters.

Room: analysis. Arrays in, findings out; each audit returns an empty list for what is healthy. Shapes: T steps, D
features, P parameters or layers. A finding rests on what lasts (medians over a tenth of the run or more), so that a
warm-up, a spike or a decayed learning rate says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.audits_series import ends
from analysis.finding import Finding, quoted
from analysis.trajectories import DEAD_BELOW, died_at, first_lasting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_LEAST_STEPS = 20


def dead_features(layer: str, steps: ArrayLike, win_rate: ArrayLike, *, below: float = DEAD_BELOW) -> list[Finding]:
    """Features whose win rate [T, D] stays under `below` for at least the last tenth of the run (20 steps or more)."""
    rates = np.asarray(win_rate, dtype=np.float64)
    lasting = max(_LEAST_STEPS, len(rates) // 10)
    deaths = died_at(rates, steps, below=below, at_least=lasting)
    dead = sorted((step, feature) for feature, step in enumerate(deaths) if step is not None)
    if not dead:
        return []
    step, feature = dead[0]
    evidence = (
        f"{len(dead)} of {rates.shape[1]} features of {layer} are dead (win rate under {below:g} to the end),"
        f" the first is feature {feature} from step {step}."
    )
    query = (
        f"select step, feature, win_rate from features where layer = {quoted(layer)} and feature = {feature}"
        " order by step"
    )
    advice = (
        "See whose rows took over their images (weight similarity at that step); a lower SOM rate or a reset revives."
    )
    return [Finding("dead_features", step, evidence, query, advice)]


def exploding_gradient(
    steps: ArrayLike, grad_norm: ArrayLike, *, factor: float = 100.0, run: int = 3, history: int = 20
) -> list[Finding]:
    """A gradient norm [T] over `factor` times the median of the (up to 1000) before it, for `run` steps in a row.

    A single spike is healthy; so are the first `history` steps, whatever they do.
    """
    at, norms = np.asarray(steps), np.asarray(grad_norm, dtype=np.float64)
    # No median is below the least value, so only what exceeds that by the factor needs a look.
    least = np.minimum.accumulate(np.where(np.isfinite(norms), norms, np.inf))
    for i in np.flatnonzero(norms[history:] > factor * least[history - 1 : -1]) + history:
        past = norms[max(i - 1000, 0) : i]
        past = past[np.isfinite(past)]
        usual = float(np.median(past)) if len(past) >= history else float("inf")
        above = norms[i - 1 : i + run] > factor * usual
        # Only the onset counts: what was as high before is not an explosion here.
        if len(above) == run + 1 and above[1:].all() and not above[0]:
            return [_exploding(int(at[i]), float(norms[i]), usual)]
    return []


def vanishing_gradient(
    steps: ArrayLike, grad_norm: ArrayLike, loss: ArrayLike, *, factor: float = 1e-5
) -> list[Finding]:
    """A gradient norm [T] that fell by `factor` while the loss [T] kept more than half of its value.

    Both by the medians of the first and the last tenth. With a loss that fell as well the run has simply converged.
    """
    norms, losses = np.asarray(grad_norm, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if len(norms) < _LEAST_STEPS:
        return []
    (first, last), (loss_first, loss_last) = ends(norms), ends(losses)
    if not (last <= factor * first and first > 0 and loss_last > 0.5 * loss_first):
        return []
    start = first_lasting(norms <= factor * first, steps)
    evidence = f"the gradient norm fell from {first:.3g} to {last:.3g} while the loss is still {loss_last:.4g}."
    query = "select step, grad_norm, loss from steps order by step"
    advice = "Saturated activations, a mask near zero or a dead layer: compare the layers' gradient norms at this step."
    return [Finding("vanishing_gradient", start, evidence, query, advice)]


def vanishing_layers(names: Sequence[str], norms: ArrayLike, *, factor: float = 1e-6) -> list[Finding]:
    """Layers whose gradient norm [T, P] is, in the median, under `factor` of the largest layer's, and not exactly 0.

    A gradient of exactly 0 is a frozen or unused layer, which is `frozen_parameters`' business.
    """
    values = np.asarray(norms, dtype=np.float64)
    if len(values) < _LEAST_STEPS:
        return []
    usual = np.nanmedian(values, axis=0)
    weak = np.flatnonzero((usual > 0) & (usual < factor * np.nanmax(usual)))
    if not weak.size:
        return []
    strongest = int(np.nanargmax(usual))
    evidence = (
        f"the gradient of {names[weak[0]]} is {usual[weak[0]]:.2g} in the median, that of {names[strongest]}"
        f" {usual[strongest]:.2g}; {len(weak)} of {len(names)} layers are so."
    )
    query = "select step, grad_norm, loss from steps order by step"
    advice = "Nothing reaches this layer: look at the activations in front of it, its initial scale, and any mask."
    return [Finding("vanishing_layer", None, evidence, query, advice)]


def update_ratio(
    name: str,
    steps: ArrayLike,
    update_norm: ArrayLike,
    weight_norm: ArrayLike,
    *,
    low: float = 1e-4,
    high: float = 1e-2,
) -> list[Finding]:
    """A weight matrix whose update/weight ratio `|W after - W before| / |W|` ([T] each) is out of `low`..`high`.

    Judged where the run's middle lies: a finding needs the median over the second to ninth tenth of 20 or more steps to
    be out by a factor of 3 (the rule of thumb, 1e-3, is that of Stanford's CS231n course notes; one power of
    ten to either side is healthy, and Adam's first steps and the end of a decayed schedule are outside it). Give it
    matrices only: a bias begins at 0, where the ratio says nothing. Nothing moving at all is `frozen_parameters`'.
    """
    at = np.asarray(steps)
    moved, size = np.asarray(update_norm, dtype=np.float64), np.asarray(weight_norm, dtype=np.float64)
    if len(moved) < _LEAST_STEPS:
        return []
    tenth = len(moved) // 10
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (moved / size)[tenth : len(moved) - tenth]
    known = middle[np.isfinite(middle)]
    usual = float(np.median(known)) if known.size else 0.0
    if usual == 0 or low / 3 <= usual <= high * 3:
        return []
    evidence = f"{name} changes by {usual:.2g} of itself a step in the median, outside {low:g} to {high:g}."
    slow, fast = "Raise its learning rate, or see why its gradient is small.", "Lower its learning rate or warm it up."
    query = "select step, lr, grad_norm, loss from steps order by step"
    return [Finding("update_ratio", int(at[tenth]), evidence, query, slow if usual < low else fast)]


def features_converging(
    layer: str, steps: ArrayLike, off_diagonal_mean: ArrayLike, *, above: float = 0.9, start_below: float = 0.5
) -> list[Finding]:
    """Features that became alike: mean off-diagonal cosine [T] over `above` for the last tenth, from below 0.5.

    With NaN among the last values there is no finding. A matrix that began alike (all ones) did not converge.
    """
    means = np.asarray(off_diagonal_mean, dtype=np.float64)
    if len(means) < 3 or not means[0] < start_below:
        return []
    step = first_lasting(means > above, steps, at_least=max(1, len(means) // 10))
    if step is None:
        return []
    evidence = (
        f"the mean cosine between the features of {layer} went from {means[0]:.3f} to {means[-1]:.3f}"
        f" and stays over {above:g} from step {step}."
    )
    since = max(step - 50, 0)
    query = f"select step, name, value from metrics where step >= {since} and name like '%cosine%' order by step"
    advice = "Compare the targets' similarity with the weights': what leads, pulls. Branch before this step without it."
    return [Finding("features_converging", step, evidence, query, advice)]


def forces_fighting(
    layer: str, steps: ArrayLike, cosines: ArrayLike, *, share: float = 2 / 3, below: float = -0.2
) -> list[Finding]:
    """Two forces that oppose each other, from the cosine between them per feature [T, D].

    At more than half of the steps more than `share` of the features have a negative cosine and their mean is under
    `below` (in hundreds of dimensions the cosine of two unrelated directions is within 0.1 of 0). 20 steps are needed.
    """
    values = np.asarray(cosines, dtype=np.float64)
    known = ~np.isnan(values)
    counts = np.maximum(known.sum(axis=1), 1)
    means = np.where(known, values, 0).sum(axis=1) / counts
    fighting = ((values < 0).sum(axis=1) / counts > share) & (means < below)
    if len(values) < _LEAST_STEPS or fighting.mean() <= 0.5:
        return []
    step = int(np.asarray(steps)[int(np.flatnonzero(fighting)[0])])
    evidence = (
        f"the two forces on {layer} oppose each other at {fighting.mean():.0%} of the steps;"
        f" their cosine is {np.median(means):.2f} in the median."
    )
    query = f"select * from features where layer = {quoted(layer)} and step >= {step} order by step, feature"
    advice = "Much of each force only undoes the other. Weaken one of them from here in a branch and compare the loss."
    return [Finding("forces_fighting", step, evidence, query, advice)]


def zero_learning_rate(steps: ArrayLike, lr: ArrayLike) -> list[Finding]:
    """A learning rate [T] of exactly 0 for more than 2 steps in a row and more than a twentieth of the run.

    The first step of a warm-up and the last of a decay may be 0.
    """
    at, rates = np.asarray(steps), np.asarray(lr, dtype=np.float64)
    zero = rates == 0
    start, length = _longest(zero) if zero.any() else (0, 0)
    if length <= max(2, len(rates) // 20):
        return []
    evidence = f"the learning rate is 0 for {length} steps from step {at[start]}: nothing is learned there."
    query = "select step, lr, loss from steps where lr = 0 order by step"
    advice = "A schedule that ended before the run did, or one stepped per batch but meant per epoch."
    return [Finding("zero_learning_rate", int(at[start]), evidence, query, advice)]


def frozen_parameters(
    names: Sequence[str], hashes: ArrayLike, trainable: Sequence[bool], *, least: int = _LEAST_STEPS
) -> list[Finding]:
    """Parameters that want a gradient and never change by one bit, while others do.

    `hashes` [T, P] are content hashes (any integers) of the states in order, `trainable` says `requires_grad`.
    """
    values = np.asarray(hashes)
    if len(values) <= least:
        return []
    moved = (values != values[0]).any(axis=0)
    stuck = [name for name, moves, wanted in zip(names, moved, trainable, strict=True) if wanted and not moves]
    if not stuck or not moved.any():
        return []
    evidence = f"{len(stuck)} trainable parameters never change in {len(values) - 1} steps, the first is {stuck[0]}."
    query = "select step, fingerprint from steps order by step"
    advice = "Is it in an optimizer, used in forward, and not detached? Else set requires_grad to False to say so."
    return [Finding("frozen_parameter", 0, evidence, query, advice)]


def nothing_moves(steps: ArrayLike, fingerprints: Sequence[str] | ArrayLike, *, least: int = 3) -> list[Finding]:
    """A run whose whole state is the same, bit for bit, after every one of [T] steps."""
    at = np.asarray(steps)
    if len(at) < least or len(set(np.asarray(fingerprints).tolist())) != 1:
        return []
    evidence = f"the model's state is identical after all {len(at)} steps."
    query = "select fingerprint, count(*) as steps from steps group by fingerprint"
    advice = "The optimizer holds other parameters than the model's, the learning rate is 0, or the gradient is."
    return [Finding("nothing_moves", int(at[0]), evidence, query, advice)]


def _exploding(step: int, norm: float, usual: float) -> Finding:
    evidence = f"the gradient norm is {norm:.3g} from step {step} on, {norm / usual:.0f} times the median before it."
    around = f"step between {max(step - 20, 0)} and {step + 20}"
    query = f"select step, loss, grad_norm, lr from steps where {around} order by step"
    advice = "Clip the gradient or lower the learning rate; look at the batch of this step first."
    return Finding("exploding_gradient", step, evidence, query, advice)


def _longest(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    best = int(np.argmax(lengths))
    return int(starts[best]), int(lengths[best])
