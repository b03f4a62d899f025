"""Fixtures of more than one room."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

_TESTS = str(Path(__file__).parent) + os.sep


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory):
    """The key that marks traces, and what else lies in the user's state directory, is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _hears_ctrl_c():
    """A shell starts what runs in the background deaf to Ctrl-C, and so are its children: tests send it to theirs."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _NoSealer:
    """Stands for the sealing process: a trace of tails alone is as whole, and costs no process."""

    def __init__(self, path, session):
        """Start nothing."""

    def finish(self):
        """Nothing to wait for."""


@pytest.fixture
def unsealed(monkeypatch):
    """Recordings of this test start no sealing process; readers read the tails."""
    monkeypatch.setattr("tracer.recorder.Sealer", _NoSealer)


@pytest.fixture(scope="module")
def module_unsealed():
    """The same, for what a module records once for all its tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.recorder.Sealer", _NoSealer)
        yield


@pytest.fixture
def alone(monkeypatch, request):
    """The recorded program is this test's module alone, not all the test modules that pytest has imported into the process."""
    for name, module in list(sys.modules.items()):
        if module is not request.module and (getattr(module, "__file__", None) or "").startswith(_TESTS):
            monkeypatch.delitem(sys.modules, name)
