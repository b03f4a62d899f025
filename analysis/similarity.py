"""How alike the rows (or columns) of a matrix are: cosine, Pearson, CKA, off-diagonal statistics, orders for a heatmap.

Room: analysis. Arrays in, arrays out; reads and writes nothing. All sums are formed in float64. A row of zeros (and one
with NaN or infinity in it) has no direction: its similarities are NaN, never 0, and statistics count such pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

Axis = Literal["rows", "columns"]


@dataclass(frozen=True)
class OffDiagonal:
    """Statistics of the pairs i != j: NaN where `pairs` is 0. `undefined` pairs are in none of the figures."""

    mean: float
    std: float
    min: float
    max: float
    pairs: int
    undefined: int


def unit_rows(x: ArrayLike) -> NDArray[np.float64]:
    """`x / |x|` per row of [D, F]; NaN for a row of zeros or with a value that is not finite.

    Rows are first divided by their largest entry, so that neither 1e-300 nor 1e300 is lost in the squares.
    """
    rows = np.asarray(x, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = rows / np.abs(rows).max(axis=-1, keepdims=True, initial=0)
        return scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)


def cosine_matrix(x: ArrayLike, y: ArrayLike | None = None, *, of: Axis = "rows") -> NDArray[np.float64]:
    """Cosine `x_i . y_j / (|x_i| |y_j|)` of [D, F] with [E, F]: [D, E] in -1..1; y defaults to x, `of` to rows."""
    a = unit_rows(_oriented(x, of))
    b = a if y is None else unit_rows(_oriented(y, of))
    cosines = a @ b.T
    return np.clip(cosines, -1.0, 1.0, out=cosines)


def pearson_matrix(x: ArrayLike, y: ArrayLike | None = None, *, of: Axis = "rows") -> NDArray[np.float64]:
    """Pearson's r of the rows (or columns) of x with those of y: the cosine of rows less their mean. [D, E].

    A constant row has no r: NaN. Equals `numpy.corrcoef` and `scipy.stats.pearsonr`.
    """
    return cosine_matrix(_centered(_oriented(x, of)), None if y is None else _centered(_oriented(y, of)))


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centered kernel alignment of two representations [N, P] and [N, Q] of the same N samples: 0..1.

    `|Y'X|_F^2 / (|X'X|_F |Y'Y|_F)` with the columns centered (Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural
    Network Representations Revisited", ICML 2019, section 3). Invariant to rotation and isotropic scaling
    of either, not to every invertible map. NaN where a representation does not vary. Raises ValueError unless both have
    N rows. Works in min(N, P + Q) dimensions: with Gram matrices [N, N] where the features are more than the samples.
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(f"CKA compares two [samples, features] arrays of as many samples, got {a.shape} and {b.shape}")
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    if max(a.shape[1], b.shape[1]) > len(a):
        k, m = a @ a.T, b @ b.T
        common, own, other = float((k * m).sum()), np.linalg.norm(k), np.linalg.norm(m)
    else:
        common, own, other = np.linalg.norm(b.T @ a) ** 2, np.linalg.norm(a.T @ a), np.linalg.norm(b.T @ b)
    return float(common / (own * other)) if own * other > 0 else float("nan")


def off_diagonal_stats(matrix: ArrayLike) -> OffDiagonal:
    """Mean, standard deviation (population), min and max of the entries i != j of a square [D, D] matrix."""
    square = np.asarray(matrix, dtype=np.float64)
    if square.ndim != 2 or square.shape[0] != square.shape[1]:
        raise ValueError(f"only a square matrix has a diagonal to leave out, got {square.shape}")
    # All entries but the last, in rows of D + 1: the diagonal is the first column.
    values = square.ravel()[:-1].reshape(-1, len(square) + 1)[:, 1:].ravel() if len(square) > 1 else np.empty(0)
    lost = np.isnan(values)
    known = values[~lost] if lost.any() else values
    if not known.size:
        nan = float("nan")
        return OffDiagonal(nan, nan, nan, nan, 0, values.size)
    figures = (float(f(known)) for f in (np.mean, np.std, np.min, np.max))
    return OffDiagonal(*figures, pairs=known.size, undefined=values.size - known.size)


def off_diagonal_mean(x: ArrayLike, *, of: Axis = "rows") -> float:
    """Mean cosine of all pairs of different rows of [D, F], without forming [D, D].

    With unit rows u: `sum over i != j of u_i . u_j = |sum u_i|^2 - D`, so `(|sum u|^2 - D) / (D (D - 1))`; D counts the
    rows that have a direction. NaN where they are fewer than two. Cost D F instead of D^2 F.
    """
    units = unit_rows(_oriented(x, of))
    units = units[~np.isnan(units).any(axis=1)]
    count = len(units)
    if count < 2:
        return float("nan")
    total = units.sum(axis=0)
    return float((total @ total - count) / (count * (count - 1)))


def over_steps(
    series: Iterable[tuple[int, ArrayLike]], statistic: Callable[[ArrayLike], float] = off_diagonal_mean
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`statistic` of each (step, array) of an iterator: (steps [T], values [T]). Holds one array at a time."""
    steps: list[int] = []
    values: list[float] = []
    for step, array in series:
        steps.append(int(step))
        values.append(statistic(array))
    return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)


def stats_over_steps(
    series: Iterable[tuple[int, ArrayLike]], *, of: Axis = "rows"
) -> tuple[NDArray[np.int64], list[OffDiagonal]]:
    """Off-diagonal statistics of the cosine matrix of each (step, [D, F]) of an iterator, one [D, D] held at a time."""
    steps: list[int] = []
    stats: list[OffDiagonal] = []
    for step, array in series:
        steps.append(int(step))
        stats.append(off_diagonal_stats(cosine_matrix(array, of=of)))
    return np.asarray(steps, dtype=np.int64), stats


def order_by_metric(values: ArrayLike, *, descending: bool = True) -> NDArray[np.int64]:
    """Indices that sort [D] `values`, largest first by default; equal ones keep their order, NaN come last."""
    keys = np.asarray(values, dtype=np.float64)
    return np.argsort(-keys if descending else keys, kind="stable").astype(np.int64)


def order_by_clustering(x: ArrayLike, *, of: Axis = "rows") -> NDArray[np.int64]:
    """Order of the rows of [D, F] that puts alike ones side by side.

    Average linkage on `1 - cosine` with optimal leaf order (Bar-Joseph, Gifford and Jaakkola 2001, as in
    `scipy.cluster.hierarchy`). Rows without a direction are as far from everything as the opposite: they gather at one
    side.
    """
    cosine = cosine_matrix(x, of=of)
    if len(cosine) < 3:
        return np.arange(len(cosine), dtype=np.int64)
    distance = np.nan_to_num(1 - cosine, nan=2.0)
    distance = np.clip((distance + distance.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    return leaves_list(tree).astype(np.int64)


def _oriented(x: ArrayLike, of: Axis) -> NDArray[np.float64]:
    matrix = np.asarray(x, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected a [rows, columns] array, got shape {matrix.shape}")
    if of not in ("rows", "columns"):
        raise ValueError(f"of must be 'rows' or 'columns', not {of!r}")
    return matrix if of == "rows" else matrix.T


def _centered(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    centered = rows - rows.mean(axis=1, keepdims=True)
    # The mean of equal numbers may round: what is left of a constant row is noise, not a direction.
    centered[np.ptp(rows, axis=1) == 0] = 0
    return centered
