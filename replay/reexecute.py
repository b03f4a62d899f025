"""States and batches that were not stored, by re-execution: what `trace.state` and `trace.batch` fall back on (entry points).

Room: replay. Keeps one warm engine for each open trace of this process, until the trace is closed.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from replay.session import Session

if TYPE_CHECKING:
    from tracer.stored import State
    from tracer.trace import Trace

_warm: dict[Trace, Session] = {}


def state(trace: Trace, k: int) -> State:
    """Return state `k` of `trace`. Raise StepError, ReplayError."""
    return _session(trace).seek(k).state


def batch(trace: Trace, k: int) -> Any:
    """Return the batch of step `k` of `trace`, made again. Raise StepError, ReplayError."""
    return _session(trace).seek(k).batch


def _session(trace: Trace) -> Session:
    session = _warm.get(trace)
    if session is None:
        session = _warm[trace] = Session(trace)
        trace.on_close(lambda: _close(trace))
    return session


def _close(trace: Trace) -> None:
    session = _warm.pop(trace, None)
    if session is not None:
        session.close()


def close_all() -> None:
    """End the engines that are kept warm."""
    for trace in list(_warm):
        _close(trace)


atexit.register(close_all)
