"""The gradients an optimizer is about to use: their norm, and copies. Room: tracer. Reads gradients; changes nothing."""

from __future__ import annotations

import math

import torch

from tracer.values import tensor_bytes

_SMALLEST = 1e-30
"""Below this a sum of float32 squares has lost some of them."""


def grad_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the Euclidean norm of all gradients of the optimizer's parameters (0.0 where there are none)."""
    total = 0.0
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.dtype is not torch.float32 or not grad.is_cpu or grad.is_sparse:
                return _slow_norm(optimizer)
            total += torch.linalg.vector_norm(grad).item() ** 2
    return math.sqrt(total) if _SMALLEST < total < math.inf else _slow_norm(optimizer)


def _slow_norm(optimizer: torch.optim.Optimizer) -> float:
    """In double precision: the squares of large float32 gradients overflow, of small ones vanish; a NaN stays one."""
    total = 0.0
    for grad in [p.grad.detach() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]:
        dense = grad.coalesce().values() if grad.layout is torch.sparse_coo else grad
        kind = torch.complex128 if dense.is_complex() else torch.float64
        total += float(torch.linalg.vector_norm(dense.to(kind).reshape(-1))) ** 2
    return math.sqrt(total)


def copies(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, bytes]:
    """Return the bytes of the gradients of those of the optimizer's parameters that `names` {id: name} has."""
    found = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None and id(p) in names]
    return {names[id(p)]: bytes(tensor_bytes(p.grad)) for p in found if p.grad.layout is torch.strided}
