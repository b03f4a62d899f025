"""A session's word that it runs is believed only while its process does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tracer import process
from tracer.manifest import SessionFacts


def session(pid: int, *, status: str = "running", host: str | None = None, pid_started: float | None = None):
    began = process.started(pid) if pid_started is None else pid_started
    return SessionFacts(0, 0.0, 0, 0, host or socket.gethostname(), pid, began, status=status)


def test_this_process_runs():
    assert process.standing(session(os.getpid())) == "running"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="start times come from /proc")
def test_a_number_given_to_another_process_is_not_ours():  # S2.1
    assert process.standing(session(os.getpid(), pid_started=1.0)) == "crashed"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="zombies are seen in /proc")
def test_a_killed_process_is_not_live_even_before_it_is_reaped():  # S2.1
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        facts = session(child.pid)
        assert process.standing(facts) == "running"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.standing(facts) == "crashed"
        child.wait()
    assert process.standing(facts) == "crashed"


def test_what_has_ended_and_what_ran_elsewhere_keep_their_word():
    assert process.standing(session(os.getpid(), status="finished", pid_started=1.0)) == "finished"
    assert process.standing(session(os.getpid(), host="elsewhere", pid_started=1.0)) == "running"
