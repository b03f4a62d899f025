"""The further batches of a step: a second loader, also where it comes to its end within a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer

pytestmark = pytest.mark.usefixtures("module_unsealed")


def train(given):
    torch.manual_seed(0)
    long, short = (DataLoader(TensorDataset(torch.randn(n, 5)), batch_size=2) for n in (10, 4))
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    second = iter(short)
    for (x,) in long:
        try:
            (y,) = next(second)
        except StopIteration:
            second = iter(short)
            (y,) = next(second)
        given.append(y.clone())
        loss = (model(x) - model(y)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_loader_at_its_end_gives_no_batch(tmp_path):
    given = []
    with tracer.record(tmp_path / "t"):
        train(given)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert any(extra.get("stop") for k in range(5) for extra in trace.record(k)["extras"])
        for k, y in enumerate(given):
            ((found,),) = trace.extra_batches(k)
            assert torch.equal(found, y)
