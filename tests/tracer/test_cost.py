"""What a recorded step costs, counted and not timed: calls of our own, writes, bytes, memory. A guard against slow growth.

The limits are what was counted when they were set, and a little: who adds to the boundary sees it here.
"""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tracer
import tracer.recorder
from tracer.tail import read_tail

HERE = str(Path(tracer.__file__).parent) + os.sep
WARM, STEPS = 20, 40


def rows(samples):
    return torch.arange(samples * 96, dtype=torch.float32).reshape(samples, 96)


def by_hand(each):
    model, optimizer, x = parts()
    for k in range(WARM + STEPS):
        each(k)
        train(model, optimizer, x[k % 4 * 16 :][:16])
    each(WARM + STEPS)


def by_loader(each):
    model, optimizer, x = parts()
    k = 0
    batches = DataLoader(TensorDataset(x.repeat(5, 1)), batch_size=16, shuffle=True)
    while k < WARM + STEPS:
        for (batch,) in batches:
            each(k)
            train(model, optimizer, batch)
            k += 1
    each(k)


def parts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 8), torch.nn.ReLU(), torch.nn.Linear(8, 96))
    return model, torch.optim.Adam(model.parameters()), rows(64)


def train(model, optimizer, x):
    loss = torch.nn.functional.mse_loss(model(x), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def between(start, stop):
    """Return an `each` that calls `start` after the warm steps and `stop` at the end."""

    def each(k):
        if k == WARM:
            start()
        elif k == WARM + STEPS:
            stop()

    return each


def recorded(path, loop, each):
    """Record `loop` with one keyframe, so that nothing but the steps is counted."""
    with tracer.record(path, detail="replay", keyframe_every=10_000):
        loop(each)


# Of each loop: the most calls of functions of ours in one step, on average.
CALLS = {by_hand: 126, by_loader: 142}


@pytest.fixture
def quiet(monkeypatch):
    """Some things are done as time goes by, however many steps there are: here they are not due again."""
    monkeypatch.setattr(sys.modules["tracer.pace"], "GAP_SECONDS", 1e9)
    monkeypatch.setattr(sys.modules["tracer.progress"], "INTERVAL", 1e9)
    monkeypatch.setattr(sys.modules["tracer.progress"], "LONGEST_INTERVAL", 1e9)


@pytest.mark.parametrize("loop", CALLS, ids=lambda loop: loop.__name__)
def test_calls_of_ours(loop, tmp_path, quiet, alone):
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(HERE)

    recorded(tmp_path / "t", loop, between(lambda: sys.setprofile(count), lambda: sys.setprofile(None)))
    assert 50 * STEPS < calls <= CALLS[loop] * STEPS


@pytest.mark.parametrize("loop", CALLS, ids=lambda loop: loop.__name__)
def test_one_write_a_step_of_less_than_a_kilobyte(loop, tmp_path, monkeypatch, unsealed, alone):
    writes = []
    native = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: writes.append(native(fd, buffers)) or writes[-1])
    seen = []
    recorded(tmp_path / "t", loop, between(lambda: seen.append(len(writes)), lambda: seen.append(len(writes))))
    # An epoch of the loader writes two records more: its counts, and the layout of the new loop's names where it changes.
    assert STEPS <= seen[1] - seen[0] <= STEPS + (2 * STEPS // 20 if loop is by_loader else 0)
    (tail,) = (tmp_path / "t" / "tail").iterdir()
    records = list(read_tail(tail))
    steps = [(now.end - before.end, now.header) for before, now in pairwise(records) if now.kind == "step"]
    assert len(steps) == WARM + STEPS
    # Where the fetch drew random numbers (the loader's, once an epoch) their generators' state is there, too.
    assert max(size for size, header in steps if header["rng"] is None) < 1000
    assert sum(header["rng"] is not None for _, header in steps) <= (3 if loop is by_loader else 0)


@pytest.mark.parametrize("loop", CALLS, ids=lambda loop: loop.__name__)
def test_memory_does_not_grow(loop, tmp_path, quiet, alone):
    sizes = []

    def look():
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(inclusive=True, filename_pattern=f"{HERE}*")]
        )
        sizes.append(sum(trace.size for trace in ours.traces))

    tracemalloc.start()
    try:
        recorded(tmp_path / "t", loop, between(look, look))
    finally:
        tracemalloc.stop()
    # One random generators' state more or less is on its way.
    assert sizes[1] - sizes[0] < 32 * STEPS + 16_000
