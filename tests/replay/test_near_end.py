"""Engines of scripts: forked from a nursery, ended with their session, replaced where they were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay import Session, home


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
            seen.append((home.Home.nursery, pid_of(session)))
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
        old = home.Home.nursery
        old._process.kill()
        old._process.wait()
    with Session(trace) as session:
        assert session.seek(9).step().verified
        assert home.Home.nursery is not old


def test_another_environment_has_its_own_nursery(trace, monkeypatch):
    with Session(trace) as session:
        session.seek(1)
        first = home.Home.nursery
        monkeypatch.setenv("REWIND_TEST_OF_ENGINES", "1")
        with Session(trace) as other:
            assert other.seek(2).step().verified
            assert home.Home.nursery is not first
        assert session.step().verified  # its own nursery lives as long as it does
    assert first._process.returncode is not None


def test_one_that_was_prepared_is_the_one_that_is_used(trace):
    home.prepare(trace)
    prepared = home.Home.nursery
    with Session(trace) as session:
        assert session.seek(5).step().verified
        assert home.Home.nursery is prepared


def test_one_that_nobody_needed_goes_at_once(trace, monkeypatch):
    monkeypatch.setenv("REWIND_TEST_OF_ENGINES", "2")
    home.prepare(trace)
    prepared = home.Home.nursery
    monkeypatch.setenv("REWIND_TEST_OF_ENGINES", "3")
    home.prepare(trace)
    assert home.Home.nursery is not prepared
    assert prepared._process.returncode == -signal.SIGKILL


def test_of_what_is_no_trace_nothing_is_said(tmp_path):
    before = home.Home.nursery
    home.prepare(tmp_path)
    assert home.Home.nursery is before


def test_to_prepare_loads_no_torch():
    code = "import sys, replay.home; print(sorted({'torch', 'numpy', 'duckdb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
