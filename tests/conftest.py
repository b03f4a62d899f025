"""Fixtures of more than one room."""

from __future__ import annotations

import pytest


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
