"""What a re-executed step gave from inside, as rows: each module's activations in figures, the samples by loss.

Room: apps. Tensors in, rows out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from apps.pictures import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

COLUMNS: Final = ("module", "shape", "mean", "std", "min", "max", "zeros", "NaN")
MOST: Final = 200
WORST: Final = 16


def activity(activations: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """A row of COLUMNS for each, the first MOST; mean to max are of what is no NaN, `zeros` is a share of all."""
    rows = [_row(name, tensor) for name, tensor in list(activations.items())[:MOST]]
    left = len(activations) - len(rows)
    return rows + ([[f"{left} more: the export as NPZ has them", *[""] * (len(COLUMNS) - 1)]] if left else [])


def _row(name: str, tensor: torch.Tensor) -> list[str]:
    values = np.asarray(plain(tensor.abs() if tensor.is_complex() else tensor), np.float64)
    bad = np.isnan(values)
    known = values[~bad]
    zeros = f"{(values == 0).mean():.1%}" if values.size else "-"
    with np.errstate(invalid="ignore", over="ignore"):  # Infinities have no deviation.
        figures = [f"{float(of(known)):.4g}" if known.size else "-" for of in (np.mean, np.std, np.min, np.max)]
    return [name, " x ".join(map(str, values.shape)) or "-", *figures, zeros, str(int(bad.sum()))]


def by_loss(losses: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """For each function the WORST samples, largest loss first (NaN before all): number in the batch, loss, share of the largest."""
    return [
        {"name": f"{name}, {len(each)} samples", "rows": _worst(each)} for name, each in losses.items() if len(each)
    ]


def _worst(losses: torch.Tensor) -> list[tuple[int, str, float]]:
    values = np.asarray(plain(losses), np.float64)
    order = np.argsort(np.where(np.isnan(values), -np.inf, -values), kind="stable")[:WORST]
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    shares = np.clip(np.nan_to_num(np.abs(values) / (largest or 1.0), nan=1.0, posinf=1.0), 0.0, 1.0)
    return [(int(i), f"{values[i]:.4g}", round(float(shares[i]), 4)) for i in order]
