"""Two forces on one weight: what the optimizer did to each feature and what the SOM did, and whether they agree.

Room: analysis. Arrays in, arrays out. Shapes: weights, targets, gradients and movements are [D, F] (feature, input),
per-feature figures [D]. Two readings of "the gradient" must not be mixed, so every name says which it is: the *masked
gradient* is what the optimizer was given, the *real movement* (`grad_delta`) is what the optimizer made of it. Adam
rescales tiny gradients, so the two may differ by orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.similarity import unit_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Agreement:
    """How many features have forces that agree (cosine > 0), fight (< 0), or can't be compared (0 or no direction)."""

    agree: int
    fight: int
    neither: int


@dataclass(frozen=True)
class Forces:
    """Both forces of one step, per feature [D]; `cosine` is that of real movement and SOM movement."""

    som_norm: NDArray[np.float64]
    moved_norm: NDArray[np.float64]
    masked_norm: NDArray[np.float64]
    cosine: NDArray[np.float64]
    agreement: Agreement
    ratio_by_masked_gradient: float
    ratio_by_movement: float


@dataclass(frozen=True)
class ForceDetail:
    """One feature's pictures, [F] each, and the cosine between its two movements (S4.5)."""

    weight: NDArray[np.float64]
    grad_delta: NDArray[np.float64]
    som_delta: NDArray[np.float64]
    combined: NDArray[np.float64]
    cosine: float


def som_delta(weight: ArrayLike, som_targets: ArrayLike, som_rate: ArrayLike) -> NDArray[np.float64]:
    """The SOM's movement `som_rate * (som_targets - W)`, [D, F]; W is the weight that the step started from.

    `som_rate` is a number or one per feature [D]: BCL's som_lr, where decoupled times `1 - feature_novelty` (it
    captures it as `bcl/som_rate`).
    """
    rate = _rows(som_rate)
    return (rate[:, None] if rate.ndim else rate) * (_rows(som_targets) - _rows(weight))


def grad_delta(before: ArrayLike, after: ArrayLike, som_movement: ArrayLike | None = None) -> NDArray[np.float64]:
    """What the optimizer really did: `W after - W before - som_delta`, [D, F].

    From float32 weights it is exact to about one float32 ULP of W: figures below 1e-8 of a weight are rounding.
    """
    moved = _rows(after) - _rows(before)
    return moved if som_movement is None else moved - _rows(som_movement)


def row_norms(x: ArrayLike) -> NDArray[np.float64]:
    """Euclidean norm of each row: [D, F] to [D]."""
    return np.linalg.norm(_rows(x), axis=1)


def row_cosines(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Cosine of each row of x with the same row of y, [D] in -1..1; NaN where either has no direction."""
    return np.clip((unit_rows(x) * unit_rows(y)).sum(axis=1), -1.0, 1.0)


def agreement(cosines: ArrayLike) -> Agreement:
    """Counts of features whose forces agree, fight, or neither, from cosines [D]."""
    values = _rows(cosines)
    agree, fight = int((values > 0).sum()), int((values < 0).sum())
    return Agreement(agree, fight, values.size - agree - fight)


def force_ratio(som_norms: ArrayLike, gradient_norms: ArrayLike) -> float:
    """SOM over gradient: `mean(som_norms) / mean(gradient_norms)` of per-feature norms [D].

    The ratio of the means, not the mean of ratios: one feature with a gradient of zero would make that infinite. inf
    where every gradient norm is zero, NaN where both sides are.
    """
    som, gradient = float(_rows(som_norms).mean()), float(_rows(gradient_norms).mean())
    if gradient == 0:
        return float("nan") if som == 0 else float("inf")
    return som / gradient


def compare(before: ArrayLike, after: ArrayLike, som_movement: ArrayLike, grad_masked: ArrayLike) -> Forces:
    """Both forces of a step from W before and after it, the SOM's movement and the masked gradient, all [D, F].

    `ratio_by_masked_gradient` is SOM movement over the gradient's own norm (no learning rate in it), as researchers
    compare them; `ratio_by_movement` is SOM movement over the optimizer's movement.
    """
    moved = grad_delta(before, after, som_movement)
    cosine = row_cosines(moved, som_movement)
    som_norm, moved_norm, masked_norm = row_norms(som_movement), row_norms(moved), row_norms(grad_masked)
    return Forces(
        som_norm=som_norm,
        moved_norm=moved_norm,
        masked_norm=masked_norm,
        cosine=cosine,
        agreement=agreement(cosine),
        ratio_by_masked_gradient=force_ratio(som_norm, masked_norm),
        ratio_by_movement=force_ratio(som_norm, moved_norm),
    )


def detail(before: ArrayLike, after: ArrayLike, som_movement: ArrayLike, feature: int) -> ForceDetail:
    """The four pictures and the cosine of one feature (S4.5). Raises IndexError where there is no such feature."""
    weight = _rows(before)
    if not 0 <= feature < len(weight):
        raise IndexError(f"feature {feature} is not in 0..{len(weight) - 1}")
    som = _rows(som_movement)
    moved = grad_delta(weight, after, som)
    return ForceDetail(
        weight=weight[feature],
        grad_delta=moved[feature],
        som_delta=som[feature],
        combined=moved[feature] + som[feature],
        cosine=float(row_cosines(moved[feature][None], som[feature][None])[0]),
    )


def _rows(x: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(x, dtype=np.float64)
