"""Every finding of `rewind doctor` (S1.4): a program that has the fault, and one that nearly has it, which is told nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
from apps.doctor import examine

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("module_unsealed")


@dataclass
class Loop:
    """What a fault can get at in the loop below."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader
    step: int = 0
    epoch: int = 0

    @property
    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value):
        self.optimizer.param_groups[0]["lr"] = value


def never(*_):
    return None


class Skewed:
    """Batches of 30 easy and of 2 hard samples in turn."""

    def __iter__(self):
        order = torch.randperm(64).tolist()
        for i in range(4):
            yield order[16 * i : 16 * i + 14]
            yield [64 + 2 * i, 65 + 2 * i]

    def __len__(self):
        return 8


class Doubled(torch.utils.data.Sampler):
    """A sampler whose fourth pass begins anew after two batches, as after a resume that forgot its place."""

    def __init__(self, doubles):
        self.doubles = doubles
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        order = torch.randperm(128).tolist()
        yield from order[:32] * (2 if self.doubles and self.passes == 4 else 1)
        yield from order[32:]

    def __len__(self):
        return 128


def samples():
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def train(
    *,
    epochs: int = 6,
    lr: float = 0.1,
    model: Callable[[], nn.Module] | None = None,
    loader: Callable | None = None,
    scale: Callable[[Loop], float] = lambda loop: 1.0,
    batch: Callable = lambda loop, x, y: (x, y),
    before: Callable[[Loop], object] = never,
    after: Callable[[Loop], object] = never,
    between: Callable[[Loop], object] = never,
    log: Callable | None = None,
) -> None:
    """A small classifier that learns; what is wrong with it is up to the caller."""
    data = TensorDataset(*samples())
    net = model() if model else nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    loop = Loop(
        net,
        torch.optim.SGD(net.parameters(), lr=lr),
        loader(data) if loader else DataLoader(data, batch_size=16, shuffle=True),
    )
    for _ in range(epochs):
        for x, y in loop.loader:
            x, y = batch(loop, x, y)
            before(loop)
            loss = scale(loop) * nn.functional.cross_entropy(net(x), y)
            loop.optimizer.zero_grad()
            loss.backward()
            loop.optimizer.step()
            after(loop)
            if log is not None:
                tracer.log(**log(loop, loss.item()))
            loop.step += 1
        between(loop)
        loop.epoch += 1


def kinds(path, **options):
    detail = {name: options.pop(name) for name in ("detail", "every", "keyframe_every") if name in options}
    with tracer.record(path, **detail):
        train(**options)
    with tracer.open_trace(path) as trace:
        found = examine(trace)
        for finding in found:
            assert finding.evidence
            assert finding.advice
            trace.sql(finding.query).fetchall()
        return {finding.kind: finding for finding in found}


def with_extra(wants_grad):
    """A layer that the forward pass never uses."""

    def make():
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        net.extra = nn.Linear(4, 4)
        net.extra.requires_grad_(wants_grad)
        net.forward = lambda x: net[2](net[1](net[0](x)))
        return net

    return make


def squeezed(factor):
    """A network through whose first layer hardly any gradient comes."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(22, 3)

        def forward(self, x):
            hidden = self.first(x)
            return self.last(torch.cat([x, hidden.detach() + factor * (hidden - hidden.detach())], dim=1))

    return Net


def normed():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


def validate(mode):
    def between(loop):
        loop.model.train(mode)
        with torch.no_grad():
            loop.model(samples()[0])
        loop.model.train()

    return between


def rates(dead_until):
    def after(loop):
        rate = torch.full((8,), 0.125)
        if 15 <= loop.step < dead_until:
            rate[2] = 0.001
        tracer.capture("layer/win_rate", rate)

    return after


def pull(towards):
    """Rows drawn together, or apart only so far."""

    def after(loop):
        weight = loop.model[0].weight.data
        weight += 0.2 * (weight.mean(dim=0) * towards - weight * towards)

    return after


def som(sign):
    """A second force on the first layer, against the gradient's or with it."""

    def before(loop):
        loop.old = loop.model[0].weight.detach().clone()

    def after(loop):
        moved = loop.model[0].weight.detach() - loop.old
        targets = loop.old + sign * 8 * moved
        loop.model[0].weight.data += 0.05 * (targets - loop.old)
        tracer.capture("0/som_targets", targets)
        tracer.capture("0/som_rate", torch.full((16,), 0.05))
        tracer.capture("0/grad_masked", loop.model[0].weight.grad)

    return {"before": before, "after": after}


