"""States that were not stored, by re-execution: what `trace.state(k)` falls back on (entry point group `rewind.reexecute`).

Room: replay. Keeps one warm engine per trace in this process.
"""

from __future__ import annotations

import atexit
import weakref
from typing import TYPE_CHECKING

from replay.session import Session

if TYPE_CHECKING:
    from tracer.stored import State
    from tracer.trace import Trace

_warm: weakref.WeakKeyDictionary[Trace, Session] = weakref.WeakKeyDictionary()


def state(trace: Trace, k: int) -> State:
    """Return state `k` of `trace`. Raise StepError, ReplayError."""
    session = _warm.get(trace)
    if session is None:
        session = _warm[trace] = Session(trace)
    return session.seek(k).state


def close_all() -> None:
    """End the engines that are kept warm."""
    for session in list(_warm.values()):
        session.close()
    _warm.clear()


atexit.register(close_all)
