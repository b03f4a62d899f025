"""The recorder's way to the journal: steps that are over by the backlog, everything else behind them, in order.

Room: tracer. May touch: the journal it is given, from the backlog's thread or while that has nothing to do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tracer.backlog import Backlog
from tracer.emission import Emission

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.journal import Journal
    from tracer.passed import Passed
    from tracer.sections import Section


class Writing:
    """Puts records into the journal of a session, once there is one."""

    def __init__(self, every: int, session: int, fail: Callable[[Exception], None]) -> None:
        """`fail` is told what is wrong with the recorder itself."""
        self._fail = fail
        self.journal: Journal | None = None
        self.backlog = Backlog()
        self.emission = Emission(every, session, self._append, self.backlog.add)
        self.lost: str | None = None
        """What a refusal of the disk has cost since this was last asked: "steps", or "samples" too."""
        self.last: dict[str, Any] = {}
        """The header of the last step that was written, or refused."""

    @property
    def failure(self) -> OSError | None:
        """Why the disk does not take what is recorded, while it does not."""
        return None if self.journal is None else self.journal.failure

    def layout(self, header: dict[str, Any], *, every_step: bool) -> None:
        """Write the layout of the states that follow."""
        assert self.journal is not None
        self.backlog.drain()
        self.journal.layout(header, every_step=every_step)

    def append(self, header: dict[str, Any], sections: Sequence[Section] = ()) -> None:
        """Write a record now, behind the steps that wait."""
        self.backlog.drain()
        self._append(header, sections)

    def _append(self, header: dict[str, Any], sections: Sequence[Section] = ()) -> None:
        if self.journal is not None:
            self.journal.append(header, sections)

    def event(self, kind: str, detail: str, step: int) -> None:
        """Write an event now."""
        self.append({"kind": "event", "step": step, "event": kind, "detail": detail, "time": time.time()})

    def step(self, passed: Passed) -> None:
        """Write a step soon; at once while the disk refuses, so that it is known what is lost."""
        self.backlog.add(lambda: self._step(passed), passed.nbytes)
        if self.failure is not None:
            self.backlog.drain()

    def _step(self, passed: Passed) -> None:
        try:
            passed.header, sections = passed.record()
            written = self.journal is not None and self.journal.step(passed.header, sections)
        except Exception as error:  # noqa: BLE001  nothing that is wrong with the recorder ends the program
            self._fail(error)
            return
        if passed.counts is not None:
            self.last = passed.header
            if passed.kept:
                passed.counts.wrote(written=written)
        if not written:
            self.lost = self.lost or "steps"

    def close(self) -> None:
        """Write what waits, and the counts of the last epoch."""
        self.emission.finish()
        self.backlog.close()
