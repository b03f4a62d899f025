"""torch.compile under the recorder: what is compiled, and what comes of it, is what it would be without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tracer
from tracer import open_trace

# torch's own, of what it compiles; that there are global hooks is not to be said to anyone.
pytestmark = pytest.mark.filterwarnings("default", "error:.*global hooks:UserWarning")
KINDS = ["model", "in place", "step", "scaled"]


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Dropout(0.2), nn.Linear(9, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def stepper(kind, model, optimizer):
    def loss_of(x, y):
        return ((model(x) - y) ** 2).mean()

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    if kind == "model":
        whole = torch.compile(model, backend="eager", fullgraph=True)
        loss_of = lambda x, y: ((whole(x) - y) ** 2).mean()  # noqa: E731
    elif kind == "in place":
        model.compile(backend="eager")
    elif kind == "step":
        step = torch.compile(step, backend="eager")
    elif kind == "scaled":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        plain = loss_of
        loss_of = torch.compile(lambda x, y: scaler.scale(plain(x, y)), backend="eager")
    return step


def train(kind, steps=4):
    """Return the losses and the final state, and what dynamo did."""
    model, optimizer = build()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = stepper(kind, model, optimizer)
    torch._dynamo.utils.counters.clear()
    losses = [step(torch.randn(6, 5), torch.randn(6, 1)) for _ in range(steps)]
    counters = torch._dynamo.utils.counters
    return {
        "first": first,
        "losses": [float(loss) for loss in losses],
        "final": model.state_dict(),
        "graphs": counters["stats"]["unique_graphs"],
        "calls": counters["stats"]["calls_captured"],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compiled_is_what_it_would_be_without(kind, tmp_path):
    bare = train(kind)
    torch._dynamo.reset()
    with tracer.record(tmp_path / "t"):
        seen = train(kind)

    assert seen["losses"] == bare["losses"]
    assert all(torch.equal(seen["final"][name], tensor) for name, tensor in bare["final"].items())
    assert (seen["graphs"], seen["calls"]) == (bare["graphs"], bare["calls"])
    with open_trace(tmp_path / "t") as trace:
        state = trace.state(0)
        assert all(torch.equal(state[name], tensor) for name, tensor in seen["first"].items())
        assert [len(trace.batch(k)[0]) for k in range(4)] == [6] * 4
        # What compiled code has scaled is no loss.
        told = [row[0] for row in trace.sql("select loss from steps order by step").fetchall()]
        assert told == ([None] * 4 if kind == "scaled" else seen["losses"])


def test_what_was_compiled_before_the_recording_is_known_too(tmp_path):
    model, optimizer = build()
    step = stepper("step", model, optimizer)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with tracer.record(tmp_path / "t"):
        for _ in range(3):
            step(torch.randn(6, 5), torch.randn(6, 1))

    with open_trace(tmp_path / "t") as trace:
        assert all(torch.equal(trace.state(0)[name], tensor) for name, tensor in first.items())


def test_nothing_of_it_stays(tmp_path):
    from torch._dynamo import eval_frame
    from torch.nn.modules import module

    from tracer import compiled

    before = (
        torch.compile,
        eval_frame._TorchDynamoContext.__init__,
        module._has_any_global_hook,
        torch.Tensor.backward,
    )
    with tracer.record(tmp_path / "t"):
        model, optimizer = build()
        whole = torch.compile(model, backend="eager")
        for _ in range(2):
            optimizer.zero_grad()
            whole(torch.randn(6, 5)).sum().backward()
            optimizer.step()

    after = (torch.compile, eval_frame._TorchDynamoContext.__init__, module._has_any_global_hook, torch.Tensor.backward)
    assert after == before
    assert compiled._entered not in whole.dynamo_ctx.enter_exit_hooks
    assert not module._global_forward_pre_hooks
    assert not compiled._Entrances.wanted
