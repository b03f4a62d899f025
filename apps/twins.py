"""Runs opened once more, for the slow work that pages do in threads: one copy for all pages, one thread in it at a time.

A copy costs some 10 MB: what was read last, and the tables that SQL stands on. So no page has one of its own, and one
that has had nothing to do for a while is closed: what it gave is kept where it is shown.
Room: apps. May touch: opens traces, for reading; closes those that no page shows any more.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from apps.memory import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from apps.recorded import Recorded


REST: Final = 15.0
"""Seconds without work after which a copy is closed."""


class Twins:
    """The copies by the trace's path."""

    def __init__(self, *, rest: float = REST) -> None:
        """None is open yet."""
        self._open: dict[Path, tuple[Recorded, int]] = {}
        self._worked: dict[Path, float] = {}
        self._lock = threading.Lock()
        self._rest = rest
        self._watch: threading.Timer | None = None

    def work(self, run: Recorded, generation: int, work: Callable[[Recorded], Any]) -> Any:
        """Return `work(copy)` of `run` as it was at `generation` or later; what `work` raises is raised."""
        with self._lock:
            try:
                return work(self._of(run, generation))
            finally:
                self._worked[run.trace.path] = time.monotonic()
                if self._watch is None:
                    self._watch_over(self._rest)

    def _watch_over(self, seconds: float) -> None:
        self._watch = threading.Timer(seconds, self.tidy)
        self._watch.daemon = True
        self._watch.start()

    def tidy(self) -> None:
        """Close the copies that have rested, and look again when the next one may have."""
        with self._lock:
            now = time.monotonic()
            rested = [path for path in self._open if now - self._worked.get(path, now) >= self._rest]
            self._close(rested)
            self._watch = None
            if self._open:
                self._watch_over(max(0.1, self._rest - now + min(self._worked.get(path, now) for path in self._open)))
        if rested:
            give_back()

    def _of(self, run: Recorded, generation: int) -> Recorded:
        known = self._open.get(run.trace.path)
        if known is None:
            known = self._open[run.trace.path] = (run.twin(), generation)
        elif known[1] < generation:
            known[0].refresh()
            self._open[run.trace.path] = (known[0], generation)
        return known[0]

    def drop(self, paths: Iterable[Path]) -> None:
        """Close the copies at `paths`, after the work that is under way."""
        with self._lock:
            self._close(paths)

    def _close(self, paths: Iterable[Path]) -> None:
        for path in paths:
            found = self._open.pop(path, None)
            if found is not None:
                found[0].trace.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            self._close(list(self._open))
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
