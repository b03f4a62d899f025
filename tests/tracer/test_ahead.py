"""A loader that is asked one batch ahead: a step's batch is what it was trained on, not what was fetched last (S4.2, S1.1)."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

import tracer

pytestmark = pytest.mark.filterwarnings("ignore:.*os.fork.*:DeprecationWarning")


@pytest.fixture
def library(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "programs" / "site-packages"))
    yield __import__("tinyframe")
    sys.modules.pop("tinyframe", None)


class Net(torch.nn.Module):
    """Remembers what it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen = []

    def loss(self, batch):
        self.seen.append(batch[0].clone())
        return self.layer(batch[0]).square().mean()


def rows(count):
    data = torch.utils.data.TensorDataset(torch.arange(3.0 * count).reshape(count, 3))
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)


def test_each_step_has_the_batch_that_it_was_trained_on(library, tmp_path):
    net, loader = Net(), rows(20)
    trainer = library.Trainer(net, torch.optim.SGD(net.parameters(), lr=1e-4), loader)
    with tracer.record(tmp_path / "t"):
        trainer.fit(epochs=3, at_most=99)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.steps == len(net.seen) == 9
        for k, seen in enumerate(net.seen):
            assert torch.equal(trace.batch(k)[0], seen)
        sizes = [size for (size,) in trace.sql("select batch_size from steps order by step").fetchall()]
    assert sizes == [8, 8, 4] * 3


def test_several_at_a_time(library, tmp_path):
    """As Hugging Face's Trainer accumulates: a step is one of the optimizer's, and has all that it was trained on."""
    net, loader = Net(), rows(28)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    with tracer.record(tmp_path / "t"):
        for _ in range(2):
            batches = iter(library.DataLoaderShard(loader))
            while group := list(itertools.islice(batches, 2)):
                for batch in group:
                    net.loss(batch).backward()
                optimizer.step()
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.steps == 4
        for k, trained in enumerate((net.seen[:2], net.seen[2:4], net.seen[4:6], net.seen[6:])):
            assert all(torch.equal(b[0], seen) for b, seen in zip(trace.batch(k), trained, strict=True))
        sizes = [size for (size,) in trace.sql("select batch_size from steps order by step").fetchall()]
    assert sizes == [16, 12, 16, 12]
