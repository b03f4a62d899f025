"""Branches longer than their parent (B4): what runs on is what the parent would have done, to the last bit."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tracer
from replay import branch, verify

pytestmark = pytest.mark.usefixtures("module_unsealed")


class Enough(Exception):
    """What ends a run early, as Ctrl-C does."""


def end_at(step):
    """End the run inside its step `step`, where the test wants it: nothing of this is the program's own state."""
    if os.environ.get("END_AT") == str(step):
        raise Enough


class Noisy(Dataset):
    """Data whose fetch draws random numbers."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.full((6,), float(i)) + torch.randn(6), torch.tensor([float(i)])


def plain(_):
    return TensorDataset(torch.randn(40, 6), torch.randn(40, 1))


def noisy(_):
    return Noisy()


def train(data=plain):
    """Three epochs of ten steps."""
    torch.manual_seed(0)
    found = data(None)
    loader = DataLoader(found, batch_size=4, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.2), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step = 0
    for _ in range(3):
        for x, y in loader:
            end_at(step)
            step += 1
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            sum(float(model(x).mean()) for x, _ in DataLoader(found, batch_size=20, shuffle=True))
        schedule.step()


def by_hand():
    """The same without a loader."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randn(40, 1)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(30):
        end_at(step)
        chosen = torch.randperm(40)[:4]
        loss = (model(x[chosen]) - y[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def record(path, program):
    with tracer.record(path, detail="replay", keyframe_every=4):
        program()
    return path


def cut_short(monkeypatch, path, program, steps):
    """Record `program`, of which only so many steps are made."""
    with monkeypatch.context() as patch:
        patch.setenv("END_AT", str(steps))
        with pytest.raises(Enough):
            record(path, program)
    with tracer.open_trace(path) as trace:
        assert trace.steps == steps


def facts(path, steps):
    with tracer.open_trace(path) as trace:
        return [(r["fingerprint"], r["loss"], r["rng_hash"], r["lr"]) for r in map(trace.record, steps)]


# The parent ends inside its first epoch, inside a later one, and the branch begins in that one or before.
@pytest.mark.parametrize(("length", "at"), [(7, 3), (17, 14), (17, 6)])
@pytest.mark.parametrize("data", [plain, noisy])
def test_it_runs_on_as_the_parent_would_have(tmp_path, monkeypatch, data, length, at):
    def program():
        train(data)

    whole = record(tmp_path / "whole", program)
    cut_short(monkeypatch, tmp_path / "t", program, length)
    done = branch(tmp_path / "t", tmp_path / "b", at=at, steps=26 - at, program=program)
    assert (done.steps, done.note) == (26 - at, None)
    assert facts(done.path, range(at, 26)) == facts(whole, range(at, 26))
    assert verify(done.path, program=program).verified


def test_so_it_does_without_a_loader(tmp_path, monkeypatch):
    whole = record(tmp_path / "whole", by_hand)
    cut_short(monkeypatch, tmp_path / "t", by_hand, 11)
    done = branch(tmp_path / "t", tmp_path / "b", at=9, steps=15, program=by_hand)
    assert (done.steps, done.note) == (15, None)
    assert facts(done.path, range(9, 24)) == facts(whole, range(9, 24))


def test_where_the_loader_goes_another_way_it_ends_and_says_so(tmp_path, monkeypatch):
    cut_short(monkeypatch, tmp_path / "t", train, 17)
    # Another seed, so another order in the second epoch: after step 16 nobody knows what would have come.
    done = branch(tmp_path / "t", tmp_path / "b", at=6, steps=20, seed=5, program=train)
    assert done.steps == 11
    assert done.note.endswith("under another seed it began this epoch in another order")
    assert verify(done.path, program=train).verified


def test_within_the_epoch_another_seed_changes_no_order(tmp_path, monkeypatch):
    whole = record(tmp_path / "whole", train)
    cut_short(monkeypatch, tmp_path / "t", train, 17)
    done = branch(tmp_path / "t", tmp_path / "b", at=14, steps=6, seed=5, program=train)
    assert (done.steps, done.note) == (6, None)
    with tracer.open_trace(done.path) as later, tracer.open_trace(whole) as first:
        assert all(torch.equal(later.batch(k)[0], first.batch(k)[0]) for k in range(14, 20))
        assert later.record(15)["rng_hash"] != first.record(15)["rng_hash"]
    assert verify(done.path, program=train).verified


def two_loaders():
    """Each step is fed by a second loader, too."""
    torch.manual_seed(0)
    first, second = (DataLoader(plain(None), batch_size=4, shuffle=True) for _ in range(2))
    model = nn.Linear(6, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = 0
    for _ in range(3):
        others = iter(second)
        for x, y in first:
            end_at(step)
            step += 1
            z, w = next(others)
            loss = (model(x) - y).square().mean() + (model(z) - w).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_with_a_second_loader_it_ends_and_says_so(tmp_path, monkeypatch):
    cut_short(monkeypatch, tmp_path / "t", two_loaders, 17)
    done = branch(tmp_path / "t", tmp_path / "b", at=14, steps=6, program=two_loaders)
    assert done.steps == 3
    assert "a second loader" in done.note
    assert verify(done.path, program=two_loaders).verified


def test_when_the_program_ends_so_does_the_branch(tmp_path):
    record(tmp_path / "t", train)
    done = branch(tmp_path / "t", tmp_path / "b", at=24, steps=20, program=train)
    assert (done.steps, done.note) == (6, "the program ended")
