"""The norm of the gradients an optimizer is about to use. Room: tracer. Reads gradients; changes nothing."""

from __future__ import annotations

import math

import torch

_SMALLEST = 1e-30
"""Below this a sum of float32 squares has lost some of them."""


def grad_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the Euclidean norm of all gradients of the optimizer's parameters (0.0 where there are none)."""
    total, others = _quick_squares(optimizer)
    if not _SMALLEST < total < math.inf:
        return _slow_norm(optimizer)
    return math.sqrt(total + _squares(others))


def _quick_squares(optimizer: torch.optim.Optimizer) -> tuple[float, list[torch.Tensor]]:
    """The sum of squares over plain float32 gradients, and the gradients that are none."""
    total = 0.0
    others: list[torch.Tensor] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            plain = grad.dtype is torch.float32 and not grad.is_cuda and grad.layout is torch.strided
            if plain and not grad.requires_grad and grad.is_contiguous():
                flat = grad.view(-1)
                total += torch.dot(flat, flat).item()
            else:
                others.append(grad.detach())
    return total, others


def _slow_norm(optimizer: torch.optim.Optimizer) -> float:
    """In double precision: the squares of large float32 gradients overflow, of small ones vanish; a NaN stays one."""
    grads = [p.grad.detach() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    return math.sqrt(_squares(grads))


def _squares(grads: list[torch.Tensor]) -> float:
    total = 0.0
    for grad in grads:
        dense = grad.coalesce().values() if grad.layout is torch.sparse_coo else grad
        kind = torch.complex128 if dense.is_complex() else torch.float64
        total += float(torch.linalg.vector_norm(dense.to(kind).reshape(-1))) ** 2
    return total
