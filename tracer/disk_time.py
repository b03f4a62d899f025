"""What part of the training's time the disk takes: where that is too much the run waits, or leaves out what it can do without.

Weights and gradients of a step are had by re-execution, too: only these are ever left out, and only where that was asked for.
Room: tracer. Pure, but for the clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE: Final = 0.2
"""Of the time of a run, writing may take so much before it is said, or before steps are written without weights."""
BURST: Final = 1.0
"""Seconds of writing that are let pass at once."""


class DiskTime:
    """Adds up what writing takes; `behind` while that is more than its share."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """From now on."""
        self._clock = clock
        self._at = clock()
        self._left = BURST
        self._seconds = 0.0
        self._bytes = 0

    def took(self, seconds: float, nbytes: int) -> bool:
        """Writing `nbytes` took `seconds`, until now; return whether the disk has taken more than its share for a while."""
        now = self._clock()
        # A write that took long must not be paid for with its own duration alone, nor forgotten soon after.
        self._left = min(BURST, self._left + SHARE * (now - self._at)) - seconds
        self._at = now
        self._seconds += seconds
        self._bytes += nbytes
        return self._left < -BURST

    @property
    def behind(self) -> bool:
        """Whether the disk has taken more than its share."""
        return self._left < 0

    @property
    def words(self) -> str:
        """How fast it is."""
        rate = self._bytes / max(self._seconds, 1e-9) / 1e6
        return f"the disk takes {rate:.3g} MB/s, and more than {SHARE:.0%} of the training's time"
