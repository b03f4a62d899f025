"""The norm of the gradients, of every kind, without a warning (warnings are errors here)."""

from __future__ import annotations

import math

import pytest
import torch

from tracer.gradients import grad_norm


def norm_of(*grads):
    params = []
    for grad in grads:
        param = torch.nn.Parameter(torch.zeros(3, dtype=grad.dtype if grad is not None else torch.float32))
        if grad is not None:
            param = torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
            param.grad = grad
        params.append(param)
    return grad_norm(torch.optim.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1))


@pytest.mark.parametrize(
    ("grads", "expected"),
    [
        ([None, None], 0.0),
        ([torch.tensor([3.0]), torch.tensor([[4.0]])], 5.0),
        ([torch.tensor([3.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.bfloat16)], 5.0),
        ([torch.tensor([3.0, 1.0]).expand(2, 2).t()], math.sqrt(20)),
        ([torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True), torch.tensor([4.0])], 5.0),
        ([torch.tensor([3 + 4j])], 5.0),
        ([torch.full((4,), 1e30)], 2e30),
        ([torch.full((4,), 1e-30)], 2e-30),
        ([torch.tensor([math.inf])], math.inf),
        ([torch.tensor([1e30]), torch.tensor([math.nan])], math.nan),
        ([torch.tensor([math.inf, -math.inf])], math.inf),
        ([torch.empty(0)], 0.0),
    ],
)
def test_norm(grads, expected):
    assert norm_of(*grads, None) == pytest.approx(expected, rel=1e-6, abs=0, nan_ok=True)
