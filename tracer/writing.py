"""The recorder's way to the journal: the records of a session in order, its steps counted by epoch.

A step is written as soon as it is over. (To let short steps wait for one another and write them in a thread, while a backward
pass computes, was tried: of 49 hundredths that a step of 1.5 ms became slower it saved two, and a killed process lost them.)
Room: tracer. May touch: the journal it is given.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tracer.compiled import History
from tracer.disk_time import DiskTime
from tracer.emission import Emission
from tracer.tail import checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.batches import NewSamples
    from tracer.journal import Journal, Later
    from tracer.keyframe import Keyframe
    from tracer.sections import Section

MOST_OF_DISK = 0.2
"""Weights that nobody asked for are kept at every step, and batches that come again, until they have this part of what is left."""
_log = logging.getLogger("rewind")


class Writing:
    """Puts records into the journal of a session, once there is one."""

    def __init__(self, every: int, session: int, *, leave_out: bool = False) -> None:
        """Nothing is written before `journal` is set. `leave_out`: of weights and gradients, what the disk does not keep up with."""
        self.journal: Journal | None = None
        self._disk = DiskTime()
        self._leave_out = leave_out
        self._left_out = 0
        self._heavy = self._waits = self._said = False
        self._session = session
        self.emission = Emission(every, session, self.append)
        self.compiled = History()
        self._later: Later | None = None

    @property
    def failure(self) -> OSError | None:
        """Why the disk does not take what is recorded, while it does not."""
        return None if self.journal is None else self.journal.failure

    @property
    def room(self) -> int:
        """The bytes that are free on the disk."""
        return 0 if self.journal is None else self.journal.room

    def forgo_weights(self, step: int) -> bool:
        """Say that weights are no longer kept at every step, where they take up too much of the disk; return whether."""
        journal = self.journal
        if journal is None or journal.written <= MOST_OF_DISK * journal.room:
            return False
        journal.seldom()
        said = "the weights of every step would fill the disk: from here on they are had by re-execution"
        self.event("weights", said, step)
        _log.warning("step %d: %s; --detail full keeps them all the same", step, said)
        return True

    def light(self, step: int) -> bool:
        """Whether step `step`, which has weights or gradients, is written without, as the disk does not keep up."""
        self._heavy = True
        if not (self._leave_out and self._disk.behind):
            return False
        self._left_out += 1
        self._say_slow(step, "steps are written without weights and gradients: these are had by re-execution")
        return True

    def _say_slow(self, step: int, what: str) -> None:
        if not self._said:
            self._said = True
            self.event("slow", f"{self._disk.words}: {what}", step)
            _log.warning("step %d: %s: %s", step, self._disk.words, what)

    def finish(self, step: int) -> None:
        """The session ends before step `step`."""
        if self._left_out:
            self.event("slow", f"{self._left_out} steps were written without weights and gradients", step)
        self.emission.finish()

    def layout(self, header: dict[str, Any], *, every_step: bool) -> None:
        """Write the layout of the states that follow."""
        assert self.journal is not None
        self.journal.layout(header, every_step=every_step)

    def append(self, header: dict[str, Any], sections: Sequence[Section] = ()) -> bool:
        """Write a record; return whether the disk took it."""
        return self.journal is not None and self._timed(self.journal.append, header, sections)

    def _timed(self, write: Callable[..., bool], header: dict[str, Any], *more: Any) -> bool:
        assert self.journal is not None
        started, before = time.perf_counter(), self.journal.written
        written = write(header, *more)
        self._waits = self._disk.took(time.perf_counter() - started, self.journal.written - before)
        return written

    def samples(self, new: Sequence[NewSamples]) -> None:
        """Write samples that were met for the first time."""
        for one in new:
            header = {
                "kind": "samples",
                "pool": one.pool,
                "dtype": one.dtype,
                "shape": list(one.shape),
                "first": one.first,
                "count": len(one.rows),
            }
            self.append(header, [("data", one.rows, checksum(one.rows))])

    def keyframe(self, step: int, frame: Keyframe) -> bool:
        """Write the keyframe that step `step` starts from; return whether the disk took it."""
        return self.append(self._keyframe_header(step, frame), _keyframe_data(frame))

    def keyframe_later(self, step: int, frame: Keyframe, told: Callable[[bool, float], None]) -> None:
        """Write that keyframe after the next step's record, while the program goes on; `told` is called as `Later` says."""
        self._later = self._keyframe_header(step, frame), lambda: _keyframe_data(frame), told

    def _keyframe_header(self, step: int, frame: Keyframe) -> dict[str, Any]:
        header = {"kind": "keyframe", "step": step, "session": self._session, "digest": frame.digest}
        return header | {"tree": frame.tree, "buffers": [len(b) for b in frame.buffers]}

    def event(self, kind: str, detail: str, step: int) -> None:
        """Write an event."""
        self.append({"kind": "event", "step": step, "event": kind, "detail": detail, "time": time.time()})

    def step(self, header: dict[str, Any], sections: Sequence[Section]) -> bool:
        """Write a step's record, and count it; return whether the disk took it."""
        later, self._later = self._later, None
        written = self.journal is not None and self._timed(self.journal.step, header, sections, later)
        if self._waits and not self._leave_out:
            instead = "; --slow-disk drop leaves out weights and gradients instead" if self._heavy else ""
            self._say_slow(header["step"], f"the training waits for it{instead}")
        self.emission.wrote(header, written=written)
        return written


def _keyframe_data(frame: Keyframe) -> list[Section]:
    return [("data", frame.buffers, checksum(frame.buffers))]
