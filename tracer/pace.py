"""How often a keyframe is taken: a seek re-executes about a second of training, keyframes cost about a percent of it.

On a disk that would not hold a day of them they are farther apart: what a day leaves of the room it found is a third,
whatever the size of the model.

Room: tracer. Pure, but for the clock.
"""

from __future__ import annotations

import time

SEEK_SECONDS = 1.0
COST_FACTOR = 66
"""At least this many times the cost of a keyframe lies between two."""
ALLOWANCE = 0.01
"""This part of the free disk is spent before keyframes make room for one another."""
DAY_SECONDS = 86400.0
GAP_SECONDS = 0.25
"""After the loop was left for longer than this (a validation, say) a keyframe saves every later seek the same wait."""


class KeyframePace:
    """Says when the next keyframe is due."""

    def __init__(self, every: int | None) -> None:
        """`every`: a keyframe each so many steps; None: by the time that steps and keyframes take."""
        self._every = every
        self._last: int | None = None
        self._before: int | None = None
        self._elapsed = 0.0
        self._interval = SEEK_SECONDS
        self._cost = 0.0
        self._spent = 0
        self._ended = time.perf_counter()

    @property
    def forced(self) -> bool:
        """Whether the next state must be a keyframe: no step can be replayed without it."""
        return self._last is None

    def due(self, step: int, *, after_gap: bool = False) -> bool:
        """Whether state `step` should be a keyframe."""
        if self._last is None or (after_gap and time.perf_counter() - self._ended > GAP_SECONDS):
            return True
        if self._every is not None:
            return step % self._every == 0 and step != self._last
        return self._elapsed >= self._interval

    def took(self, step: int, seconds: float) -> None:
        """A keyframe of state `step` was taken and cost `seconds`."""
        self._before, self._last = self._last, step
        self._elapsed = 0.0
        self._cost = seconds
        self._interval = max(SEEK_SECONDS, COST_FACTOR * seconds)

    def wrote(self, nbytes: int, seconds: float, free: int) -> None:
        """To write that keyframe took `seconds` more; it has `nbytes`, and the disk has `free` bytes left."""
        self._spent += nbytes
        apart = nbytes * DAY_SECONDS / max(1, free) if self._spent > ALLOWANCE * free else 0.0
        self._interval = max(SEEK_SECONDS, COST_FACTOR * (self._cost + seconds), apart)

    def forget(self, step: int) -> None:
        """The keyframe of state `step` was thrown away."""
        if self._last == step:
            self._last = self._before

    def force(self) -> None:
        """The next state must be a keyframe: steps were lost before it."""
        self._last = None

    def stepped(self, seconds: float) -> None:
        """A step took `seconds`."""
        self._elapsed += seconds
        self._ended = time.perf_counter()
