"""RECORD: put a hook into a training loop, and read back what it saw.

    with tracer.record("runs/a"):            # around any loop; `rewind record script.py` is this, from outside
        train()
    trace = tracer.open_trace("runs/a")

`capture`, `log` and `progress` may stay in a program for good: they do nothing where nothing records. The names below
are all there is to know; each is imported on first use, so that `import tracer` costs nothing, not even torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.active import capture, log, progress
    from tracer.recorder import Recorder, attach, record
    from tracer.trace import Trace, open_trace

__all__ = ["Recorder", "Trace", "attach", "capture", "log", "open_trace", "progress", "record"]

_HOME = {
    "Recorder": "tracer.recorder",
    "Trace": "tracer.trace",
    "attach": "tracer.recorder",
    "capture": "tracer.active",
    "log": "tracer.active",
    "open_trace": "tracer.trace",
    "progress": "tracer.active",
    "record": "tracer.recorder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__


class _Face(ModuleType):
    """A verb and its module share a name here: importing `tracer.progress` must not hide `tracer.progress()`.

    Inside, such a module is reached by what it defines: `from tracer.progress import read`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
