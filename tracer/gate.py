"""The gate between two steps of a live run: open, or held, or open for a counted number of steps. # S4.1

The training thread passes it after each step, when the step's record is written; open, that costs one look at a flag (a
plain attribute: `Event.is_set()` would be one call more). A run is held by its holders: a person (`HAND`), or a client that
holds it as long as its connection lives. Without holders it goes on. Stop wins over hold. What the training thread would
have to wait for is decided under one lock; `close`, which a signal's handler may call, waits for none.
Room: tracer. May touch: only the thread that passes.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HAND = "hand"
_TICK = 0.25


class Stopped(KeyboardInterrupt):
    """The run was told to stop: it ends as after Ctrl-C, at the end of a step."""


class Gate:
    """Lets the training thread pass, or holds it."""

    def __init__(self, pause_at: int | None = None) -> None:
        """`pause_at`: hold before the first step whose number is at least this (but for the first of the session)."""
        self._free = True
        self._changed = threading.Condition(threading.Lock())
        self._pause_at: float = math.inf if pause_at is None else pause_at
        self._holders: set[str] = set()
        self._budget = 0
        self._put_off = False
        self._waiting = False
        self._stopping = False
        self._over = False
        self.step = 0
        self.on_hold: Callable[[], None] = lambda: None
        self.on_tick: Callable[[], None] = lambda: None

    # -- the training thread -------------------------------------------------------------------------------------------

    def passing(self, step: int, *, whole: Callable[[], bool] = lambda: True) -> float:
        """Between two steps, `step` being next: return how many seconds this took. Raise Stopped.

        Where not all of the step that is over was kept (`whole`), as nobody knew yet that the run would wait, it waits after
        the next one, which is kept.
        """
        if self._free and step < self._pause_at:
            return 0.0
        return self._hold(step, whole)

    def will_hold(self, step: int) -> bool:
        """Whether the run will wait when `step`, the one that is open, is over."""
        held = not self._free or step + 1 >= self._pause_at
        return held and self._budget == 0 and not self._over

    def _hold(self, step: int, whole: Callable[[], bool]) -> float:
        started = time.perf_counter()
        if self._over:
            return 0.0
        with self._changed:
            self.step = step
            if self._holders and not self._budget and not self._stopping and not self._put_off and not whole():
                self._put_off = True
                return 0.0
            if step >= self._pause_at:
                self._pause_at = math.inf
                self._holders.add(HAND)
                self._free = False
            try:
                self._wait()
            finally:
                self._waiting = False
                self._changed.notify_all()
        return time.perf_counter() - started

    def _wait(self) -> None:
        while not self._may_go():
            if not self._waiting:
                self._waiting = True
                self._changed.notify_all()
                self.on_hold()
            self._changed.wait(_TICK)
            self.on_tick()

    def _may_go(self) -> bool:
        if self._stopping:
            self._stopping = False
            self._release()
            raise Stopped
        if self._over or not self._holders:
            return True
        if self._budget:
            self._budget -= 1
            return True
        return False

    def _release(self) -> None:
        self._holders.clear()
        self._budget = 0
        self._put_off = False
        if not self._stopping:
            self._free = True

    def close(self) -> None:
        """The run is over: nobody is held any more. Waits for no lock, so that a signal's handler may call it."""
        self._over = True
        self._free = True
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    # -- the others ----------------------------------------------------------------------------------------------------

    def pause(self, holder: str = HAND, *, exactly: bool = False) -> None:
        """Hold the run at the end of the current step; steps that were granted and not run are not run.

        `exactly`: of this one, also where not all of it was kept; else see `passing`.
        """
        with self._changed:
            self._put_off |= exactly
            self._holders.add(holder)
            self._budget = 0
            self._free = False

    def resume(self) -> None:
        """Let the run go, whoever holds it."""
        with self._changed:
            self._release()
            self._changed.notify_all()

    def grant(self, steps: int = 1) -> None:
        """Let a held run make so many steps more. Raise UsageError where it is not held, or for less than one step."""
        if steps < 1:
            raise UsageError(f"{steps} steps: at least one")
        with self._changed:
            if not self._holders:
                raise UsageError("the run is not paused: pause it first")
            self._budget += steps
            self._changed.notify_all()

    def stop(self) -> None:
        """End the run at the end of the current step, paused or not."""
        with self._changed:
            if not self._over:
                self._stopping = True
                self._free = False
                self._changed.notify_all()

    def drop(self, holder: str) -> bool:
        """`holder` is gone: return whether the run, which nobody else holds, goes on because of it."""
        with self._changed:
            if holder not in self._holders:
                return False
            self._holders.discard(holder)
            if not self._holders:
                self._release()
                self._changed.notify_all()
            return not self._holders

    @property
    def by_hand(self) -> bool:
        """Whether a person holds the run."""
        return HAND in self._holders

    def settle(self, seconds: float) -> None:
        """Wait until the run is held, or nobody wants it held, but not longer than `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            while not (self._over or not self._holders or self._rests()) and time.monotonic() < end:
                self._changed.wait(min(_TICK, max(0.0, end - time.monotonic())))

    def _rests(self) -> bool:
        return self._waiting and not self._budget and not self._stopping

    @property
    def status(self) -> str:
        """running, pausing (until the step is over), stepping, paused, stopping or over."""
        if self._over:
            return "over"
        if self._stopping:
            return "stopping"
        if not self._holders:
            return "running"
        if self._rests():
            return "paused"
        return "stepping" if self._budget else "pausing"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a paused run where it is while the block reads of it. Raise UsageError where it is not paused."""
        with self._changed:
            if not self._rests():
                raise UsageError("the run is not paused: pause it first")
            yield
