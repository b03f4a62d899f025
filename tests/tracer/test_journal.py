"""The recorder's pen: what is written beside the program, and in which order."""

from __future__ import annotations

import threading

import pytest

import tracer
from replay import Session
from tests.tracer.training import train, train_without_loader
from tracer import journal, steps, tail
from tracer.journal import Journal
from tracer.tail import read_tail

pytestmark = pytest.mark.usefixtures("unsealed")


@pytest.fixture
def pen(tmp_path):
    (tmp_path / "tail").mkdir()
    pen = Journal(tmp_path, 0, 0, 0)
    yield pen
    pen.close("finished")


def kinds(path):
    """(kind, step) of the records of all files, in order."""
    files = sorted((path / "tail").iterdir())
    return [(r.header["kind"], r.header.get("step")) for file in files for r in read_tail(file)]


def step(k):
    return {"kind": "step", "step": k}


class Gate:
    """Stands for a large keyframe on a slow disk: it is made when told."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.told = []

    def later(self, k):
        """A record for `Journal.step`."""
        return {"kind": "keyframe", "step": k}, self.make, lambda *answer: self.told.append(answer)

    def make(self):
        self.begun.set()
        assert self.go.wait(60)
        return [("data", [b"weights"], None)]


def test_the_program_goes_on_while_a_keyframe_is_written_and_the_next_record_waits(tmp_path, pen):
    gate = Gate()
    assert pen.step(step(0), (), gate.later(0))
    assert gate.begun.wait(60)
    assert kinds(tmp_path) == [("begin", None), ("step", 0)], "the step is there, and the program has gone on"
    next_one = threading.Thread(target=pen.step, args=(step(1), ()))
    next_one.start()
    gate.go.set()
    next_one.join()
    assert kinds(tmp_path) == [("begin", None), ("step", 0), ("keyframe", 0), ("step", 1)]
    assert [written for written, _ in gate.told] == [True]


def test_a_file_ends_after_the_keyframe_that_is_being_written(tmp_path, pen, monkeypatch):
    monkeypatch.setattr(pen, "_roll_steps", 1)
    gate = Gate()
    gate.go.set()
    pen.step(step(0), (), gate.later(0))
    assert kinds(tmp_path) == [("begin", None), ("step", 0), ("keyframe", 0), ("roll", None), ("begin", None)]


def test_a_session_ends_after_the_keyframe_that_is_being_written(tmp_path):
    (tmp_path / "tail").mkdir()
    pen, gate = Journal(tmp_path, 0, 0, 0), Gate()
    pen.step(step(0), (), gate.later(0))
    end = threading.Thread(target=pen.close, args=("finished",))
    end.start()
    gate.go.set()
    end.join()
    assert kinds(tmp_path) == [("begin", None), ("step", 0), ("keyframe", 0), ("close", None)]


def test_a_keyframe_that_the_disk_refuses_is_told_of_and_no_step_is_lost(tmp_path, pen, monkeypatch):
    monkeypatch.setattr(journal, "_RETRY_SECONDS", 0.0)
    gate, write = Gate(), tail.TailWriter.append

    def refuse(self, header, sections=()):
        if header["kind"] == "keyframe":
            raise OSError(5, "no")
        return write(self, header, sections)

    monkeypatch.setattr(tail.TailWriter, "append", refuse)
    gate.go.set()
    pen.step(step(0), (), gate.later(0))
    assert pen.step(step(1), ())
    assert [written for written, _ in gate.told] == [False]
    assert pen.failure is None
    assert kinds(tmp_path) == [("begin", None), ("step", 0), ("step", 1)]


@pytest.mark.parametrize("form", ["loader", "by hand"])
def test_a_trace_whose_keyframes_were_written_beside_is_the_same(tmp_path, monkeypatch, alone, form):
    monkeypatch.setattr(steps, "LARGE_KEYFRAME", 0)
    beside = []
    begin = Journal._begin_beside
    monkeypatch.setattr(
        Journal, "_begin_beside", lambda pen, later: (beside.append(later[0]["step"]), begin(pen, later))
    )

    def run():
        train(epochs=4) if form == "loader" else train_without_loader(20)

    with tracer.record(tmp_path / "t", detail="replay", keyframe_every=3):
        run()
    assert len(beside) >= 5
    with tracer.open_trace(tmp_path / "t") as trace:
        assert set(beside) < set(trace.keyframes)
        with Session(trace, program=run) as session:
            for k in (17, 4, 11, 0, 12, 3):
                session.seek(k)
                session.step()
                assert session.verdict.kind == "verified"
