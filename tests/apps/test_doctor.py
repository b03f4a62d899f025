"""Findings on recorded runs (S1.4): each fault found, healthy runs in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
from apps.doctor import examine

pytestmark = pytest.mark.usefixtures("module_unsealed")


def data():
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return TensorDataset(x, labels)


def train(*, lr=0.1, epochs=6, weight=1.0, log=None, frozen=(), shuffle=True, stuck=False, break_at=None):
    """A classifier on separable data; what is wrong with it is up to the caller."""
    loader = DataLoader(data(), batch_size=16, shuffle=shuffle)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n not in frozen], lr=lr)
    held, step = None, 0
    for epoch in range(epochs):
        for x, y in loader:
            held = (x, y) if held is None or not stuck else held
            x, y = held if stuck else (x, y)
            loss = weight * nn.functional.cross_entropy(model(x), y)
            if step == break_at:
                loss = loss * float("nan")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if log is not None:
                tracer.log(**log(step, epoch))
            step += 1


def kinds(path, **options):
    with tracer.record(path):
        train(**options)
    with tracer.open_trace(path) as trace:
        return {finding.kind: finding for finding in examine(trace)}


def test_a_healthy_run_has_no_findings(tmp_path):
    assert kinds(tmp_path / "t") == {}
    assert kinds(tmp_path / "u", log=lambda step, epoch: {"accuracy": step / 50, "workers": 0}) == {}


def test_nan_is_found_with_its_first_tensor(tmp_path):
    found = kinds(tmp_path / "t", break_at=11)
    assert found["nan"].step == 11
    assert found["nan_tensor"].step == 12
    assert "0.weight" in found["nan_tensor"].evidence


def test_a_metric_that_is_always_zero(tmp_path):
    assert "zero_beside_falling_loss" in kinds(tmp_path / "t", lr=1.0, epochs=12, log=lambda s, e: {"val_loss": 0.0})
    assert kinds(tmp_path / "u", lr=1.0, epochs=12, log=lambda s, e: {"val_loss": 1 / (s + 1)}) == {}


def test_a_metric_that_is_constant(tmp_path):
    assert kinds(tmp_path / "t", log=lambda s, e: {"val_loss": 9.539})["constant"].step == 0


def test_a_learning_rate_of_zero(tmp_path):
    found = kinds(tmp_path / "t", lr=0.0)
    assert {"zero_learning_rate", "nothing_moves"} <= found.keys()


def test_a_parameter_that_no_optimizer_has_is_no_finding_but_one_that_never_moves_is(tmp_path):
    assert kinds(tmp_path / "t", frozen=("0.weight",)) == {}


def test_updates_that_are_too_large(tmp_path):
    assert "update_ratio" in kinds(tmp_path / "t", lr=30.0)


def test_sorted_data(tmp_path, monkeypatch):
    x, y = data().tensors
    order = y.argsort(stable=True)
    monkeypatch.setitem(globals(), "data", lambda: TensorDataset(x[order], y[order]))
    assert "sorted_labels" in kinds(tmp_path / "t", shuffle=False)
    assert "sorted_labels" not in kinds(tmp_path / "u", shuffle=True)


def test_every_query_of_a_finding_runs(tmp_path):
    found = kinds(tmp_path / "t", break_at=11, log=lambda s, e: {"val_loss": 9.539})
    with tracer.open_trace(tmp_path / "t") as trace:
        for finding in found.values():
            trace.sql(finding.query).fetchall()
