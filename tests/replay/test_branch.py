"""Branches (B4): without a change the parent bit for bit; with one, a trace that replays by itself."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import tracer
from replay import branch, verify
from replay.branching import line_map
from tracer.errors import NameUnknownError, StepError, UsageError
from tracer.steps import StepRecorder
from tracer.writing import Writing

HOUSE = Path(__file__).parents[2]


def facts(trace, steps):
    return [(r["fingerprint"], r["loss"], r["rng_hash"]) for r in map(trace.record, steps)]


def assert_same(a, b, steps):
    with tracer.open_trace(a) as one, tracer.open_trace(b) as other:
        assert facts(one, steps) == facts(other, steps)


# 8 steps an epoch: from 5 on there are validation, the scheduler's step and two ends of an epoch; at 8 one begins.
@pytest.mark.parametrize("at", [5, 8])
def test_a_branch_without_a_change_is_its_parent(basic, tmp_path, at):
    done = branch(basic, tmp_path / "same", at=at)
    assert (done.steps, done.control.kind, done.note) == (24 - at, "verified", None)
    assert_same(basic, done.path, range(at, 24))
    with done.open() as trace:
        assert (trace.first_step, trace.steps) == (at, 24)
        assert trace.manifest.parent.at_step == at
        assert verify(trace).verified
        # What the program's own imports have set since is not what a process must start with.
        with tracer.open_trace(basic) as parent:
            assert trace.manifest.environment["env"] == parent.manifest.environment["env"]


def test_so_it_is_without_a_loader(no_loader, tmp_path):
    done = branch(no_loader, tmp_path / "same", at=7, steps=9)
    assert done.steps == 9
    assert_same(no_loader, done.path, range(7, 16))
    assert verify(done.path).verified


class TestChanges:
    def test_a_hyperparameter_and_an_attribute(self, digits, tmp_path):
        done = branch(digits, tmp_path / "b", at=12, steps=10, set={"optimizer.lr": "0.5x", "bcl.coupled": False})
        with done.open() as trace, tracer.open_trace(digits) as parent:
            assert [trace.record(k)["lr"] for k in (12, 21)] == [0.0005, 0.0005]
            assert trace.record(12)["loss"] == parent.record(12)["loss"]
            assert trace.record(13)["loss"] != parent.record(13)["loss"]
            known = trace.sql("select parent, at_step, change from branches").fetchall()
            assert known == [(str(digits), 12, '{"optimizer.lr": "0.5x", "bcl.coupled": false}')]
        report = verify(done.path)
        assert (report.count("verified"), len(report.verdicts)) == (10, 10)

    def test_a_branch_of_a_branch(self, digits, tmp_path):
        first = branch(digits, tmp_path / "b1", at=12, set={"optimizer.lr": 0.01})
        second = branch(first.path, tmp_path / "b2", at=20, set={"bcl.som_lr": "*2"}, steps=4)
        with second.open() as trace:
            assert trace.manifest.parent.trace == str(first.path)
            assert trace.record(20)["lr"] == 0.01
        assert verify(second.path).verified

    def test_a_tensor_and_a_seed(self, basic, tmp_path):
        zero = torch.zeros(10)
        done = branch(basic, tmp_path / "b", at=3, steps=3, tensors={"fc.bias": zero}, seed=5)
        with done.open() as trace, tracer.open_trace(basic) as parent:
            assert torch.equal(trace.state(3)["fc.bias"], zero)
            assert trace.record(4)["rng_hash"] != parent.record(4)["rng_hash"]
        assert verify(done.path).verified

    def test_another_script(self, basic, tmp_path):
        text = (HOUSE / "tests/programs/loader_basic.py").read_text()
        changed = tmp_path / "changed.py"
        changed.write_text(
            "# another line\n"
            + text.replace("loss = F.nll_loss(model(data), target)", "loss = 2 * F.nll_loss(model(data), target)")
        )
        with pytest.raises(StepError, match="keyframe"):
            branch(basic, tmp_path / "b", at=6, steps=4, script=changed)
        done = branch(basic, tmp_path / "b", at=5, steps=4, script=changed)
        with done.open() as trace, tracer.open_trace(basic) as parent:
            assert trace.record(5)["loss"] == 2 * parent.record(5)["loss"]
        assert verify(done.path).verified


class TestRefusals:
    def test_a_name_that_there_is_not(self, digits, tmp_path):
        with pytest.raises(UsageError, match=r"bcl\.coupled"):
            branch(digits, tmp_path / "b", at=3, steps=1, set={"bcl.coupl": False})
        assert not (tmp_path / "b").exists() or not any((tmp_path / "b").iterdir())

    def test_more_steps_than_the_program_makes(self, digits, tmp_path):
        done = branch(digits, tmp_path / "b", at=28, steps=3)
        assert (done.steps, done.note) == (2, "the program ended")
        with pytest.raises(StepError, match="begins with a recorded step"):
            branch(digits, tmp_path / "c", at=30, steps=3)

    def test_a_place_that_is_taken(self, digits, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UsageError, match="exists"):
            branch(digits, tmp_path, at=3)

    def test_several_optimizers_must_be_told_apart(self):
        from replay.changes import is_hyperparameter

        two = {f"{name}.optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)]) for name in "ab"}
        with pytest.raises(NameUnknownError, match="several"):
            is_hyperparameter("optimizer.lr", two)


def test_lines_that_are_unchanged_are_found_again():
    assert line_map("a\nb\nc", "new\na\nc") == {1: 2, 3: 3}


def by_hand():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        (model(torch.randn(4, 3)) ** 2).mean().backward()
        optimizer.step()


# The branch cannot begin; no pass of its model can be noted; its end cannot be written.
@pytest.mark.parametrize(
    ("owner", "name", "kept"),
    [(StepRecorder, "_begin_optimizer_step", False), (StepRecorder, "_flush", False), (Writing, "finish", True)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_a_branch_cannot_be_recorded_nothing_stays_in_this_process(tmp_path, monkeypatch, owner, name, kept):
    def failing(self, *args, **options):
        raise OSError("injected")

    with tracer.record(tmp_path / "t"):
        by_hand()
    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(UsageError, match="injected"):
        branch(tmp_path / "t", tmp_path / "b", at=2, program=by_hand)
    gc.collect()  # a file, or a sealer, that is still open would be warned of
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert (tmp_path / "b").exists() == kept
    if kept:
        assert_same(tmp_path / "t", tmp_path / "b", range(2, 5))


class Settings:
    broken = False


def with_a_fuse():
    torch.manual_seed(0)
    model, settings = torch.nn.Linear(4, 1), Settings()
    settings.broken = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        x = torch.randn(8, 4)
        if settings.broken:
            raise RuntimeError("the fuse has blown")
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracer.capture("x/mean", x.mean(0))


def test_one_that_makes_no_step_says_so(tmp_path):
    with tracer.record(tmp_path / "t"):
        with_a_fuse()
    with pytest.raises(UsageError, match=r"at state 2 made no step.*the fuse has blown"):
        branch(tmp_path / "t", tmp_path / "b", at=2, program=with_a_fuse, set={"settings.broken": True})
    assert not (tmp_path / "b").exists()


def test_one_whose_captures_cannot_be_kept_is_none(tmp_path, monkeypatch):
    with tracer.record(tmp_path / "t"):
        with_a_fuse()

    def failing(self, *args):
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(StepRecorder, "capture", failing)
    with pytest.raises(UsageError, match="recording it failed: ZeroDivisionError: injected"):
        branch(tmp_path / "t", tmp_path / "b", at=2, program=with_a_fuse)
    assert not (tmp_path / "b").exists()
