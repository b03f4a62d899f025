"""Why is my chart not moving? From the process to the store to the chart, the first link that is broken. # S0.5

Room: apps. Reads a trace; asks the live run's control channel whether it answers; writes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from analysis.finding import Finding
from tracer.errors import ControlError, RewindError
from tracer.lost import lost_steps, worded

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer import Trace

SILENT_SECONDS = 60.0
SILENT_STEPS = 20
"""A run is silent when it made no step for a minute, and for as long as 20 of its steps take."""
_AHEAD_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_SESSIONS = "select session, status, host, pid, started, ended from sessions"
_LAST = "select step, time, duration from steps order by step desc limit 20"


def live_findings(trace: Trace) -> list[Finding]:
    """Return the first broken link of a run that should go on, and the steps that could not be written, if any."""
    broken = next((found for link in _LINKS if (found := link(trace)) is not None), None)
    return [found for found in (broken, _lost(trace)) if found is not None]


def _process(trace: Trace) -> Finding | None:
    if not trace.sessions:
        advice = "the program has not come to its training loop yet: look at its own output, or wait"
        return Finding("process", None, "no step was made yet", _SESSIONS, advice)
    session = trace.sessions[-1]
    if trace.status()["status"] != "crashed":
        return None
    evidence = f"the process {session.pid} on {session.host} is gone, and did not end its session"
    advice = f"`rewind repair {trace.path}` brings the trace in order; record again with --append to go on"
    return Finding("process", None, evidence, _SESSIONS, advice)


def _paused(trace: Trace) -> Finding | None:
    status = trace.status()
    if status["status"] != "paused":
        return None
    evidence = f"the run is paused before step {status['current_step']}"
    return Finding("paused", None, evidence, _SESSIONS, f"`rewind resume {trace.path}` lets it go on")


def _last_steps(trace: Trace) -> list[tuple[int, float, float]]:
    return trace.sql(_LAST).fetchall()


def _index(trace: Trace) -> Finding | None:
    try:
        _last_steps(trace)
    except RewindError as error:
        advice = f"`rewind repair {trace.path}` makes the index anew once the run is over"
        return Finding("index", None, f"the index cannot be read: {error}", _LAST, advice)
    return None


def _clock(trace: Trace) -> Finding | None:
    if not _goes_on(trace):
        return None
    ahead = [(step, when - time.time()) for step, when, _ in _last_steps(trace)[:1]]
    if not ahead or ahead[0][1] < _AHEAD_SECONDS:
        return None
    evidence = f"step {ahead[0][0]} was recorded {ahead[0][1]:.0f} s in the future of this machine's clock"
    return Finding(
        "clock", ahead[0][0], evidence, _LAST, "set the clocks of both machines (NTP): ages and rates are off"
    )


def _store(trace: Trace) -> Finding | None:
    """The run says how far it is in status.json, half a second late at most: the store must have as much."""
    status = trace.status()
    if not _goes_on(trace) or status["current_step"] is None:
        return None
    time_of_file = status["updated_at"] or 0.0
    trace.refresh()
    newest = max((when for _, when, _ in _last_steps(trace)), default=0.0)
    if time_of_file - newest < SILENT_SECONDS or time.time() - time_of_file > SILENT_SECONDS:
        return None
    evidence = f"the run is at step {status['current_step']}, the store has {trace.steps} steps and does not grow"
    advice = "look at the recording terminal for `cannot write`: a full disk, a removed or read-only directory"
    return Finding("store", trace.steps, evidence, _LAST, advice)


def _silence(trace: Trace) -> Finding | None:
    rows = _last_steps(trace) if _goes_on(trace) else []
    if not rows:
        return None
    step, when, _ = rows[0]
    usual = sum(duration for _, _, duration in rows) / len(rows)
    silent = time.time() - when
    if silent < max(SILENT_SECONDS, SILENT_STEPS * usual):
        return None
    evidence = f"no step for {silent:.0f} s, the last one was step {step}; a step takes {usual:.3g} s"
    advice = "the program is busy outside its loop (validation, saving), or hangs: look at its stack with py-spy"
    return Finding("silence", step, evidence, _LAST, advice)


def _control(trace: Trace) -> Finding | None:
    from tracer.control import Control  # noqa: PLC0415  sockets, for a live run only

    if not _goes_on(trace):
        return None
    try:
        with Control(trace.path, timeout=_ANSWER_SECONDS) as run:
            run.ping()
    except ControlError as error:
        advice = "the run cannot be paused from outside; its chart moves all the same"
        return Finding("control", None, str(error), _SESSIONS, advice)
    return None


def _server(trace: Trace) -> Finding | None:
    """The app that shows this trace, if one was started: does it answer?"""
    from apps import address  # noqa: PLC0415  a web server's address, for a live run only

    if not _goes_on(trace):
        return None
    apps = [app for app in address.known() if app.pid and app.shows(trace.path)]
    running = [app for app in apps if app.running]
    if any(app.answers() for app in running):
        return None
    if running:
        evidence = f"the app at port {running[0].port} (process {running[0].pid}) does not answer"
        advice = f"it is busy or hangs: end it, `rewind app {trace.path}` starts another"
        return Finding("server", None, evidence, _SESSIONS, advice)
    dead = [app for app in apps if app.started > trace.manifest.created]
    if not dead:
        return None
    evidence = f"the app at port {dead[-1].port} is gone: its process {dead[-1].pid} was killed"
    advice = "start `rewind app` on the same traces again: pages that were left open come back by themselves"
    return Finding("server", None, evidence, _SESSIONS, advice)


def _goes_on(trace: Trace) -> bool:
    return trace.status()["status"] in ("running", "paused")


def _lost(trace: Trace) -> Finding | None:
    lost = lost_steps(trace)
    if not lost:
        return None
    count = sum(last - first + 1 for first, last in lost)
    evidence = f"{count} steps could not be written: {worded(lost)}"
    query = "select step, detail from events where kind = 'dropped'"
    return Finding("dropped", lost[0][0], evidence, query, "the detail names the cause; make room, then record again")


_LINKS: tuple[Callable[[Any], Finding | None], ...] = (
    _process,
    _paused,
    _index,
    _store,
    _silence,
    _control,
    _clock,
    _server,
)