def eval_from(first, until=99):
    def before(loop):
        loop.model.train(not first <= loop.epoch < until)

    return before


def fading(to):
    """Gradients that all but vanish after ten steps, though there is much to learn."""
    factor = [1.0]

    def model():
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        for parameter in net.parameters():
            parameter.register_hook(lambda grad: grad * factor[0])
        return net

    def before(loop):
        factor[0] = 1.0 if loop.step < 10 else to

    return {"model": model, "before": before, "lr": 0.02}


def stuck_loader(times):
    class Stuck(torch.utils.data.Sampler):
        def __iter__(self):
            order = torch.randperm(128).tolist()
            yield from order[:16] * times + order[16 * times :]

        def __len__(self):
            return 128

    return lambda data: DataLoader(data, batch_size=16, sampler=Stuck())


def by_class(shuffled):
    def loader(data):
        x, y = data.tensors
        order = y.argsort(stable=True)
        return DataLoader(TensorDataset(x[order], y[order]), batch_size=16, shuffle=shuffled)

    return loader


def at(step, value, otherwise=1.0, *, on=False):
    return lambda loop: value if loop.step == step or (on and loop.step > step) else otherwise


FLAT = {"lr": 1e-3}  # the loss hardly moves
CASES = {
    "nan": ({"scale": at(20, float("nan"), on=True)}, {"scale": at(20, 3.0)}),
    "nan_tensor": ({"scale": at(20, float("nan"), on=True)}, {"after": lambda loop: None}),
    "all_zero": ({"log": lambda s, v: {"val_loss": 0.0}, **FLAT}, {"log": lambda s, v: {"val_loss": 1e-9 * s.step}}),
    "zero_beside_falling_loss": (
        {"log": lambda s, v: {"accuracy": 0.0}, "lr": 1.0, "epochs": 12},
        {"log": lambda s, v: {"accuracy": float(s.step > 90)}, "lr": 1.0, "epochs": 12},
    ),
    "constant": ({"log": lambda s, v: {"val_loss": 9.539}}, {"log": lambda s, v: {"val_loss": 9.539 - 1e-6 * s.step}}),
    "series_disagree": (
        {"log": lambda s, v: {"train_loss": 10 + s.step % 3}},
        {"log": lambda s, v: {"train_loss": 4 * v, "opt/lr": s.lr}},
    ),
    "means_disagree": (
        {
            "loader": lambda d: DataLoader(d, batch_sampler=Skewed()),
            "batch": lambda s, x, y: (x, y if len(x) > 2 else (y + 1) % 3),
        },
        {"loader": lambda d: DataLoader(d, batch_size=24, shuffle=True)},
    ),
    "dead_features": ({"after": rates(99)}, {"after": rates(44)}),
    "exploding_gradient": ({"scale": at(30, 1e4, on=True), **FLAT}, {"scale": at(30, 1e4), "lr": 1e-5, "epochs": 2}),
    "vanishing_gradient": (fading(1e-7), fading(0.2)),
    "vanishing_layer": ({"model": squeezed(1e-9), "detail": "full"}, {"model": squeezed(1e-3), "detail": "full"}),
    "update_ratio": ({"lr": 1e-6}, {"lr": 0.02}),
    "features_converging": ({"after": pull(1.0), "lr": 0.01}, {"after": pull(0.001)}),
    "forces_fighting": (som(-1), som(1)),
    "zero_learning_rate": (
        {"before": lambda s: setattr(s, "lr", 0.0 if s.step > 30 else 0.1)},
        {"before": lambda s: setattr(s, "lr", 0.0 if s.step in (0, 47) else 0.1)},
    ),
    "frozen_parameter": ({"model": with_extra(True)}, {"model": with_extra(False)}),
    "nothing_moves": ({"lr": 0.0}, {"lr": 0.1}),
    "repeated_batch": ({"loader": stuck_loader(4)}, {"loader": stuck_loader(2)}),
    "repeated_samples": (
        {"loader": lambda d: DataLoader(d, batch_size=16, sampler=Doubled(True))},
        {"loader": lambda d: DataLoader(d, batch_size=16, sampler=Doubled(False))},
    ),
    "sorted_labels": ({"loader": by_class(False)}, {"loader": by_class(True)}),
    "eval_while_training": (
        {"before": eval_from(2), "epochs": 8, "keyframe_every": 4},
        {"before": eval_from(2, 4), "epochs": 8, "keyframe_every": 4},
    ),
    "train_while_evaluating": (
        {"model": normed, "between": validate(True)},
        {"model": normed, "between": validate(False)},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_fault_is_found(tmp_path, kind):
    assert kind in kinds(tmp_path / "t", **CASES[kind][0])


@pytest.mark.parametrize("kind", CASES)
def test_what_is_nearly_a_fault_is_none(tmp_path, kind):
    assert kinds(tmp_path / "t", **CASES[kind][1]) == {}


class TestClock:
    def run(self, path, monkeypatch, back):
        real = time.time
        with monkeypatch.context() as patch:
            late = []
            patch.setattr(time, "time", lambda: real() - (back if late else 0))
            return kinds(path, after=lambda loop: late.append(1) if loop.step == 20 else None)

    def test_back(self, tmp_path, monkeypatch):
        assert self.run(tmp_path / "t", monkeypatch, 60.0)["clock"].step in (20, 21)

    def test_set_right(self, tmp_path, monkeypatch):
        assert self.run(tmp_path / "t", monkeypatch, 0.3) == {}


def test_steps_left_out_on_purpose_are_no_gap(tmp_path):
    assert kinds(tmp_path / "t", every=5) == {}


def test_a_resumed_run_has_no_duplicates(tmp_path):
    assert kinds(tmp_path / "t") == {}
    with tracer.record(tmp_path / "t", append=True, at=20):
        train(epochs=5)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert not {"duplicate", "gap", "clock"} & {finding.kind for finding in examine(trace)}


class TestWithoutStoredWeights:
    """At detail replay the keyframes' states are looked at, and re-executed ones where that is asked for."""

    def test_keyframes_show_what_lasts(self, tmp_path):
        with tracer.record(tmp_path / "t", detail="replay", keyframe_every=4):
            train(after=pull(1.0), lr=0.01)
        with tracer.open_trace(tmp_path / "t") as trace:
            assert not len(trace.stored_states) > 1
            assert "features_converging" in {finding.kind for finding in examine(trace)}

    def test_batch_norm_is_told_from_hashes(self, tmp_path):
        assert "train_while_evaluating" in kinds(tmp_path / "t", detail="replay", model=normed, between=validate(True))

    def test_reexecution_shows_updates(self, tmp_path, monkeypatch):
        from replay import Session

        def program():
            train(lr=1e-6)

        with tracer.record(tmp_path / "t", detail="replay", keyframe_every=8):
            program()
        with tracer.open_trace(tmp_path / "t") as trace, Session(trace, program=program) as session:
            monkeypatch.setattr(trace, "_reexecute", lambda what, k: session.seek(k).state)
            assert "update_ratio" not in {finding.kind for finding in examine(trace)}
            assert "update_ratio" in {finding.kind for finding in examine(trace, reexecute=True)}


def test_a_branch_is_judged_by_its_own_steps(tmp_path):
    from replay import branch

    with tracer.record(tmp_path / "t", detail="replay", keyframe_every=8):
        train(scale=at(3, 1e5), epochs=3)
    done = branch(tmp_path / "t", tmp_path / "b", at=12, program=lambda: train(scale=at(3, 1e5), epochs=3))
    with done.open() as trace:
        assert all(finding.step is None or finding.step >= 12 for finding in examine(trace))
        assert np.isfinite([trace.record(k)["loss"] for k in range(12, 24)]).all()
