"""A disk that refuses: training goes on, and the trace says which steps are missing. # S0.4"""

from __future__ import annotations

import errno
import logging
import shutil

import pytest
import torch

import tracer
from tests.tracer.training import train_rows
from tracer import journal
from tracer.lost import lost_steps
from tracer.tail import TailWriter

STEPS = 40


@pytest.fixture
def refuse(monkeypatch):
    """A disk that is full from when `refuse(True)` is called until `refuse(False)` is."""
    full = [False]
    native = TailWriter._write

    def write(self, buffers, expected):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return native(self, buffers, expected)

    monkeypatch.setattr(TailWriter, "_write", write)
    monkeypatch.setattr(journal, "_RETRY_SECONDS", 0.0)
    return lambda now: full.__setitem__(0, now)


def _check(path, lost):
    with tracer.open_trace(path) as trace:
        assert lost_steps(trace) == [lost]
        detail = trace.sql("select step, detail from events where kind = 'dropped'").fetchall()
        assert [(step, text.split(":")[0]) for step, text in detail] == [(lost[1], f"{lost[0]}-{lost[1]}")]
        offered, written, dropped = trace.sql("select sum(offered), sum(written), sum(dropped) from epochs").fetchall()[
            0
        ]
        assert offered == STEPS
        return written, dropped


def test_full_disk(tmp_path, refuse, caplog):
    refuse(False)
    expected = train_rows(steps=STEPS)

    def fill_up(k):
        # The record of step k is written when its body is over: 11 to 20 are lost.
        if k in (11, 21):
            refuse(k == 11)

    with caplog.at_level(logging.INFO, "rewind"), tracer.record(tmp_path / "t"):
        found = train_rows(fill_up, STEPS)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [r.message.count("No space left") for r in caplog.records if r.levelno == logging.ERROR] == [1]
    assert "lost: steps 11-20" in caplog.text
    assert _check(tmp_path / "t", (11, 20)) == (STEPS - 10, 10)
    # What came after is whole: the samples that the disk had refused were written when it took them again.
    from replay import Session

    with tracer.open_trace(tmp_path / "t") as trace:
        trace.batch(21)
        keyframe = next(k for k in trace.keyframes if k > 20)
    assert keyframe <= 22
    with Session(tmp_path / "t", program=lambda: train_rows(steps=STEPS)) as session:
        session.seek(keyframe)
        assert session.step().kind == "verified"


def test_removed_directory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(journal, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.0)

    def remove(k):
        if k == 20:
            shutil.rmtree(tmp_path / "t")

    with tracer.record(tmp_path / "t"):
        train_rows(remove, STEPS)
    assert caplog.text.count("was removed") == 1
    with tracer.open_trace(tmp_path / "t") as trace:
        ((first, last),) = lost_steps(trace)
        assert first == 0
        assert 19 <= last <= 21
        assert trace.steps == STEPS
        assert len(trace.state(STEPS)) == 2
        trace.batch(last + 1)


def test_directory_that_becomes_read_only_at_a_roll(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(journal, "ROLL_STEPS", 8)
    native = TailWriter.__init__
    made = []

    def refuse_second(self, path):
        made.append(path)
        if len(made) == 2:
            raise OSError(errno.EROFS, "Read-only file system")
        native(self, path)

    monkeypatch.setattr(TailWriter, "__init__", refuse_second)
    with tracer.record(tmp_path / "t"):
        train_rows(steps=STEPS)
    assert caplog.text.count("Read-only file system") == 1
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.recorded_steps.runs == ((0, STEPS - 1),)
