"""The tensors, arrays and values in a batch, compared to the last bit. Room: replay. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracer.values import tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator


def leaves(value: Any) -> Iterator[Any]:
    """What is in a nest of dicts, lists and tuples, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def same_leaf(p: Any, q: Any) -> bool:
    """Whether two leaves are the same, bit for bit: NaN payloads and -0.0 count."""
    if isinstance(p, torch.Tensor) and isinstance(q, torch.Tensor):
        return p.shape == q.shape and p.dtype == q.dtype and bits(p) == bits(q)
    if isinstance(p, np.ndarray) and isinstance(q, np.ndarray):
        return p.shape == q.shape and p.dtype == q.dtype and p.tobytes() == q.tobytes()
    return type(p) is type(q) and repr(p) == repr(q)


def same_values(p: Any, q: Any) -> bool:
    """Whether two nests have the same leaves."""
    one, other = list(leaves(p)), list(leaves(q))
    return len(one) == len(other) and all(map(same_leaf, one, other))


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, row by row."""
    return bytes(tensor_bytes(tensor))
