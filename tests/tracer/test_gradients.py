"""The norm of the gradients, of every kind, without a warning (warnings are errors here)."""

from __future__ import annotations

import math

import pytest
import torch

import tracer
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


def test_of_gradients_that_a_closure_makes_while_the_optimizer_steps(tmp_path):
    """As Lightning steps: before, there are none, or those of the step before."""

    def program():
        model = torch.nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for factor in (3.0, 5.0):

            def closure(factor=factor):
                optimizer.zero_grad()
                loss = model(torch.tensor([[factor]])).sum()
                loss.backward()
                return loss

            optimizer.step(closure)

    with tracer.record(tmp_path / "t", detail="full"):
        program()
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.sql("select grad_norm from steps order by step").fetchall() == [(3.0,), (5.0,)]
        assert [float(trace.grads(k)["weight"]) for k in (0, 1)] == [3.0, 5.0]
