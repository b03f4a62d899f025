"""What a re-executed step is: verified, diverged, or unverifiable. Room: replay. Pure."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Verdict:
    """The verdict on step `step`. `kind` is verified, diverged or unverifiable.

    Of a diverged step: the first `tensor` that differs (or "loss", "optimizer state", "random numbers"), the largest distance in
    units in the last place (`max_ulp`, None where the recorded values are not stored), the likely `cause`. `detail` is one line.
    """

    kind: str
    step: int
    tensor: str | None = None
    max_ulp: int | None = None
    cause: str | None = None
    detail: str = ""

    @property
    def verified(self) -> bool:
        """Whether the step re-executed to the last bit."""
        return self.kind == "verified"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return dict(vars(self))


def same_float(a: float | None, b: float | None) -> bool:
    """Whether two numbers are the same bits; any NaN equals any other (a NaN's payload does not survive Python's arithmetic)."""
    if a is None or b is None:
        return a is b
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return struct.pack("<d", a) == struct.pack("<d", b)


_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def max_ulp(a: torch.Tensor, b: torch.Tensor) -> int:
    """Return the largest distance between two tensors of one dtype and shape, in units in the last place.

    Floats are ordered by their bit patterns as IEEE 754 orders them (-0.0 and 0.0 are 1 apart, so that no difference in bits is
    0); of other dtypes it is the largest absolute difference of their bytes seen as integers. Complex numbers count by part.
    """
    if a.is_complex():
        return max_ulp(torch.view_as_real(a.contiguous()), torch.view_as_real(b.contiguous()))
    width = a.element_size()
    x, y = (t.contiguous().reshape(-1).view(torch.uint8).numpy().view(_SIGNED[width]) for t in (a, b))
    if not len(x):
        return 0
    if a.is_floating_point():
        x, y = _ordered(x), _ordered(y)
    apart = x != y
    pairs = zip(x[apart].tolist(), y[apart].tolist(), strict=True)
    return max((abs(p - q) for p, q in pairs), default=0)


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Map sign-magnitude bit patterns to integers in the order of the numbers."""
    lowest = np.iinfo(bits.dtype).min
    return np.where(bits < 0, lowest - bits - 1, bits) if bits.dtype != np.int64 else _ordered_wide(bits)


def _ordered_wide(bits: np.ndarray) -> np.ndarray:
    return np.where(bits < 0, np.bitwise_xor(bits, np.int64(np.iinfo(np.int64).max)), bits)
