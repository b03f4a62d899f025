"""The recorder's other process killed alone, as the kernel does where memory runs out; and what a recording leaves behind in the
process that it watched: nothing. # S0.4, C1
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import warnings

import numpy as np
import pytest
import torch

import tracer
from tests.tracer.training import train, train_rows, train_without_loader
from tracer.repair import repair
from tracer.sealing import Sealer


def test_a_sealer_that_is_killed_alone_costs_nothing(tmp_path, monkeypatch, caplog):
    sealers = []
    begin = Sealer.__init__
    monkeypatch.setattr(Sealer, "__init__", lambda self, *args: (begin(self, *args), sealers.append(self))[0])

    def at_step(k):
        if k == 4:
            os.kill(sealers[0]._process.pid, signal.SIGKILL)
            sealers[0]._process.wait()

    plain = train_rows(steps=12)
    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t", detail="full"):
        recorded = train_rows(at_step, steps=12)
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    assert f"is whole but not sealed: `rewind repair {tmp_path / 't'}` does it" in caplog.text
    for _ in range(2):
        with tracer.open_trace(tmp_path / "t") as trace:
            assert (trace.steps, trace.damage()) == (12, [])
            assert torch.equal(trace.state(12)["weight"], plain["weight"])
            assert trace.sql("select count(*), count(distinct step) from steps").fetchall() == [(12, 12)]
        repair(tmp_path / "t")
    assert not list((tmp_path / "t" / "tail").iterdir())


def surroundings() -> dict[tuple[str, str], object]:
    """What modules and classes a recording could have changed: every attribute of torch, random, numpy.random, signal handlers."""
    with warnings.catch_warnings(
        action="ignore"
    ):  # some names of torch's are told to be old as soon as they are looked at
        return _surroundings()


def _surroundings() -> dict[tuple[str, str], object]:
    found: dict[tuple[str, str], object] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "torch" or name in (
            "random",
            "numpy.random",
            "builtins",
            "pickle",
            "os",
            "io",
            "signal",
        ):
            for key, value in list(vars(module).items()):
                found[name, key] = value
                if isinstance(value, type) and value.__module__ == name:
                    found.update({(f"{name}.{key}", attribute): each for attribute, each in vars(value).items()})
    for number in signal.valid_signals():
        found["signal", str(number)] = signal.getsignal(number)
    return found


_OF_THEIR_OWN = ("__", "_abc_", "next_id")
"""What Python changes by itself, and torch's count of all hooks that ever were."""


@pytest.mark.parametrize("loop", [train, train_without_loader], ids=["loader", "optimizer"])
@pytest.mark.parametrize("error", [None, RuntimeError("boom")], ids=repr)
def test_nothing_of_torch_is_another_afterwards(unsealed, tmp_path, loop, error):
    def run(folder):
        with tracer.record(folder, detail="full"):
            loop()
            if error is not None:
                raise error

    def tried(folder):
        with contextlib.suppress(RuntimeError):
            run(folder)

    loop()  # what torch loads and notes at its first step is its own
    before = surroundings()
    tried(tmp_path / "t")
    after = surroundings()
    assert len(before) > 20_000
    changed = [
        key
        for key, value in before.items()
        if value is not None and after.get(key, value) is not value and not key[1].startswith(_OF_THEIR_OWN)
    ]
    assert changed == []
    assert not [key for key in before.keys() - after.keys() if not key[1].startswith(_OF_THEIR_OWN)]


def test_the_program_s_randomness_and_threads_are_its_own(unsealed, tmp_path):
    def drawn():
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        train_without_loader(4)
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    threads = torch.get_num_threads()
    plain = drawn()
    with tracer.record(tmp_path / "t"):
        recorded = drawn()
    assert recorded == plain
    assert torch.get_num_threads() == threads
