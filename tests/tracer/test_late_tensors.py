"""Tensors that come into being in the midst of a step: a state is what its step started from, never what was seen later."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
from replay import verify

HOUSE = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("unsealed")


def batches():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(24, 4, generator=generator)), batch_size=6)


def lazy(seen):
    """A lazy layer behind one that has its weights from the start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for (x,) in batches():
        seen.append({n: p.detach().clone() for n, p in model.named_parameters() if n in ("0.weight", "0.bias") or seen})
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def hidden(seen):
    """A second optimizer that no variable leads to, made in the first step, after the first has stepped."""
    torch.manual_seed(0)
    held = contextvars.ContextVar("held")
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for (x,) in batches():
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if held.get(None) is None:
            shift = torch.zeros(4, requires_grad=True)
            held.set((shift, torch.optim.SGD([shift], lr=0.1)))
        ((x @ held.get()[0]).mean() - 1).square().backward()
        held.get()[1].step()


def inside(seen):
    """A model that is made inside the loop, and called as a function: seen only when the step is over."""
    torch.manual_seed(0)
    weight = None
    for (x,) in batches():
        if weight is None:
            weight = torch.ones(4, requires_grad=True)
            optimizer = torch.optim.SGD([weight], lr=0.1)
        seen.append({"param.0.0": weight.detach().clone()})
        optimizer.zero_grad()
        (x @ weight).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("train", [lazy, hidden, inside])
def test_a_state_is_what_its_step_started_from(tmp_path, train):
    seen = []
    with tracer.record(tmp_path / "t", keyframe_every=2):
        train(seen)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.steps == 4
        for k in trace.stored_states:
            stored = trace.state(k)
            for name, value in seen[k].items() if k < 4 else ():
                assert name not in stored or torch.equal(stored[name], value), (k, name)
        found = verify(trace, program=lambda: train([]))
        assert found.count("verified") == found.steps == 4


IN_ONE_PROCESS = """
import sys
import tracer
from replay import Session
from tests.tracer.test_late_tensors import lazy
with tracer.record(sys.argv[1], keyframe_every=2):
    lazy([])
with Session(sys.argv[1], program=lambda: lazy([])) as session:
    for k in (3, 0, 2):
        session.seek(k)
        session.step()
        print(k, session.verdict.kind)
"""


def test_lazy_layers_are_put_back_and_unmade_again(tmp_path):
    """In the process that recorded them: what waits there to be freed is none of the program's."""
    command = [sys.executable, "-c", IN_ONE_PROCESS, str(tmp_path / "t")]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "verified", "0", "verified", "2", "verified"], done.stderr
