"""Steps of compiled programs in any order: which kernel a step runs depends on what was compiled before it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from replay import Session
from replay.compilations import Compilations

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Kernels:
    made = 0


def backend(graph, inputs):
    # Each compilation rounds in its own way, as real ones may.
    Kernels.made += 1
    scale = 1 + Kernels.made / 1000
    return lambda *given: tuple(output * scale for output in graph.forward(*given))


torch.manual_seed(0)
model = nn.Linear(3, 1)
compiled = torch.compile(model, backend=backend)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.randn(10, 3), torch.randn(10, 1)), batch_size=4, shuffle=True)
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        ((compiled(x) - y) ** 2).mean().backward()
        optimizer.step()
"""


@pytest.fixture(scope="module")
def trace(scribe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compilations")
    (folder / "train.py").write_text(SCRIPT)
    return scribe.record(folder / "t", folder / "train.py", options=("--keyframe-every", "1"))


def test_in_any_order(trace):
    with Session(trace) as session:
        for k in (7, 1, 4, 2, 8):
            assert session.seek(k).step().kind == "verified", k
        assert session._compilations.steps == (0, 2)


def test_a_program_that_was_not_brought_there_so_says_why_it_diverges(trace, monkeypatch):
    monkeypatch.setattr(Compilations, "missing", lambda self, start: [])
    with Session(trace) as session:
        verdict = session.seek(7).step()
    assert verdict.kind == "diverged"
    assert "torch.compile" in verdict.cause


def test_what_is_missing_and_what_is_too_much():
    known = Compilations(SimpleNamespace(compiled=(0, 3, 9)))
    assert known.missing(5) == [0, 3]
    known.ran(3, 6)
    assert known.missing(5) == [0]
    assert known.missing(20) == [0, 9]
    assert known.beyond(3)
    assert not known.beyond(4)
    known.afresh()
    assert not known.beyond(0)
