"""REPLAY: start the recorded program again, put the past in place, and step.

    with replay.Session("runs/a") as session:
        session.seek(500)
        session.step()
        session.verdict

The names below are all there is to know; each is imported on first use, so that `import replay` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.branch import Branch, branch
    from replay.diff import diff
    from replay.hindsight import hindsight
    from replay.session import Session
    from replay.until import until
    from replay.verdict import Verdict
    from replay.verify import verify

__all__ = ["Branch", "Session", "Verdict", "branch", "diff", "hindsight", "until", "verify"]

_HOME = {
    "Branch": "replay.branch",
    "Session": "replay.session",
    "Verdict": "replay.verdict",
    "branch": "replay.branch",
    "diff": "replay.diff",
    "hindsight": "replay.hindsight",
    "until": "replay.until",
    "verify": "replay.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__


class _Face(ModuleType):
    """A verb and its module share a name here: importing `replay.verify` must not hide `replay.verify()`."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
