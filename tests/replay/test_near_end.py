"""Engines of scripts: forked from a nursery, ended with their session, replaced where they were killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from replay import Session, near_end


@pytest.fixture
def trace(no_loader):
    """A recorded script of 24 steps."""
    return no_loader


def pid_of(session):
    return session._engine._pid


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_sessions_share_a_nursery_and_leave_no_process(trace):
    seen = []
    for _ in range(2):
        with Session(trace) as session:
            assert session.seek(5).step().verified
            seen.append((near_end._Home.nursery, pid_of(session)))
    (first, one), (second, two) = seen
    assert first is second
    assert one != two
    assert not is_there(one)
    assert not is_there(two)
    assert first.engines == 0


def test_a_killed_engine_is_replaced(trace):
    with Session(trace) as session:
        session.seek(5)
        os.kill(pid_of(session), signal.SIGKILL)
        assert session.step().verified
        assert session.position == 6
        assert [verdict.kind for verdict in session.run(18)] == ["verified"] * 18


def test_a_killed_nursery_is_replaced(trace):
    with Session(trace) as session:
        session.seek(5)
        old = near_end._Home.nursery
        old._process.kill()
        old._process.wait()
    with Session(trace) as session:
        assert session.seek(9).step().verified
        assert near_end._Home.nursery is not old


def test_another_environment_has_its_own_nursery(trace, monkeypatch):
    with Session(trace) as session:
        session.seek(1)
        first = near_end._Home.nursery
        monkeypatch.setenv("REWIND_TEST_OF_ENGINES", "1")
        with Session(trace) as other:
            assert other.seek(2).step().verified
            assert near_end._Home.nursery is not first
        assert session.step().verified  # its own nursery lives as long as it does
    assert first._process.returncode is not None
