"""How a run stands, looked at once for all the pages that show it. # S0.2 S2.1 S2.4

A look is cheap: new records of the tails, status.json, whether the process lives. Reading the figures anew (SQL) is not:
that is done at most once in `redraw` seconds, and less often where it takes long, so that watching costs the training
little.
Room: apps. May touch: reads the run it is given, and tells it to take in what is new.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from tracer.errors import RewindError
from tracer.journal import reserve
from tracer.lost import lost_steps, worded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apps.recorded import Recorded

LOOK: Final = 0.12
"""Seconds between two looks at a run that goes on; a run that is over may be gone on with, which is seen within 1 s."""
LOOK_AT_THE_OLD: Final = 1.0
REDRAW: Final = 1.0
SILENT: Final = 3.0
SHARE: Final = 4.0
"""Reading anew takes at most a fifth of the time, unless nothing would be seen for longer than PATIENCE seconds then."""
PATIENCE: Final = 1.5
_ACCOUNT_EVERY: Final = 5.0
_COUNTS = (
    "select sum(offered), sum(kept), sum(written), sum(dropped), "
    "(select arg_max(detail, time) from events where kind = 'dropped') from epochs"
)


class Pulse:
    """The standing of one run. All is as of the last look."""

    def __init__(
        self, run: Recorded, *, redraw: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`redraw`: seconds between two redraws of what is shown (S2.4)."""
        self.run = run
        self.facts: dict[str, Any] = {"status": None}
        self.problem = ""
        self.generation = 0
        """Grows each time the figures were read anew."""
        self.counts: dict[str, Any] = {}
        self.peeked: int | None = None
        """The step of which the paused process was asked what the trace lacks."""
        self.note = ""
        self._redraw = REDRAW if redraw is None else redraw
        self._clock = clock
        self._looked = self._due = -1e9
        self._read: tuple[int, str | None] | None = None
        self._grew = self._accounted = clock()

    @property
    def status(self) -> str:
        """running, paused, finished, failed, terminated, crashed or empty; broken where it cannot be read."""
        return "broken" if self.problem else self.facts["status"] or "empty"

    @property
    def live(self) -> bool:
        """Whether the run goes on, be it paused."""
        return self.status in ("running", "paused")

    @property
    def silent(self) -> float:
        """For how many seconds no step has come."""
        return self._clock() - self._grew

    def look(self, *, now: bool = False) -> None:
        """Look at the run where that is due, or `now`. What cannot be read is said in `problem`, never raised."""
        pause = LOOK if self.live or self.run.empty else LOOK_AT_THE_OLD
        if not now and self._clock() - self._looked < pause:
            return
        before = (self.run.trace.steps, self.status)
        try:
            self.facts = self.run.trace.status()  # Before the steps: a run that is over has written all of them.
            self.run.trace.refresh()
            self.problem = ""
        except RewindError as error:
            self.problem = str(error)
        self._looked = self._clock()
        if (self.run.trace.steps, self.status) != before:
            self._grew = self._looked

    def renew(self, *, now: bool = False) -> None:
        """Read the figures anew where there is anything new and that is due, or `now`."""
        state = (self.run.trace.steps, self.facts["status"])
        if self._read is None:
            self._read, self._due = state, self._clock()
            self.run.refresh()
            self._account()
        due = now or state[1] != self._read[1] or self._clock() >= self._due
        if state == self._read or not due:
            return
        started = self._clock()
        self.run.refresh()
        try:
            _ = self.run.scalars, self.run.marks
            if state[1] != self._read[1] or self._clock() - self._accounted > _ACCOUNT_EVERY:
                self._account()
        except RewindError as error:
            self.problem = str(error)
        self._read = (self.run.trace.steps, self.facts["status"])
        self.generation += 1
        took = self._clock() - started
        rest = max(self._redraw - took, min(SHARE * took, PATIENCE)) if self.status == "running" else took
        self._due = self._clock() + rest

    def _account(self) -> None:
        """S0.3's counts over all epochs that are over, the steps that are lost, and why."""
        self._accounted = self._clock()
        lost = lost_steps(self.run.trace)
        if not (self.live or lost or self.counts):
            self.counts = {"lost": ""}  # A record without gaps: nothing to say, and nothing to wait for.
            return
        names = ("offered", "kept", "written", "dropped", "cause")
        found = dict(zip(names, self.run.trace.sql(_COUNTS).fetchall()[0], strict=True))
        self.counts = {**found, "lost": worded(lost)}


def refusal(path: Path) -> str:
    """Why the disk might refuse to take what a run writes at `path`, in words; empty where nothing is to be seen."""
    if not (path / "tail").is_dir():
        return f"the folder {path / 'tail'} is gone"
    if not os.access(path / "tail", os.W_OK):
        return f"the folder {path / 'tail'} is read-only"
    disk = os.statvfs(path)
    if disk.f_bavail == 0 or (disk.f_files and disk.f_favail == 0):
        return f"the disk of {path} is full"
    free = disk.f_bavail * disk.f_frsize
    if free < reserve(disk.f_blocks * disk.f_frsize):
        return f"the disk of {path} has only {free >> 20} MB left, for the program's own files"
    return ""
