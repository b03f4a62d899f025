"""A disk that does not keep up: the training waits and it is said, or weights and gradients are left out."""

from __future__ import annotations

import logging

import pytest
import torch

import tracer
from replay import Session
from tests.tracer.training import train, train_without_loader
from tracer import disk_time
from tracer.disk_time import DiskTime
from tracer.errors import UsageError

pytestmark = pytest.mark.usefixtures("unsealed")


class Clock:
    """A clock that goes on when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_disk_that_takes_its_share_keeps_up_for_ever():
    clock = Clock()
    disk = DiskTime(clock)
    for _ in range(10_000):
        clock.now += 1.0
        disk.took(0.19, 10**6)
        assert not disk.behind


def test_a_disk_that_takes_more_is_behind_until_it_has_rested_for_it():
    clock = Clock()
    disk = DiskTime(clock)
    clock.now += 6.0
    assert disk.took(6.0, 12 * 10**6)
    assert disk.words == "the disk takes 2 MB/s, and more than 20% of the training's time"
    waited = 0
    while disk.behind:
        clock.now += 1.0
        disk.took(0.0, 0)
        waited += 1
    assert waited == 25, "six seconds of which one is let pass are a fifth of 25"


@pytest.fixture
def slow(monkeypatch):
    """Whatever writing takes is more than its share."""
    monkeypatch.setattr(disk_time, "SHARE", 0.0)
    monkeypatch.setattr(disk_time, "BURST", 0.0)


@pytest.mark.parametrize("loop", [train, train_without_loader], ids=["loader", "by hand"])
@pytest.mark.parametrize("asked", [{"weights": True}, {"detail": "full"}], ids=["weights", "full"])
def test_what_is_left_out_is_had_by_re_execution(tmp_path, slow, alone, caplog, loop, asked):
    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t", slow_disk="drop", **asked):
        model = loop()
    assert len(caplog.messages) == 1
    assert "steps are written without weights and gradients: these are had by re-execution" in caplog.text
    with tracer.open_trace(tmp_path / "t") as trace:
        assert list(trace.stored_states) == [0]
        said = trace.sql("select detail from events where kind = 'slow' order by step").fetchall()
        assert said[-1] == (f"{trace.steps} steps were written without weights and gradients",)
        assert trace.sql("select count(*) from steps").fetchall() == [(trace.steps,)]
        with Session(trace, program=loop) as session:
            session.seek(trace.steps - 1)
            session.step()
            assert session.verdict.kind == "verified"
            assert torch.equal(session.state["weight"], model.weight.detach())


def test_a_disk_that_keeps_up_leaves_nothing_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t", slow_disk="drop", weights=True):
        train()
    with tracer.open_trace(tmp_path / "t") as trace:
        assert list(trace.stored_states) == list(range(trace.steps + 1))
    assert not caplog.messages


@pytest.mark.parametrize("weights", [True, False])
def test_who_waits_is_told_once(tmp_path, slow, caplog, weights):
    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t", weights=weights):
        train()
    assert len(caplog.messages) == 1
    assert "the training waits for it" in caplog.text
    assert ("--slow-disk drop" in caplog.text) == weights
    with tracer.open_trace(tmp_path / "t") as trace:
        assert len(trace.stored_states) == (trace.steps + 1 if weights else 1)


def test_other_words_are_refused(tmp_path):
    with pytest.raises(UsageError, match="none of wait, drop"):
        tracer.record(tmp_path / "t", slow_disk="never")
