"""A recording that nobody tuned does not fill the disk: the weights of every step are kept for as long as there is room."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

import tracer
from replay import Session
from tests.tracer.training import train
from tracer.journal import ROLL_STEPS, Journal

pytestmark = pytest.mark.usefixtures("unsealed")


@pytest.fixture
def crowded(monkeypatch):
    """A disk that has little left once some steps are written."""
    monkeypatch.setattr(Journal, "room", property(lambda journal: 1000 if journal._steps > 7 else 1 << 40))


def test_weights_that_nobody_asked_for_give_way(tmp_path, crowded, caplog):
    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t", keyframe_every=2) as recorder:
        model = train(epochs=4)
        assert recorder._steps.writing.journal._roll_steps == ROLL_STEPS
    assert [line for line in caplog.messages if "weights" in line] == caplog.messages
    assert len(caplog.messages) == 1
    with tracer.open_trace(tmp_path / "t") as trace:
        ((at,),) = trace.sql("select step from events where kind = 'weights'").fetchall()
        assert at == 8
        assert list(trace.stored_states) == list(range(10))
        assert trace.steps == 20
        with Session(trace, program=lambda: train(epochs=4)) as session:
            session.seek(19)
            session.step()
            assert session.verdict.kind == "verified"
            assert torch.equal(session.state["weight"], model.weight.detach())
    # A further session goes on as the first began, and gives way in its turn.
    with tracer.record(tmp_path / "t", append=True, keyframe_every=2):
        train(epochs=1)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert trace.sql("select count(*) from sessions").fetchall() == [(2,)]


@pytest.mark.parametrize("asked", [{"weights": True}, {"detail": "full"}])
def test_weights_that_were_asked_for_are_kept(tmp_path, crowded, caplog, asked):
    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t", keyframe_every=2, **asked):
        train(epochs=4)
    with tracer.open_trace(tmp_path / "t") as trace:
        assert list(trace.stored_states) == list(range(21))
    assert not caplog.messages


def test_the_last_of_the_disk_is_left_to_the_program(tmp_path, monkeypatch, caplog):
    """A recording that would fill the disk stops writing before, says so, and goes on when there is room again."""
    usage = SimpleNamespace(total=100 << 30, free=100 << 30)
    monkeypatch.setattr("tracer.journal.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("tracer.journal._LOOK_BYTES", 0)
    monkeypatch.setattr("tracer.journal._RETRY_SECONDS", 0.0)

    def fill(step, model, loss):
        usage.free = (1 << 30) - 1 if 5 <= step < 10 else 100 << 30

    with caplog.at_level(logging.WARNING, "rewind"), tracer.record(tmp_path / "t"):
        train(epochs=3, each=fill)
    assert "only 1023 MB of the disk are left, for the program's own files" in caplog.text
    assert "works again" in caplog.text
    with tracer.open_trace(tmp_path / "t") as trace:
        ((lost,),) = trace.sql("select detail from events where kind = 'dropped'").fetchall()
        assert lost.startswith("5-9: ")
        assert trace.sql("select count(*) from steps").fetchall() == [(10,)]
