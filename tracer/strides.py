"""How a tensor or array lies in memory where that is not in C order: transposed, channels last, every other row, expanded.

Kernels go by it: the same numbers in another order in memory may be summed in another order. Strides are element counts
for tensors, as torch has them, and bytes for arrays, as NumPy has them.
Room: tracer. Pure.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDEST = 1 << 30
"""What would span more bytes than this, and more than it has elements by far, comes back in C order."""
_WIDER = 64
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@functools.lru_cache(maxsize=4096)
def _in_order(shape: torch.Size) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = strides[i] * max(shape[i], 1)
    return tuple(strides)


def of_tensor(tensor: torch.Tensor) -> list[int] | None:
    """Return the strides of a tensor that does not lie in C order, else None.

    A dimension of size 1 counts: by its stride torch tells channels last from C order.
    """
    strides = tensor.stride()
    return None if strides == _in_order(tensor.shape) or not tensor.numel() else list(strides)


def of_array(array: np.ndarray) -> list[int] | None:
    """Return the strides of an array that does not lie in C order, else None."""
    return None if array.flags.c_contiguous or not array.size else list(array.strides)


def laid_tensor(tensor: torch.Tensor, strides: Sequence[int] | None) -> torch.Tensor:
    """Return `tensor`, which is in C order, as one that lies as `strides` say, in memory of its own."""
    if strides is None or _is_too_wide(
        tensor.shape, [s * tensor.element_size() for s in strides], tensor.element_size()
    ):
        return tensor
    made = torch.empty_strided(tuple(tensor.shape), tuple(strides), dtype=tensor.dtype)
    # Where a stride is 0 there is one element for all of a dimension: it is written once.
    once = [1 if stride == 0 else size for size, stride in zip(tensor.shape, strides, strict=True)]
    words = _WORDS.get(tensor.element_size(), tensor.dtype)
    new = tensor[tuple(slice(size) for size in once)].view(words)
    made.view(words).as_strided(once, tuple(strides)).copy_(new)
    return made


def laid_array(array: np.ndarray, strides: Sequence[int] | None) -> np.ndarray:
    """Return `array`, which is in C order, as one that lies as `strides` say, in memory of its own."""
    if strides is None or _is_too_wide(array.shape, strides, array.itemsize):
        return array
    reach = [(size - 1) * stride for size, stride in zip(array.shape, strides, strict=True)]
    first, last = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
    memory = np.zeros(last - first + array.itemsize, np.uint8)
    made = np.ndarray(array.shape, array.dtype, memory, -first, tuple(strides))
    made[...] = array
    return made


def beside(value: torch.Tensor | np.ndarray) -> dict[str, Any]:
    """What a node says of a tensor or array that is out of the ordinary; older traces do not, and no hash has it."""
    if isinstance(value, np.ndarray):
        lying, leaf = of_array(value), False
    else:
        lying, leaf = of_tensor(value), value.requires_grad and value.is_leaf
    return {**({"strides": lying} if lying is not None else {}), **({"leaf": True} if leaf else {})}


BESIDE = ("strides", "leaf")


def without(node: Any, *keys: str) -> Any:
    """Return `node` less what its objects have under `keys`."""
    if isinstance(node, dict):
        return {k: without(v, *keys) for k, v in node.items() if k not in keys}
    return [without(v, *keys) for v in node] if isinstance(node, list) else node


def _is_too_wide(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    span = sum((size - 1) * abs(stride) for size, stride in zip(shape, strides, strict=True))
    return span > WIDEST and span > _WIDER * itemsize * math.prod(shape)
